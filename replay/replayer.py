"""Drives deciders over a recorded log with `advance`, exactly as their owners did live.

Two readings of one source: the first (`foresee`) learns what stands later in the log but holds earlier (who
owned which causes, which records are quarantined), the second (`replay`) decides. Memory is bounded by what the
deciders keep: the log itself is never held.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from events import codec
from events.base import Cause, Event, LogDamaged, Recorded
from events.control import ActorStarted, EventQuarantined
from events.log.base import Message
from policies.decider import Decider, Progress, advance, begin

Source = Iterable[Message]
"""A log that can be read several times, from its first message on: a list, or a journal that is opened anew."""

BEFORE_ALL = Cause(0, -1)
"""The watermark of an owner before whom nobody answered anything."""


class Epoch(NamedTuple):
    """One owner's time. Causes after `watermark`, up to the next epoch's watermark, are this owner's to answer.

    `seq` is where it said that it starts; 0 with an empty `owner` stands for a log whose writer never said.
    """

    actor: str
    owner: str
    code_version: str
    policy_digest: str
    watermark: Cause
    seq: int


UNSAID = Epoch(actor="", owner="", code_version="", policy_digest="", watermark=BEFORE_ALL, seq=0)


@dataclass(slots=True)
class Foreseen:
    """What the first reading found, by actor: epochs in log order, and the records that replay skips."""

    epochs: dict[str, list[Epoch]] = field(default_factory=dict)
    quarantined: dict[str, frozenset[Cause]] = field(default_factory=dict)


_NOTES = tuple(f'"{kind.event_kind()}.v'.encode() for kind in (ActorStarted, EventQuarantined))
"""What the body of a message holds that is worth decoding in the first reading, whatever the version."""


def foresee(source: Source) -> Foreseen:
    """Read a log once for its epochs and quarantines. Raises LogDamaged where one of them cannot be read."""
    epochs: dict[str, list[Epoch]] = defaultdict(list)
    quarantined: dict[str, set[Cause]] = defaultdict(set)
    for message in source:
        if ".decision." not in message.subject or not any(note in message.body for note in _NOTES):
            continue
        for recorded in codec.decode(message.seq, message.subject, message.body):
            match recorded.event:
                case ActorStarted() as started:
                    epochs[recorded.actor].append(_epoch(recorded, started))
                case EventQuarantined(position=position):
                    quarantined[recorded.actor].add(position_of(position, recorded))
                case _:
                    pass
    return Foreseen(dict(epochs), {actor: frozenset(found) for actor, found in quarantined.items()})


def position_of(text: str, recorded: Recorded) -> Cause:
    """The place in the log that a record names; LogDamaged (naming the record) when it is none."""
    try:
        return Cause.parse(text)
    except ValueError as error:
        raise LogDamaged(str(error), where=f"record {recorded.at}") from error


class ActorReplay:
    """One decider on its way through a log: its progress, and who decided which cause.

    `code_version` is this program's: causes of an epoch with another one are not decided again but taken in as
    they stand in the log. "" holds every epoch against this program.
    """

    def __init__(self, decider: Decider[Any], source: Source, foreseen: Foreseen, *, code_version: str = "") -> None:
        self.decider = decider
        self.progress: Progress[Any] = begin(decider)
        self.epochs = foreseen.epochs.get(decider.name) or [UNSAID]
        self._quarantined = foreseen.quarantined.get(decider.name, frozenset())
        self._watermarks = [epoch.watermark for epoch in self.epochs]
        self._others = [bool(code_version) and e.code_version not in ("", code_version) for e in self.epochs]
        self._recorded = Recall(source, decider.name) if any(self._others) else None

    def epoch_of(self, cause: Cause) -> int:
        """Index of the epoch whose owner answers this cause."""
        return max(0, bisect_left(self._watermarks, cause) - 1) if len(self._watermarks) > 1 else 0

    def is_of_another_version(self, index: int) -> bool:
        """Whether the decisions of an epoch were made by other code than this."""
        return self._others[index]

    def take(self, recorded: Recorded) -> list[Event]:
        """Take one record in; the decisions for it, computed here or (another version's) as recorded."""
        said = None
        if self._recorded is not None and self._others[self.epoch_of(recorded.at)]:
            said = [one.event for one in self._recorded.at(recorded.at)]
        return advance(self.decider, self.progress, recorded, quarantined=self._quarantined, said=said)


class Step(NamedTuple):
    """One record, and what an actor decided because of it."""

    recorded: Recorded
    actor: str
    decisions: list[Event]


def replay(source: Source, deciders: Mapping[str, Decider[Any]], *, code_version: str = "") -> Iterator[Step]:
    """Every decision that follows from a log, in its order. Recorded decisions are not looked at, but for those of
    another code version (see ActorReplay). Raises what the source raises, and whatever a policy raises."""
    foreseen = foresee(source)
    actors = [ActorReplay(decider, source, foreseen, code_version=code_version) for decider in deciders.values()]
    for message in source:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            for actor in actors:
                if decisions := actor.take(recorded):
                    yield Step(recorded, actor.decider.name, decisions)


class Recall:
    """What an actor said in the log, by cause: a second reading that runs ahead of the first, and holds one cause."""

    def __init__(self, source: Source, actor: str) -> None:
        self._answers = _answers(source, actor)
        self._next: tuple[Cause, list[Recorded]] | None = next(self._answers, None)

    @property
    def ended(self) -> bool:
        """Whether nothing was said because of any cause behind the one that was asked for last."""
        return self._next is None

    def at(self, cause: Cause) -> list[Recorded]:
        """The decisions recorded for a cause, in their places. Causes are asked for in log order."""
        while self._next is not None and self._next[0] < cause:
            self._next = next(self._answers, None)
        return self._next[1] if self._next is not None and self._next[0] == cause else []


def _answers(source: Source, actor: str) -> Iterator[tuple[Cause, list[Recorded]]]:
    """An actor's recorded decisions by cause, each cause once and in order; repeats are passed over."""
    last = BEFORE_ALL
    for message in source:
        if codec.actor_of(message.subject) != actor:
            continue
        said = [r for r in codec.decode(message.seq, message.subject, message.body) if r.cause]
        for text, group in groupby(said, key=lambda recorded: recorded.cause):
            answers = list(group)
            cause = position_of(text, answers[0])
            if cause > last:
                last = cause
                yield cause, answers


def _epoch(recorded: Recorded, started: ActorStarted) -> Epoch:
    return Epoch(
        actor=recorded.actor, owner=started.instance,
        code_version=started.code_version, policy_digest=started.policy_digest,
        watermark=position_of(started.watermark, recorded) if started.watermark else BEFORE_ALL,
        seq=recorded.seq,
    )  # fmt: skip
