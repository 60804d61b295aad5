"""Reads what admission decides, and what the log says of engines and time, from now on."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from events import codec, subjects
from events.base import LogDamaged, LogError, Recorded
from events.log.base import Log
from services.runtime.pool_clock import PoolClock

PAUSE_FIRST_S: Final = 0.02
PAUSE_MAX_S: Final = 1.0

ORDERING_ACTORS: Final = ("migration", "prefetch")
"""Who orders slices to be moved."""

logger = logging.getLogger(__name__)


class LogReader:
    """Follows one pattern of a pool's log and hands every record to `take`. A log that cannot be read is tried again
    from where it was, for ever; a damaged one ends `run` with LogDamaged."""

    def __init__(self, log: Log, pattern: str, take: Callable[[Recorded], None]) -> None:
        self._log, self._pattern, self._take = log, pattern, take
        self._after = 0

    async def start(self) -> None:
        """Note where the log ends now: `run` goes on from there. Raises LogError."""
        last = await self._log.last()
        self._after = last.seq if last else 0

    async def run(self) -> None:
        """See the class. Never ends by itself."""
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                async for batch in self._log.read(after=self._after, pattern=self._pattern, follow=True):
                    pause_s = PAUSE_FIRST_S
                    for message in batch:
                        for recorded in codec.decode(message.seq, message.subject, message.body):
                            self._take(recorded)
                        self._after = message.seq
            except LogDamaged:
                raise
            except LogError as error:
                logger.warning("%s cannot be read: %s", self._pattern, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)


async def clock_of(log: Log, *, speed: int) -> PoolClock:
    """A clock that begins where the pool's time is: at its newest tick, or by the wall where none was ever said.
    Raises LogError."""
    last = await log.last(facts_of(log, "clock"))
    ticks = codec.decode(last.seq, last.subject, last.body) if last else []
    return PoolClock(speed=speed, start_ns=max((tick.ts_ns for tick in ticks), default=0))


def admission_of(log: Log) -> str:
    """What admission says."""
    return subjects.decisions_of(log.pool, "admission")


def eviction_of(log: Log) -> str:
    """What eviction says."""
    return subjects.decisions_of(log.pool, "eviction")


def facts_of(log: Log, source: str) -> str:
    """What a source says."""
    return subjects.fact(log.pool, source, ">")
