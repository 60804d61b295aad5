"""KV events from vLLM's own publisher: each taken once and in order, whatever was missed on the way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    ZmqEventPublisher,
)

from events.base import EngineId, Event, SliceId
from events.slice import SlicesCleared, SlicesRemoved, SlicesStored, Tier
from kvstore.fingerprint import fingerprints, salted_key
from services.vllm_plugin import events
from services.vllm_plugin.events import KVEvents, local

ENGINE = EngineId("e1")
BLOCK, SLICE = 16, 32
WAIT_S = 20.0


class Device:
    """A publisher, and prompts whose blocks it says are stored and removed."""

    def __init__(self, folder: Path, *, buffer_steps: int = 100, replays: bool = True) -> None:
        self.publisher = ZmqEventPublisher(
            0, f"ipc://{folder}/events", f"ipc://{folder}/replay" if replays else None, buffer_steps=buffer_steps
        )
        self.config = self.publisher.get_publisher_config()

    def store(self, number: int) -> SliceId:
        """One slice of a prompt of its own."""
        tokens = [number] * SLICE
        hashes = [bytes([number, place]) * 16 for place in range(SLICE // BLOCK)]
        event = BlockStored(
            block_hashes=hashes, parent_block_hash=None, token_ids=tokens, block_size=BLOCK, lora_id=None,
            medium="GPU", lora_name=None, group_idx=0,
        )  # fmt: skip
        self.publisher.publish(KVEventBatch(ts=0.0, events=[event]))
        [name] = fingerprints(tokens, key=salted_key(""), slice_tokens=SLICE)
        return name

    def remove(self, number: int) -> None:
        event = BlockRemoved(block_hashes=[bytes([number, 1]) * 16], medium="GPU", group_idx=0)
        self.publisher.publish(KVEventBatch(ts=0.0, events=[event]))

    def clear(self) -> None:
        self.publisher.publish(KVEventBatch(ts=0.0, events=[AllBlocksCleared()]))


class Reader:
    """What is told of a device."""

    def __init__(self, config: Any) -> None:
        self.told: list[Event] = []
        self.events = KVEvents(
            config, ENGINE, slice_tokens=SLICE, slice_bytes=7, tell=self.told.append, learn=lambda *_: None
        )

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator["Reader"]:
        task = asyncio.create_task(self.events.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, holds: Callable[[list[Event]], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not holds(self.told):  # noqa: ASYNC110 - what is told sets no event
                await asyncio.sleep(0.01)


def stored(*names: SliceId) -> SlicesStored:
    return SlicesStored(engine_id=ENGINE, tier=Tier.HBM, slices=names, slice_bytes=7)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    made.publisher.shutdown()


async def test_what_was_stored_before_anybody_read_is_told_too(device: Device) -> None:
    names = [device.store(1), device.store(2)]
    async with Reader(device.config).reading() as reader:
        await reader.until(lambda told: len(told) == 2)
        names.append(device.store(3))
        await reader.until(lambda told: len(told) == 3)

    assert reader.told == [stored(name) for name in names]
    assert reader.events.inventory() == [stored(*names)]
    assert reader.events.gaps == 0


async def test_what_leaves_and_what_is_cleared_is_told(device: Device) -> None:
    async with Reader(device.config).reading() as reader:
        first, _second = device.store(1), device.store(2)
        device.remove(1)
        device.clear()
        await reader.until(lambda told: len(told) == 4)

    assert reader.told[2:] == [
        SlicesRemoved(engine_id=ENGINE, tier=Tier.HBM, slices=(first,)),
        SlicesCleared(engine_id=ENGINE, tier=Tier.HBM, reason="reset"),
    ]
    assert reader.events.inventory() == []


async def test_batch_that_was_missed_is_asked_for_again(device: Device) -> None:
    async with Reader(device.config).reading() as reader:
        one = device.store(1)
        await reader.until(lambda told: len(told) == 1)
        # As if the socket had dropped the second batch: it was published, and never got here.
        publish, device.publisher._pub = device.publisher._pub, _Deaf()
        two = device.store(2)
        await asyncio.to_thread(device.publisher._event_queue.join)
        device.publisher._pub = publish
        three = device.store(3)
        await reader.until(lambda told: len(told) == 3)

    assert reader.told == [stored(one), stored(two), stored(three)]
    assert reader.events.gaps == 0


class _Deaf:
    """A socket that loses all."""

    def send_multipart(self, parts: Any) -> None:
        pass

    def close(self, linger: int = 0) -> None:
        pass


async def test_gap_beyond_the_replay_buffer_voids_what_was_known(tmp_path: Path) -> None:
    device = Device(tmp_path, buffer_steps=2)
    async with Reader(device.config).reading() as reader:
        device.store(1)
        await reader.until(lambda told: len(told) == 1)
        publish, device.publisher._pub = device.publisher._pub, _Deaf()
        for number in range(2, 6):
            device.store(number)
        await asyncio.to_thread(device.publisher._event_queue.join)
        device.publisher._pub = publish
        last = device.store(6)
        await reader.until(lambda told: told[-1] == stored(last))
    device.publisher.shutdown()

    assert reader.events.gaps == 1
    cleared = SlicesCleared(engine_id=ENGINE, tier=Tier.HBM, reason="gap in KV events")
    assert reader.told[1] == cleared
    assert reader.told.count(cleared) == 1


async def test_without_a_replay_socket_every_gap_voids_what_was_known(tmp_path: Path) -> None:
    device = Device(tmp_path, replays=False)
    async with Reader(device.config).reading() as reader:
        async with asyncio.timeout(WAIT_S):
            number = 0
            while not reader.told:  # Until the subscription has taken effect.
                device.store(number % 200)
                number += 1
                await asyncio.sleep(0.05)
    device.publisher.shutdown()

    first = reader.told[0]
    assert isinstance(first, SlicesCleared) == (reader.events.gaps == 1)


async def test_replay_socket_that_does_not_answer_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "REPLAY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(events, "QUIET_S", 0.05)
    device = Device(tmp_path)
    nobody = type(device.config)(
        enable_kv_cache_events=True, publisher="zmq", endpoint=device.config.endpoint,
        replay_endpoint=f"ipc://{tmp_path}/nobody",
    )  # fmt: skip
    async with Reader(nobody).reading() as reader:
        async with asyncio.timeout(WAIT_S):
            number = 0
            while not any(isinstance(fact, SlicesStored) for fact in reader.told):
                device.store(number % 200)
                number += 1
                await asyncio.sleep(0.05)
    device.publisher.shutdown()


@pytest.mark.parametrize(
    ("bound", "there"),
    [
        ("tcp://*:5557", "tcp://127.0.0.1:5557"),
        ("tcp://0.0.0.0:5557", "tcp://127.0.0.1:5557"),
        ("tcp://10.1.2.3:5557", "tcp://10.1.2.3:5557"),
        ("ipc:///run/e1/events", "ipc:///run/e1/events"),
    ],
)
def test_what_is_bound_everywhere_is_reached_on_this_machine(bound: str, there: str) -> None:
    assert local(bound) == there
