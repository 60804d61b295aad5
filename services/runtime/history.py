"""What the owners of an actor have said so far, as far as it bears on how records before it are read."""

from bisect import bisect_left
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from events import codec, subjects
from events.base import Cause, Event, Recorded
from events.control import ActorStarted, EventQuarantined
from events.log.base import Log, Message
from replay.replayer import BEFORE_ALL, Epoch, foresee, position_of
from services.runtime.snapshot import Snapshot


@dataclass(slots=True)
class History:
    """An actor's epochs and quarantined records, up to message `read_to`. `watermark` is the last cause that was
    answered; `code_version` the reader's own."""

    code_version: str = ""
    watermark: Cause = BEFORE_ALL
    read_to: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    quarantined: frozenset[Cause] = frozenset()

    @property
    def any_other_code(self) -> bool:
        """Whether any owner ran another version of the code."""
        return any(self._is_other(epoch.code_version) for epoch in self.epochs)

    @property
    def now_other_code(self) -> bool:
        """Whether the newest owner runs another version of the code."""
        return bool(self.epochs) and self._is_other(self.epochs[-1].code_version)

    def was_other_code(self, cause: Cause) -> bool:
        """Whether the owner who answered this cause (or found nothing to answer) ran another version of the code."""
        if len(self.epochs) < 2:
            return self.now_other_code
        index = bisect_left(self.epochs, cause, key=_watermark_of) - 1
        return self._is_other(self.epochs[max(0, index)].code_version)

    def is_of_other_code(self, recorded: Recorded) -> bool:
        """Whether a record is the start of an owner with another version of the code."""
        return isinstance(recorded.event, ActorStarted) and self._is_other(recorded.event.code_version)

    def has_other_code_answered(self, kept: Snapshot) -> bool:
        """Whether causes that a snapshot's owner took in, but had no answer to, went to an owner with other code
        later: that one may have answered them, so the snapshot is void."""
        position = Cause(kept.seq, kept.item)
        return any(
            self._is_other(epoch.code_version) and epoch.seq > kept.owner_seq and epoch.watermark < position
            for epoch in self.epochs
        )

    def _is_other(self, code_version: str) -> bool:
        return code_version not in ("", self.code_version)


def _watermark_of(epoch: Epoch) -> Cause:
    return epoch.watermark


async def read_history(log: Log, *, actor: str, code_version: str) -> History:
    """An actor's history up to the newest thing that it said. Raises LogError, LogDamaged."""
    newest = await log.last(subjects.decisions_of(log.pool, actor))
    notes: list[Message] = []
    for kind in (ActorStarted, EventQuarantined):
        pattern = subjects.decision(log.pool, actor, kind.event_kind())
        notes += [message async for batch in log.read(pattern=pattern) for message in batch]
    foreseen = foresee(sorted(notes))
    return History(
        code_version=code_version, watermark=await answered_up_to(log, actor, newest),
        read_to=newest.seq if newest is not None else 0,
        epochs=foreseen.epochs.get(actor, []), quarantined=foreseen.quarantined.get(actor, frozenset()),
    )  # fmt: skip


async def answered_up_to(log: Log, actor: str, newest: Message | None) -> Cause:
    """The last cause that an actor whose newest message is `newest` has answered: of its newest decision, or as its
    newest owner found it."""
    if newest is None:
        return BEFORE_ALL
    answered = _last_cause(newest)
    if answered is not None:
        return answered
    started = await log.last(subjects.decision(log.pool, actor, ActorStarted.event_kind()))
    assert started is not None, "what is no decision comes after an ActorStarted"
    async for batch in log.read(after=started.seq, pattern=subjects.decisions_of(log.pool, actor)):
        for message in batch:
            answered = _last_cause(message) or answered
    return answered or foresee([started]).epochs[actor][-1].watermark


def _last_cause(message: Message) -> Cause | None:
    """The last cause that a message answers; None for one that answers nothing."""
    recorded = codec.decode(message.seq, message.subject, message.body)
    return next((position_of(each.cause, each) for each in reversed(recorded) if each.cause), None)


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
