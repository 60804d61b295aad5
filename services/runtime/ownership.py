"""Who speaks for an actor: one instance at a time, and the log itself keeps it so.

An instance takes over by appending `ActorStarted` after the newest message of that actor. Whatever it says later is
fenced on its own last message under all of the actor's subjects, so from that moment on nothing of the instance
before gets in, of whichever kind.
"""

import asyncio
import logging
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from typing import Any, Final

from events import codec, subjects
from events.base import Cause, Event, Fenced, LogDamaged, LogError, Recorded
from events.control import ActorStarted, EventQuarantined
from events.log.base import Fence, FenceBroken, Log, Message
from replay.replayer import BEFORE_ALL, Epoch, Foreseen, foresee, position_of
from services.runtime.snapshot import Snapshot

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
        self.watermark = BEFORE_ALL
        self.started_seq = 0
        self.quarantined: frozenset[Cause] = frozenset()
        self._own = subjects.decisions_of(log.pool, actor)
        self._last_seq = 0
        self._epochs: list[Epoch] = []
        self._watermarks: list[Cause] = []
        self._other_code: list[bool] = []
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
            newest = await self._newest()
            self._last_seq = newest.seq if newest else 0
            self.watermark = await self._watermark(newest)
            if self.watermark < answered:
                raise LogDamaged(
                    f"the answer of {self.actor} to {answered} was stored and is gone", where=f"pool {self.log.pool}",
                    mend="restore the log from its archive; to start over on purpose, delete the pool's state folder",
                )  # fmt: skip
            started = ActorStarted(
                instance=self.owner, code_version=code_version, policy_digest=policy_digest,
                watermark=_text_of(self.watermark), snapshot_seq=snapshot_seq, settings=settings, tags=tags,
            )  # fmt: skip
            try:
                await self.say([codec.Said(event=started)], ts_ns=now_ns, name=f"started-{attempt}")
            except Fenced:
                continue  # The owner before said one thing more: its watermark has moved.
            self.started_seq = self._last_seq
            await self._read_notes(code_version)
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
        self.quarantined |= {position}

    def is_foreign(self, recorded: Recorded) -> bool:
        """Whether somebody else has spoken for this actor since this instance took over."""
        return recorded.actor == self.actor and recorded.seq > self.started_seq and recorded.owner != self.owner

    @property
    def any_other_code(self) -> bool:
        """Whether any owner so far ran another version of the code."""
        return any(self._other_code)

    def was_other_code(self, cause: Cause) -> bool:
        """Whether the owner who answered this cause (or would have) ran another version of the code."""
        if cause > self.watermark or not self.any_other_code:
            return False
        return self._other_code[max(0, bisect_left(self._watermarks, cause) - 1)]

    def has_other_code_answered(self, kept: Snapshot) -> bool:
        """Whether causes that a snapshot's owner took in, but had no answer to, went to an owner with other code
        later: that one may have answered them, so the snapshot is void."""
        position = Cause(kept.seq, kept.item)
        later = zip(self._epochs, self._other_code, strict=True)
        return any(other and epoch.seq > kept.owner_seq and epoch.watermark < position for epoch, other in later)

    async def _append(self, subject: str, body: bytes, msg_id: str) -> int:
        try:
            return await self.log.append(subject, body, msg_id=msg_id, fence=Fence(self._own, self._last_seq))
        except FenceBroken as broken:
            newest = await self._newest()
            if newest is not None and newest.body == body:
                return newest.seq  # It was stored, and only the acknowledgement was lost.
            where = f"{self._own} at {newest.seq if newest else 0}"
            raise Fenced(f"another instance owns {self.actor}", where=where) from broken

    async def _newest(self) -> Message | None:
        return await self.log.last(self._own)

    async def _watermark(self, newest: Message | None) -> Cause:
        """The last cause answered so far: of the newest decision, or as the last owner found it."""
        if newest is None:
            return BEFORE_ALL
        answered = _last_cause(newest)
        if answered is not None:
            return answered
        started = await self.log.last(subjects.decision(self.log.pool, self.actor, ActorStarted.event_kind()))
        assert started is not None, "what is no decision comes after an ActorStarted"
        async for batch in self.log.read(after=started.seq, pattern=self._own):
            for message in batch:
                answered = _last_cause(message) or answered
        return answered or foresee([started]).epochs[self.actor][-1].watermark

    async def _read_notes(self, code_version: str) -> None:
        notes: list[Message] = []
        for kind in (ActorStarted, EventQuarantined):
            pattern = subjects.decision(self.log.pool, self.actor, kind.event_kind())
            notes += [message async for batch in self.log.read(pattern=pattern) for message in batch]
        foreseen: Foreseen = foresee(sorted(notes))
        self._epochs = foreseen.epochs[self.actor]
        self._watermarks = [epoch.watermark for epoch in self._epochs]
        self._other_code = [epoch.code_version not in ("", code_version) for epoch in self._epochs]
        self.quarantined = foreseen.quarantined.get(self.actor, frozenset())


class Recall:
    """The decisions that stand in the log, by cause: for causes whose owner ran other code. Asked in log order."""

    def __init__(self, log: Log, *, actor: str, after: int) -> None:
        self._answers = _answers(log, actor, after)
        self._ahead: list[Recorded] = []

    async def of(self, seq: int) -> dict[Cause, list[Event]]:
        """What was decided because of the events of message `seq`."""
        said: dict[Cause, list[Event]] = {}
        while True:
            if not self._ahead:
                self._ahead = await anext(self._answers, [])
            if not self._ahead:
                return said
            cause = position_of(self._ahead[0].cause, self._ahead[0])
            if cause.seq > seq:
                return said
            if cause.seq == seq:
                said[cause] = [recorded.event for recorded in self._ahead]
            self._ahead = []


async def _answers(log: Log, actor: str, after: int) -> AsyncIterator[list[Recorded]]:
    """An actor's decisions, one list per cause, each cause once and in order."""
    last = BEFORE_ALL
    async for batch in log.read(after=after, pattern=subjects.decisions_of(log.pool, actor)):
        for message in batch:
            by_cause: dict[str, list[Recorded]] = {}
            for recorded in codec.decode(message.seq, message.subject, message.body):
                if recorded.cause:
                    by_cause.setdefault(recorded.cause, []).append(recorded)
            for group in by_cause.values():
                cause = position_of(group[0].cause, group[0])
                if cause > last:
                    last = cause
                    yield group


def _last_cause(message: Message) -> Cause | None:
    """The last cause that a message answers; None for one that answers nothing."""
    recorded = codec.decode(message.seq, message.subject, message.body)
    return next((position_of(each.cause, each) for each in reversed(recorded) if each.cause), None)


def _text_of(cause: Cause) -> str:
    return "" if cause == BEFORE_ALL else str(cause)
