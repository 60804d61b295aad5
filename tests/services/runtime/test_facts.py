"""FactWriter: order, groups, one place in the log per fact whatever happens to the acknowledgement."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from events import codec
from events.base import Cause, HolderId, LogError, PoolId
from events.control import Ticked
from events.log.base import Fence
from events.log.memory import MemoryLog
from events.request import HolderStopped
from services.runtime import facts
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock


class ShakyLog(MemoryLog):
    """A log that takes nothing while `down`, loses the next `acks_lost` acknowledgements, and `forgets` ids at once."""

    def __init__(self) -> None:
        super().__init__(PoolId("p"))
        self.down = self.forgets = False
        self.acks_lost = 0
        self.appends = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(
        self, subject: str, body: bytes, *, msg_id: str = "", fence: Fence | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:  # fmt: skip
        self.appends += 1
        await self.gate.wait()
        if self.down:
            raise LogError("down", where="test")
        msg_id = "" if self.forgets else msg_id
        seq = await super().append(subject, body, msg_id=msg_id, fence=fence, headers=headers)
        if self.acks_lost:
            self.acks_lost -= 1
            raise LogError("no acknowledgement", where="test")
        return seq

    def numbers(self) -> list[int]:
        events = [r.event for m in self._messages for r in codec.decode(m.seq, m.subject, m.body)]
        return [event.n for event in events if isinstance(event, Ticked)]


async def until(holds: Callable[[], bool]) -> None:
    """Let the others run until a condition holds."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def writing(log: MemoryLog, **limits: int) -> AsyncIterator[FactWriter]:
    writer = FactWriter(log, source="clock", owner="c-1", clock=PoolClock(), **limits)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(writer.run())
        yield writer
        await writer.close()


async def test_write_returns_the_place_in_the_log() -> None:
    log = ShakyLog()
    async with writing(log) as writer:
        assert await writer.write(Ticked(n=1)) == Cause(1, 0)
        assert await writer.write(Ticked(n=2), "1.0") == Cause(2, 0)
    message = await log.get(2)
    assert message is not None
    assert message.subject == "tg.v1.p.fact.clock.ticked"
    assert [r.cause for r in codec.decode(2, message.subject, message.body)] == ["1.0"]


async def test_what_is_said_while_a_publish_is_in_flight_becomes_one_message_in_order() -> None:
    log = ShakyLog()
    log.gate.clear()
    async with writing(log) as writer:
        first = asyncio.create_task(writer.write(Ticked(n=0)))
        await until(lambda: log.appends > 0)
        for n in range(1, 9):
            writer.say(Ticked(n=n))
        last = asyncio.create_task(writer.write(HolderStopped(holder=HolderId("h"))))
        await asyncio.sleep(0)
        log.gate.set()
        assert await first == Cause(1, 0)
        assert await last == Cause(2, 8)
    assert log.numbers() == list(range(9))
    message = await log.get(2)
    assert message is not None
    assert message.subject.endswith(".several")


async def test_a_lost_acknowledgement_does_not_double_a_fact() -> None:
    log = ShakyLog()
    log.acks_lost = 3
    async with writing(log) as writer:
        assert await writer.write(Ticked(n=1)) == Cause(1, 0)
        assert await writer.write(Ticked(n=2)) == Cause(2, 0)
    assert log.numbers() == [1, 2]


async def test_a_lost_acknowledgement_does_not_double_a_fact_when_the_log_has_forgotten_its_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(facts, "KNOWN_S", 0.0)
    log = ShakyLog()
    async with writing(log) as writer:
        await writer.write(Ticked(n=1))
        log.acks_lost, log.forgets = 1, True
        assert await writer.write(Ticked(n=2)) == Cause(2, 0)
        assert await writer.write(Ticked(n=3)) == Cause(3, 0)
    assert log.numbers() == [1, 2, 3]


async def test_down_since_tells_when_the_log_takes_nothing_and_ends_when_it_does() -> None:
    log = ShakyLog()
    log.down = True
    async with writing(log) as writer:
        assert writer.down_since is None
        waiting = asyncio.create_task(writer.write(Ticked(n=1)))
        await until(lambda: writer.down_since is not None)
        since = writer.down_since
        log.down = False
        await waiting
        assert since is not None
        assert writer.down_since is None


async def test_a_hanging_publish_counts_as_down(monkeypatch: pytest.MonkeyPatch) -> None:
    log = ShakyLog()
    log.gate.clear()
    monkeypatch.setattr(facts, "SLOW_S", 0.0)
    async with writing(log) as writer:
        writer.say(Ticked(n=1))
        await until(lambda: writer.down_since is not None)
        log.gate.set()
    assert log.numbers() == [1]


async def test_a_full_queue_refuses_and_what_was_taken_is_stored() -> None:
    log = ShakyLog()
    log.down = True
    async with writing(log, queue_max=3) as writer:
        writer.say(Ticked(n=0))
        await until(lambda: log.appends > 0)
        for n in (1, 2, 3):
            writer.say(Ticked(n=n))
        with pytest.raises(LogError, match="full"):
            writer.say(Ticked(n=4))
        with pytest.raises(LogError, match="full"):
            await writer.write(Ticked(n=5))
        log.down = False
    assert log.numbers() == [0, 1, 2, 3]


async def test_groups_stay_below_the_largest_body_and_a_fact_that_is_larger_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = ShakyLog()
    monkeypatch.setattr(facts, "BODY_BYTES_MAX", 400)
    async with writing(log) as writer:
        for n in range(50):
            writer.say(Ticked(n=n))
        with pytest.raises(LogError, match="too large"):
            await writer.write(HolderStopped(holder=HolderId("h" * 500)))
        writer.say(Ticked(n=50))
    assert log.numbers() == list(range(51))
    assert all([len(m.body) <= 400 async for batch in log.read() for m in batch])


async def test_a_caller_that_stops_waiting_does_not_take_the_fact_back() -> None:
    log = ShakyLog()
    log.gate.clear()
    async with writing(log) as writer:
        waiting = asyncio.create_task(writer.write(Ticked(n=1)))
        await until(lambda: log.appends > 0)
        waiting.cancel()
        log.gate.set()
    assert log.numbers() == [1]


async def test_closing_while_the_log_is_down_ends_and_tells_the_waiting() -> None:
    log = ShakyLog()
    log.down = True
    writer = FactWriter(log, source="clock", owner="c-1", clock=PoolClock())
    run = asyncio.create_task(writer.run())
    in_flight = asyncio.create_task(writer.write(Ticked(n=1)))
    await until(lambda: log.appends > 0)
    queued = asyncio.create_task(writer.write(Ticked(n=2)))
    await asyncio.sleep(0)
    await writer.close(wait_s=0.01)
    with pytest.raises(LogError):
        await in_flight
    with pytest.raises(LogError):
        await queued
    with pytest.raises(LogError, match="ended"):
        writer.say(Ticked(n=3))
    await asyncio.wait([run])
