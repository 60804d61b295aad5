"""The pool's clock: seconds, wakes, limits, restarts. Time runs 1,000 times faster than the wall's here."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable

from events import codec, subjects
from events.base import NS_PER_S, TICK_MAX_NS, LogError, Recorded
from events.control import Ticked
from events.decisions import WakeAsked
from events.log.base import Fence
from events.log.memory import MemoryLog
from services.runtime.ticker import Ticker
from tests.services.runtime import toy

SPEED = 1_000


class DownLog(MemoryLog):
    """Takes nothing while `down`."""

    down = False

    async def append(
        self, subject: str, body: bytes, *, msg_id: str = "", fence: Fence | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:  # fmt: skip
        if self.down:
            raise LogError("down", where="test")
        return await super().append(subject, body, msg_id=msg_id, fence=fence, headers=headers)


def ticks(log: MemoryLog) -> list[Recorded]:
    return [record for record in toy.records(log) if isinstance(record.event, Ticked)]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def ticking(log: MemoryLog, *, speed: int = SPEED) -> AsyncIterator[None]:
    stop = asyncio.Event()
    run = asyncio.create_task(Ticker(log, owner=f"c{len(toy.stored(log))}", speed=speed).run(stop))
    yield
    stop.set()
    await asyncio.wait_for(run, 5)


async def ask(log: MemoryLog, at_ns: int) -> None:
    """As an actor asks: among other decisions, in one message."""
    said = [codec.Said(cause="1.0", event=toy.admitted("r", 1)), codec.Said(cause="1.0", event=WakeAsked(at_ns=at_ns))]
    await log.append(subjects.decision(toy.POOL, "admission", "several"), codec.encode(owner="a", ts_ns=0, said=said))


async def test_it_ticks_every_pool_second_and_never_back() -> None:
    log = MemoryLog(toy.POOL)
    async with ticking(log):
        await until(lambda: len(ticks(log)) >= 12)
    times = [tick.ts_ns for tick in ticks(log)]
    assert all(0 < later - earlier <= TICK_MAX_NS for earlier, later in itertools.pairwise(times))
    assert [tick.event.n for tick in ticks(log) if isinstance(tick.event, Ticked)] == list(range(1, len(times) + 1))
    assert toy.stored(log)[0].subject == "tg.v1.p.fact.clock.ticked"


async def test_it_ticks_at_the_time_that_an_actor_asks_for() -> None:
    log = MemoryLog(toy.POOL)
    async with ticking(log, speed=1):
        await until(lambda: len(ticks(log)) == 1)
        now_ns = ticks(log)[0].ts_ns
        wake_ns = now_ns + (NS_PER_S - now_ns % NS_PER_S) // 10
        await ask(log, wake_ns)
        await until(lambda: len(ticks(log)) == 2)
    assert wake_ns <= ticks(log)[1].ts_ns < now_ns // NS_PER_S * NS_PER_S + NS_PER_S, "not only at the next second"


async def test_a_wake_that_was_asked_for_while_no_clock_ran_is_kept() -> None:
    log = MemoryLog(toy.POOL)
    async with ticking(log, speed=1):
        await until(lambda: len(ticks(log)) == 1)
    now_ns = ticks(log)[0].ts_ns
    wake_ns = now_ns + 3 * NS_PER_S + 500_000_000
    await ask(log, wake_ns)
    async with ticking(log, speed=20):
        await until(lambda: ticks(log)[-1].ts_ns > wake_ns)
    assert any(wake_ns <= tick.ts_ns < wake_ns + NS_PER_S // 2 for tick in ticks(log))


async def test_a_restart_goes_on_from_the_last_tick_whatever_the_wall_says() -> None:
    log = MemoryLog(toy.POOL)
    for start_ns in (5 * NS_PER_S, 10**19):
        await toy.say(log, Ticked(n=7), ts_ns=start_ns, source="clock")
        size = len(ticks(log))
        async with ticking(log):
            await until(lambda size=size: len(ticks(log)) >= size + 3)  # type: ignore[misc]
        assert start_ns < ticks(log)[size].ts_ns <= start_ns + TICK_MAX_NS
        assert ticks(log)[size].event == Ticked(n=8)


async def test_time_in_which_the_log_took_nothing_is_dropped() -> None:
    log = DownLog(toy.POOL)
    async with ticking(log):
        await until(lambda: len(ticks(log)) >= 2)
        log.down = True
        before = len(ticks(log))
        await asyncio.sleep(0.05)  # 50 pool seconds.
        log.down = False
        await until(lambda: len(ticks(log)) >= before + 4)
    times = [tick.ts_ns for tick in ticks(log)]
    assert all(later - earlier <= TICK_MAX_NS for earlier, later in itertools.pairwise(times))
