"""Who speaks for an actor: one instance at a time, and the log itself keeps it so.

An instance takes over by appending `ActorStarted` after the newest message of that actor. Whatever it says later is
fenced on its own last message under all of the actor's subjects, so from that moment on nothing of the instance
before gets in, of whichever kind.
"""

import asyncio
import logging
import time
from typing import Any, Final

from events import codec, subjects
from events.base import Cause, Fenced, LogDamaged, LogError, Recorded
from events.control import ActorStarted, EventQuarantined
from events.log.base import Fence, FenceBroken, Log
from replay.replayer import BEFORE_ALL
from services.runtime.history import History, answered_up_to, read_history

RETRY_FIRST_S: Final = 0.01
RETRY_MAX_S: Final = 0.5
TAKEOVERS_MAX: Final = 1_000
"""How often a busy owner may be faster than the one who takes over."""

logger = logging.getLogger(__name__)


class Ownership:
    """What one instance of an actor says, and what the instances before it said.

    `log_down_max_s` is how long an append is repeated before LogError is raised.
    """

    def __init__(self, log: Log, *, actor: str, owner: str, log_down_max_s: float) -> None:
        self.log, self.actor, self.owner = log, actor, owner
        self.history = History()
        self.started_seq = 0
        self._own = subjects.decisions_of(log.pool, actor)
        self._last_seq = 0
        self._log_down_max_s = log_down_max_s

    async def take_over(
        self, *, code_version: str, policy_digest: str, snapshot_seq: int, settings: dict[str, Any],
        tags: tuple[str, ...], answered: Cause = BEFORE_ALL,
    ) -> None:  # fmt: skip
        """From here on this instance owns the actor.

        `answered` is the last cause whose answer is known to be stored: LogDamaged, and nothing is written, when
        the log does not go that far any more. Raises Fenced when others keep being faster, and LogError.
        """
        tick = await self.log.last(subjects.fact(self.log.pool, "clock", "ticked"))
        now_ns = codec.decode(tick.seq, tick.subject, tick.body)[-1].ts_ns if tick is not None else 0
        for attempt in range(TAKEOVERS_MAX):
            newest = await self.log.last(self._own)
            self._last_seq = newest.seq if newest else 0
            watermark = await answered_up_to(self.log, self.actor, newest)
            if watermark < answered:
                raise LogDamaged(
                    f"the answer of {self.actor} to {answered} was stored and is gone", where=f"pool {self.log.pool}",
                    mend="restore the log from its archive; to start over on purpose, delete the pool's state folder",
                )  # fmt: skip
            started = ActorStarted(
                instance=self.owner, code_version=code_version, policy_digest=policy_digest,
                watermark=_text_of(watermark), snapshot_seq=snapshot_seq, settings=settings, tags=tags,
            )  # fmt: skip
            try:
                await self.say([codec.Said(event=started)], ts_ns=now_ns, name=f"started-{attempt}")
            except Fenced:
                continue  # The owner before said one thing more: its watermark has moved.
            self.started_seq = self._last_seq
            self.history = await read_history(self.log, actor=self.actor, code_version=code_version)
            return
        raise Fenced(f"{self.actor} could not be taken over", where=self.log.pool, mend="others keep starting it")

    async def say(self, said: list[codec.Said], *, ts_ns: int, name: str) -> int:
        """Append one message of this owner; its seq. `name` makes its message id.

        Repeated until the outcome is known. A broken fence is our own lost acknowledgement if the newest message
        is this very one; else Fenced is raised: somebody else has taken over.
        """
        body = codec.encode(owner=self.owner, ts_ns=ts_ns, said=said)
        subject = subjects.decision(self.log.pool, self.actor, codec.kind_of(said))
        msg_id = f"{self.actor}:{self.owner}:{name}"
        give_up_s = time.monotonic() + self._log_down_max_s
        pause_s = RETRY_FIRST_S
        while True:
            try:
                self._last_seq = await self._append(subject, body, msg_id)
            except Fenced:
                raise
            except LogError as error:
                if time.monotonic() > give_up_s:
                    raise
                logger.warning("the log takes nothing of %s: %s", self.actor, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
                continue
            return self._last_seq

    async def quarantine(self, position: Cause, error: str, *, ts_ns: int) -> None:
        """Say that the record at `position` is skipped from now on, by every replay."""
        event = EventQuarantined(position=str(position), error=error)
        await self.say([codec.Said(event=event)], ts_ns=ts_ns, name=f"quarantine-{position}")
        self.history.quarantined |= {position}

    def is_foreign(self, recorded: Recorded) -> bool:
        """Whether somebody else has spoken for this actor since this instance took over."""
        return recorded.actor == self.actor and recorded.seq > self.started_seq and recorded.owner != self.owner

    async def _append(self, subject: str, body: bytes, msg_id: str) -> int:
        try:
            return await self.log.append(subject, body, msg_id=msg_id, fence=Fence(self._own, self._last_seq))
        except FenceBroken as broken:
            newest = await self.log.last(self._own)
            if newest is not None and newest.body == body:
                return newest.seq  # It was stored, and only the acknowledgement was lost.
            where = f"{self._own} at {newest.seq if newest else 0}"
            raise Fenced(f"another instance owns {self.actor}", where=where) from broken


def _text_of(cause: Cause) -> str:
    return "" if cause == BEFORE_ALL else str(cause)
