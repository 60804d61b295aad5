"""Why a decision was made: what its actor knew, what it said, and the nearest thing that would have changed it.

Everything is found by replay: the log is driven through the deciders with `advance`, and at the decisions that are
asked about the actor's state is looked at, after the fact was taken in and before the answer was. Nothing is logged
for it. A flip is a change for that one step alone: the state is as it was, but for one value.

What another version of the code decided is told as it stands; a flip is looked for only where this code, at that
point, decides the same.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

import msgspec

from events import codec
from events.base import Cause, Event, Recorded
from policies import admission_explain, admission_inputs
from policies.admission import ACTOR as ADMISSION
from policies.catalog import ACTORS
from policies.decider import Decider
from policies.inquiry import Inquiry
from policies.levers import KINDS, SETTING, Lever, of_settings, settings_read
from replay.flip import Flip, nearest, size
from replay.outcome import Subject, Word, outcome, subject_of
from replay.replayer import ActorReplay, Epoch, Source, foresee, position_of
from replay.rule_words import Rule, rule_of

T = TypeVar("T")

INQUIRIES: Mapping[str, Inquiry] = {
    ADMISSION: Inquiry(
        knew=admission_explain.knew,
        inputs=admission_inputs.inputs,
        tuned=admission_inputs.tuned,
        kept=admission_inputs.ORDER_SETTINGS,
    ),
}
"""Actor -> what else it can be asked; of others their `explain` is told, and their settings are tried."""

SAME, DIFFERS = "as recorded", "differs"
FOUND, NONE, NOT_SOUGHT = "found", "none in bounds", "not sought"


class Explained(msgspec.Struct, kw_only=True):
    """One decision. `at` is its place, `cause` the record that it answers.

    `recomputed`: `as recorded`, or `differs` (then `computed` is what this code says of the same subject). `outcome`
    is all that the step said of the subject. `flip_status`: found, none in bounds, or not sought (this code does not
    decide the same, or nobody asked for one). `flip` is the nearest; `flips` has it, and where they were asked for the
    nearest of every kind of lever.
    """

    at: str
    cause: str
    actor: str
    owner: str
    ts_ns: int
    code_version: str
    other_version: bool
    decision: dict[str, Any]
    outcome: tuple[Word, ...]
    rule: Rule
    recomputed: str
    computed: tuple[dict[str, Any], ...]
    knew: dict[str, Any]
    flip_status: str = NOT_SOUGHT
    flip: Flip | None = None
    flips: tuple[Flip, ...] = ()


class Wanted(StrEnum):
    """Which flips are looked for: none, the nearest one, or the nearest of every kind of lever."""

    NONE = "none"
    NEAREST = "nearest"
    EVERY_KIND = "every_kind"


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A flip put to the proof: the outcome as it was, with the flip, and one step before it."""

    at: str
    was: tuple[Word, ...]
    flipped: tuple[Word, ...]
    before: tuple[Word, ...]


@dataclass(slots=True, frozen=True)
class _Asked:
    """A decision that is asked about: its record, and all that its actor said because of the same cause."""

    recorded: Recorded
    fellows: tuple[Event, ...]


class _Moment:
    """An actor in the middle of a step: the fact is taken in, nothing is said yet. `epoch` is its owner's;
    `other_version`: whether that ran another version of the code."""

    def __init__(
        self, decider: Decider[Any], state: Any, event: Event, now_ns: int, *, epoch: Epoch, other_version: bool
    ) -> None:  # fmt: skip
        self.decider, self.state, self.event, self.now_ns = decider, state, event, now_ns
        self.epoch, self.other_version = epoch, other_version
        self.said = decider.decide(state, event, now_ns)

    def outcome(self, subject: Subject) -> tuple[Word, ...]:
        """What the step says of a subject."""
        return outcome(self.said, subject)

    def outcome_with(self, lever: Lever, value: Any, subject: Subject) -> tuple[Word, ...]:
        """The same with one value changed."""
        state, event = lever.put(value)
        return outcome(self.decider.decide(state, event, self.now_ns), subject)

    def levers(self, decision: Event) -> list[Lever]:
        """What could have been otherwise, settings first."""
        inquiry, name = INQUIRIES.get(self.decider.name), self.decider.name
        if inquiry is None:
            return of_settings(name, self.state, self.event)
        found = of_settings(name, self.state, self.event, tuned=inquiry.tuned)
        return found + inquiry.inputs(self.state, self.event, self.now_ns, decision)

    def levers_read(self, decision: Event) -> list[Lever]:
        """The same without the settings that this step never reads: alone, they can change nothing."""
        inquiry = INQUIRIES.get(self.decider.name)
        read = settings_read(self.state, lambda state: self.decider.decide(state, self.event, self.now_ns))
        read |= inquiry.kept if inquiry is not None else frozenset()
        return [lever for lever in self.levers(decision) if lever.kind != SETTING or lever.name in read]

    def knew(self, decision: Event, before: Sequence[Event]) -> dict[str, Any]:
        """What the decision was made from."""
        inquiry = INQUIRIES.get(self.decider.name)
        if inquiry is None:
            return self.decider.explain(self.state, self.event, self.now_ns)
        return inquiry.knew(self.state, self.event, self.now_ns, decision, before)


def explain_many(
    source: Source,
    places: Iterable[str],
    *,
    deciders: Mapping[str, Decider[Any]] = ACTORS,
    code_version: str = "",
    flips: Wanted = Wanted.NEAREST,
) -> Iterator[Explained]:
    """The decisions at these places (`seq.item`), in the order of their causes, in one replay of the log. Places that
    hold no decision of a known actor are passed over, and so are those whose cause the log does not lead to.

    `code_version` is this program's, as in `ActorReplay`.
    """

    def look(moment: _Moment, asked: _Asked) -> Explained:
        one = _explained(moment, asked)
        if flips is not Wanted.NONE and one.recomputed == SAME:
            _find_flips(one, moment, asked.recorded.event, each=flips is Wanted.EVERY_KIND)
        return one

    return _look(source, places, deciders, code_version, look)


def try_flips(
    source: Source, flips: Mapping[str, Flip], *, deciders: Mapping[str, Decider[Any]] = ACTORS, code_version: str = ""
) -> Iterator[Tried]:
    """Put flips, by the place of their decision, to the proof: each in that one step of another replay."""

    def look(moment: _Moment, asked: _Asked) -> Tried:
        decision = asked.recorded.event
        flip, subject = flips[str(asked.recorded.at)], subject_of(decision)
        lever = _lever_of(flip, moment.levers(decision))
        return Tried(
            at=str(asked.recorded.at), was=moment.outcome(subject),
            flipped=moment.outcome_with(lever, flip.to, subject),
            before=moment.outcome_with(lever, flip.before, subject),
        )  # fmt: skip

    return _look(source, flips, deciders, code_version, look)


def _find_flips(one: Explained, moment: _Moment, decision: Event, *, each: bool) -> None:
    subject, levers = subject_of(decision), moment.levers_read(decision)
    was = moment.outcome(subject)
    groups = [[lever for lever in levers if lever.kind == kind] for kind in KINDS] if each else [levers]
    found = [
        flip for group in groups
        if (flip := nearest(group, lambda lever, value: moment.outcome_with(lever, value, subject) != was)) is not None
    ]  # fmt: skip
    flips = [
        msgspec.structs.replace(flip, outcome=moment.outcome_with(_lever_of(flip, levers), flip.to, subject))
        for flip in found
    ]  # fmt: skip
    one.flip = min(flips, key=size, default=None)
    one.flip_status, one.flips = (FOUND if flips else NONE), tuple(flips)


def _lever_of(flip: Flip, levers: Iterable[Lever]) -> Lever:
    name = (flip.kind, flip.of, flip.name)
    return next(lever for lever in levers if (lever.kind, lever.of, lever.name) == name)


def _explained(moment: _Moment, asked: _Asked) -> Explained:
    recorded, decision = asked.recorded, asked.recorded.event
    subject = subject_of(decision)
    said, computed = _plain(decision), [_plain(one) for one in moment.said]
    words = outcome(asked.fellows, subject)
    same = said in computed and moment.outcome(subject) == words
    ours = [plain for plain, one in zip(computed, moment.said, strict=True) if subject_of(one) == subject]
    return Explained(
        at=str(recorded.at), cause=recorded.cause, actor=recorded.actor, owner=recorded.owner, ts_ns=recorded.ts_ns,
        code_version=moment.epoch.code_version, other_version=moment.other_version,
        decision=said, outcome=words, rule=rule_of(decision, asked.fellows),
        recomputed=SAME if same else DIFFERS, computed=() if same else tuple(ours),
        knew=moment.knew(decision, moment.said[: computed.index(said)] if same else ()),
    )  # fmt: skip


def _plain(event: Event) -> dict[str, Any]:
    """As written: a list where the type says tuple is the same word in the log."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(event))
    return plain


def _look(
    source: Source, places: Iterable[str], deciders: Mapping[str, Decider[Any]], code_version: str,
    look: Callable[[_Moment, _Asked], T],
) -> Iterator[T]:  # fmt: skip
    """What `look` finds in the moment of each decision that is asked about, in one replay."""
    asked = _asked(source, places, deciders)
    foreseen = foresee(source)
    watches = [
        _Watch(ActorReplay(deciders[actor], source, foreseen, code_version=code_version), by_cause, look)
        for actor, by_cause in asked.items()
    ]
    last = max((cause for by_cause in asked.values() for cause in by_cause), default=None)
    for message in source:
        if last is None or message.seq > last.seq:
            return
        for recorded in codec.decode(message.seq, message.subject, message.body):
            for watch in watches:
                yield from watch.take(recorded)


class _Watch(Generic[T]):
    """One actor on its way through the log, looked at in the steps that are asked about."""

    def __init__(
        self, replay: ActorReplay, asked: Mapping[Cause, list[_Asked]], look: Callable[[_Moment, _Asked], T]
    ) -> None:  # fmt: skip
        self._replay, self._asked, self._look = replay, asked, look
        self._decider = replay.decider
        self._awaited: Cause | None = None
        self._event: Event | None = None
        self._found: list[T] = []
        replay.decider = dataclasses.replace(replay.decider, evolve=self._evolve)

    def take(self, recorded: Recorded) -> list[T]:
        """Take one record in; what was found there."""
        if recorded.at not in self._asked:
            self._replay.take(recorded)
            return []
        self._awaited, self._event, self._found = recorded.at, recorded.event, []
        self._replay.take(recorded)
        self._event = None
        return self._found

    def _evolve(self, state: Any, event: Event, now_ns: int) -> None:
        self._decider.evolve(state, event, now_ns)
        if event is not self._event or self._awaited is None:
            return
        cause, self._awaited = self._awaited, None
        index = self._replay.epoch_of(cause)
        moment = _Moment(
            self._decider, state, event, now_ns,
            epoch=self._replay.epochs[index], other_version=self._replay.is_of_another_version(index),
        )  # fmt: skip
        self._found = [self._look(moment, asked) for asked in self._asked[cause]]


def _asked(
    source: Source, places: Iterable[str], deciders: Mapping[str, Decider[Any]]
) -> dict[str, dict[Cause, list[_Asked]]]:
    """What is asked about, by actor and cause."""
    wanted: dict[int, set[int]] = {}
    for place in map(Cause.parse, places):
        wanted.setdefault(place.seq, set()).add(place.item)
    found: dict[str, dict[Cause, list[_Asked]]] = {}
    for message in source:
        if message.seq not in wanted or codec.actor_of(message.subject) not in deciders:
            continue
        records = codec.decode(message.seq, message.subject, message.body)
        for recorded in records:
            if recorded.item in wanted[message.seq] and recorded.cause:
                fellows = tuple(one.event for one in records if one.cause == recorded.cause)
                by_cause = found.setdefault(recorded.actor, {})
                by_cause.setdefault(position_of(recorded.cause, recorded), []).append(_Asked(recorded, fellows))
    return found
