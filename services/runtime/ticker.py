"""Says what time it is in the pool: every pool second, and at the times that actors ask for.

Time goes on by this machine's monotonic clock, at most TICK_MAX_NS from one tick to the next: what passed while
nothing could be said (log away, process stopped or suspended) is dropped, so that nobody is declared silent for a
time in which nobody could be heard. The wall's clock is read once, for the very first tick of a pool.
"""

import asyncio
import heapq
import logging
import time
from typing import Final

from events import codec, subjects
from events.base import NS_PER_S, TICK_MAX_NS, LogDamaged, LogError
from events.control import Ticked
from events.decisions import WakeAsked
from events.log.base import Log, Message
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock
from services.runtime.side_by_side import run_until

TICK_GAP_WALL_NS: Final = 1_000_000
"""However often actors ask, ticks are at least so far apart."""
WAKES_MAX: Final = 65_536
RETRY_S: Final = 0.5
_ASKED: Final = WakeAsked.event_kind().encode()

logger = logging.getLogger(__name__)


class _TickTime(PoolClock):
    """The time of the tick that is being written: what stands in its envelope."""

    tick_ns = 0

    def now_ns(self) -> int:
        return self.tick_ns


class Ticker:
    """One pool's clock. `owner` is unique among starts; `speed` is how much faster than the wall time goes."""

    def __init__(self, log: Log, *, owner: str, speed: int) -> None:
        self._log, self._speed = log, speed
        self._time = _TickTime(speed=speed)
        self._writer = FactWriter(log, source="clock", owner=owner, clock=self._time)
        self._last_ns = 0
        self._mono_ns = 0
        self._n = 0
        self._wakes: list[int] = []
        self._asked = asyncio.Event()
        self._after = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until `stop`. Raises LogError when the log is not there at the start, LogDamaged."""
        await self._resume()
        await run_until(stop, self._writer.run(), self._listen(), self._tick())

    async def _resume(self) -> None:
        """Go on from the last tick; an actor may have asked for a wake since."""
        newest = await self._log.last(subjects.fact(self._log.pool, "clock", Ticked.event_kind()))
        wall_ns, self._mono_ns = time.time_ns(), time.monotonic_ns()
        if newest is None:
            self._last_ns = wall_ns
            return
        last = codec.decode(newest.seq, newest.subject, newest.body)[-1]
        self._n = last.event.n if isinstance(last.event, Ticked) else 0
        self._after = newest.seq
        self._last_ns = last.ts_ns
        # The wall may be far ahead (an outage) or behind (a pool that runs faster): neither is a reason to jump.
        self._mono_ns -= min(max(0, wall_ns - last.ts_ns), TICK_MAX_NS) // self._speed

    def _now_ns(self) -> int:
        passed_ns = (time.monotonic_ns() - self._mono_ns) * self._speed
        return self._last_ns + min(passed_ns, TICK_MAX_NS)

    async def _tick(self) -> None:
        due_ns = self._last_ns
        while True:
            await self._until(due_ns)
            self._last_ns, self._mono_ns = self._now_ns(), time.monotonic_ns()
            self._n += 1
            self._time.tick_ns = self._last_ns
            await self._writer.write(Ticked(n=self._n))
            while self._wakes and self._wakes[0] <= self._last_ns:
                heapq.heappop(self._wakes)
            due_ns = (self._last_ns // NS_PER_S + 1) * NS_PER_S

    async def _until(self, due_ns: int) -> None:
        """Until the next full second, or a time that is asked for, whichever comes first."""
        not_before_ns = self._last_ns + TICK_GAP_WALL_NS * self._speed
        while True:
            self._asked.clear()
            at_ns = max(min(due_ns, self._wakes[0]) if self._wakes else due_ns, not_before_ns)
            left_ns = at_ns - self._now_ns()
            if left_ns <= 0:
                return
            try:
                async with asyncio.timeout(left_ns / self._speed / NS_PER_S):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def _listen(self) -> None:
        """Hear what actors ask for. A log that is away is tried again for ever: seconds go on without it."""
        pattern = subjects.decision(self._log.pool, "*", ">")
        while True:
            try:
                async for batch in self._log.read(after=self._after, pattern=pattern, follow=True):
                    for message in batch:
                        self._hear(message)
                        self._after = message.seq
            except LogDamaged:
                raise
            except LogError as error:
                logger.warning("the clock cannot read the log: %s", error)
                await asyncio.sleep(RETRY_S)

    def _hear(self, message: Message) -> None:
        if _ASKED not in message.body:
            return
        for recorded in codec.decode(message.seq, message.subject, message.body):
            event = recorded.event
            if isinstance(event, WakeAsked) and event.at_ns > self._last_ns and len(self._wakes) < WAKES_MAX:
                heapq.heappush(self._wakes, event.at_ns)
                self._asked.set()
