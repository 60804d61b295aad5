"""What an actor says, by the record that it answers, while it says it: for whoever has to know what became of one.

An actor answers in log order, so a record has no answer once a later one has; where nothing is said for a while, the
actor itself tells how far it is. Where nobody runs it nothing is known beyond its last word, and whoever asks waits.
"""

import asyncio
import logging
from typing import Final

from events import codec, subjects
from events.base import Cause, LogDamaged, LogError, Recorded
from events.control import EventQuarantined
from events.log.jetstream import JetStreamLog
from replay.replayer import BEFORE_ALL, position_of
from services.runtime.actor_position import position_of as actor_position

AHEAD_MAX: Final = 4_096
"""Answered causes that are held before somebody asks for them; then reading waits."""
ASK_EVERY_S: Final = 0.25
RETRY_S: Final = 0.5

logger = logging.getLogger(__name__)


class Answers:
    """The answers of one actor. `quarantined` are the records that it skips, as far as was read."""

    def __init__(self, log: JetStreamLog, actor: str) -> None:
        self._log, self._actor = log, actor
        self._held: dict[Cause, list[Recorded]] = {}
        self._answered = BEFORE_ALL
        self._settled_seq = self._read_seq = 0
        self._moved = asyncio.Event()
        self._room = asyncio.Event()
        self.quarantined: frozenset[Cause] = frozenset()

    async def read(self) -> None:
        """Follow what the actor says. Never ends. Raises LogDamaged."""
        own = subjects.decisions_of(self._log.pool, self._actor)
        while True:
            try:
                async for batch in self._log.read(after=self._read_seq, pattern=own, follow=True):
                    for message in batch:
                        self._take(codec.decode(message.seq, message.subject, message.body))
                        self._read_seq = message.seq
                    self._tell()
                    while self._is_far_ahead():
                        self._room.clear()
                        await self._room.wait()
            except LogDamaged:
                raise
            except LogError as error:
                logger.warning("what %s says cannot be read: %s", self._actor, error)
                await asyncio.sleep(RETRY_S)

    async def of(self, seq: int) -> dict[Cause, list[Recorded]]:
        """All that the actor decided because of the events of message `seq`, by cause; waits until that is certain.
        Messages are asked for in log order."""
        while self._answered.seq <= seq and self._settled_seq < seq:
            moved = self._moved
            try:
                async with asyncio.timeout(ASK_EVERY_S):
                    await moved.wait()
            except TimeoutError:
                await self._ask()
        said: dict[Cause, list[Recorded]] = {}
        while self._held and (first := next(iter(self._held))).seq <= seq:
            said[first] = self._held.pop(first)
        self._room.set()
        return said

    async def _ask(self) -> None:
        """Let the actor tell how far it is. What it decided up to there stands in the log by then: once that is read
        too, nothing more will come of it."""
        found = await actor_position(self._log.client, self._log.pool, self._actor)
        if found is None or found.seq <= self._settled_seq:
            return
        try:
            newest = await self._log.last(subjects.decisions_of(self._log.pool, self._actor))
        except LogError:
            return
        if newest is None or newest.seq <= self._read_seq:
            self._settled_seq = found.seq

    def _take(self, records: list[Recorded]) -> None:
        for recorded in records:
            if isinstance(recorded.event, EventQuarantined):
                self.quarantined |= {position_of(recorded.event.position, recorded)}
            if not recorded.cause:
                continue
            cause = position_of(recorded.cause, recorded)
            known = self._held.get(cause)
            if cause > self._answered:
                self._answered = cause
                self._held[cause] = [recorded]
            elif known is not None and known[0].seq == recorded.seq:
                known.append(recorded)

    def _is_far_ahead(self) -> bool:
        """Whether whoever asks has enough to go on with."""
        return len(self._held) >= AHEAD_MAX and next(iter(self._held)).seq < self._answered.seq

    def _tell(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
