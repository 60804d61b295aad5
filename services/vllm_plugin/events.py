"""vLLM's KV events, read from its ZMQ publisher in order, each once; and what they say of slices, as facts.

The publisher numbers its batches from 0. One that is missing is asked for again at the replay socket, and so is, when
it is quiet, one that nobody knows to be missing: a subscriber misses what was published before it had joined. Where the
replay buffer does not hold it any more, what was known of the device is void, and is said to be.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec
import zmq
import zmq.asyncio

from events.base import EngineId, Event
from events.slice import SlicesCleared, SlicesRemoved, SlicesStored, Tier
from services.vllm_plugin.device_slices import DeviceSlices, Learn

REPLAY_TIMEOUT_S: Final = 3.0
QUIET_S: Final = 1.0
"""After so long without an event, the replay socket is asked whether one was missed."""
END: Final = (-1).to_bytes(8, "big", signed=True)
SLICES_PER_FACT_MAX: Final = 1_024
"""It has to fit into a message."""

logger = logging.getLogger("tidegate.engine")


class KVEvents:
    """Reads until it is cancelled. `tell` gets facts, `gaps` counts how often what was known became void."""

    def __init__(
        self, config: Any, engine_id: EngineId, *, slice_tokens: int, slice_bytes: int, tell: Callable[[Event], None],
        learn: Learn,
    ) -> None:  # fmt: skip
        self._config, self._engine_id, self._slice_bytes, self._tell = config, engine_id, slice_bytes, tell
        self.slices = DeviceSlices(slice_tokens=slice_tokens, learn=learn)
        self._next = 0
        self.gaps = 0
        self._decode = _decoder()

    async def run(self) -> None:
        """Never ends by itself."""
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as live:
            live.setsockopt(zmq.RCVHWM, self._config.hwm)
            live.subscribe(self._config.topic.encode())
            live.connect(local(self._config.endpoint))
            while True:
                if not await live.poll(QUIET_S * 1000):
                    await self._replay(context)
                    continue
                _topic, said, payload = await live.recv_multipart()
                number = int.from_bytes(said, "big")
                if number > self._next:
                    await self._replay(context)
                if number > self._next:
                    self.lost(f"KV events {self._next} to {number - 1} are gone")
                    self._next = number
                self._take(number, payload)

    def inventory(self) -> list[SlicesStored]:
        """What the device holds now, as facts."""
        slices = self.slices.inventory()
        parts = [slices[at : at + SLICES_PER_FACT_MAX] for at in range(0, len(slices), SLICES_PER_FACT_MAX)]
        return [
            SlicesStored(engine_id=self._engine_id, tier=Tier.HBM, slices=part, slice_bytes=self._slice_bytes)
            for part in parts
        ]

    def lost(self, why: str) -> None:
        """What was known is void."""
        self.gaps += 1
        logger.warning("%s: what was known of the device's slices is void", why)
        self.slices.clear()
        self._tell(SlicesCleared(engine_id=self._engine_id, tier=Tier.HBM, reason="gap in KV events"))

    async def _replay(self, context: Any) -> None:
        """Take in what the publisher still has of what is missing here."""
        if self._config.replay_endpoint is None:
            return
        with context.socket(zmq.DEALER) as again:
            again.setsockopt(zmq.LINGER, 0)
            again.connect(local(self._config.replay_endpoint))
            await again.send_multipart((b"", self._next.to_bytes(8, "big")))
            try:
                async with asyncio.timeout(REPLAY_TIMEOUT_S):
                    await self._take_replay(again)
            except TimeoutError:
                logger.warning("the replay socket of KV events does not answer")

    async def _take_replay(self, again: Any) -> None:
        while True:
            _empty, _topic, said, payload = await again.recv_multipart()
            if said == END:
                return
            number = int.from_bytes(said, "big")
            if number > self._next:
                self.lost(f"KV events {self._next} to {number - 1} are no longer in the replay buffer")
                self._next = number
            self._take(number, payload)

    def _take(self, number: int, payload: bytes) -> None:
        """One batch; one that was taken already is passed over."""
        if number < self._next:
            return
        self._next = number + 1
        for event in self._decode(payload).events:
            match type(event).__name__:
                case "BlockStored":
                    self._say(SlicesStored, self.slices.stored(event), slice_bytes=self._slice_bytes)
                case "BlockRemoved":
                    self._say(SlicesRemoved, self.slices.removed(event))
                case _:
                    self.slices.clear()
                    self._tell(SlicesCleared(engine_id=self._engine_id, tier=Tier.HBM, reason="reset"))

    def _say(self, kind: Callable[..., Event], slices: list[Any], **more: int) -> None:
        for at in range(0, len(slices), SLICES_PER_FACT_MAX):
            part = tuple(slices[at : at + SLICES_PER_FACT_MAX])
            self._tell(kind(engine_id=self._engine_id, tier=Tier.HBM, slices=part, **more))


def local(endpoint: str) -> str:
    """Where to connect to what the publisher binds."""
    return endpoint.replace("*", "127.0.0.1").replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - read, not bound


def _decoder() -> Callable[[bytes], Any]:
    from vllm.distributed.kv_events import KVEventBatch

    decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(KVEventBatch).decode
    return decode
