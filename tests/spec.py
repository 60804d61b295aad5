"""Given / when / then for deciders, through the codec and through a restored state.

    given(ADMISSION, engine("e1"), arrived("r1")).when(finished("r1")).then(said(RequestAdmitted, request_id="r2"))

Every event goes through the codec before the decider sees it, and so does every decision. What happens at `when` is
run twice: on the state as it is, and on the state as a snapshot would bring it back; both must say the same and end
in the same state. `explain` is asked as well, and must change nothing.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from events import codec
from events.base import NS_PER_S, Cause, Event, Recorded
from policies.decider import Decider, Progress, advance, begin

START_NS = 1_000 * NS_PER_S
SUBJECT = "tg.v1.spec.fact.spec.several"


@dataclass(frozen=True)
class At:
    """An event at a time after START_NS."""

    ns: int
    event: Event


def at(ns: int, event: Event) -> At:
    """The event, that many ns after the start."""
    return At(ns, event)


@dataclass(frozen=True)
class Said:
    """A decision of which some fields matter."""

    cls: type[Event]
    fields: dict[str, Any]

    def matches(self, event: Event) -> bool:
        return type(event) is self.cls and all(getattr(event, name) == value for name, value in self.fields.items())


def said(cls: type[Event], **fields: Any) -> Said:
    """A decision of this kind with these fields, whatever the others are."""
    return Said(cls, fields)


@dataclass
class Spec:
    """A decider, how far it is, and what the last event made it say."""

    decider: Decider[Any]
    progress: Progress[Any]
    ns: int
    decisions: list[Event] = field(default_factory=list)

    @property
    def state(self) -> Any:
        return self.progress.state

    def after(self, *events: Event | At) -> "Spec":
        """Take these in."""
        for event in events:
            if isinstance(event, At):
                self.ns, event = max(self.ns, START_NS + event.ns), event.event
            recorded = stored(self.progress.seq + 1, event, self.ns)
            self.decisions = advance(self.decider, self.progress, recorded)
            for decision in self.decisions:
                assert stored(1, decision, self.ns).event == decision, "a decision survives the codec"
        return self

    def when(self, event: Event | At) -> "Spec":
        """Take this in, here and on a restored state: no difference is allowed."""
        twin = Spec(self.decider, restored(self.decider, self.progress), self.ns)
        twin.after(event)
        self.after(event)
        assert twin.decisions == self.decisions, "a restored state decides the same"
        assert snapshot(twin.progress) == snapshot(self.progress), "and is the same afterwards"
        return self

    def then(self, *expected: Event | Said) -> "Spec":
        """These decisions, in this order, and no others."""
        matched = len(expected) == len(self.decisions) and all(
            want.matches(got) if isinstance(want, Said) else want == got
            for want, got in zip(expected, self.decisions, strict=True)
        )
        assert matched, f"\nexpected {list(expected)}\n     got {self.decisions}"
        return self

    def then_nothing(self) -> "Spec":
        """No decision."""
        return self.then()

    def explained(self, event: Event) -> dict[str, Any]:
        """What `explain` says of an event that is not in the log yet; nothing moves."""
        trial = restored(self.decider, self.progress)
        self.decider.evolve(trial.state, event, self.ns)
        before = snapshot(trial)
        values = self.decider.explain(trial.state, event, self.ns)
        assert snapshot(trial) == before, "explain changes nothing"
        assert msgspec.json.decode(msgspec.json.encode(values)) == values, "and answers in plain values"
        return values


def given(decider: Decider[Any], *events: Event | At) -> Spec:
    """A decider that has taken these in. Time begins a second before START_NS, for what has to be there by then."""
    return Spec(decider, begin(decider), START_NS - NS_PER_S).after(*events)


def stored(seq: int, event: Event, ts_ns: int, *, cause: str = "") -> Recorded:
    """The event as the log gives it back."""
    body = codec.encode(owner="spec", ts_ns=ts_ns, said=[codec.Said(cause=cause, event=event)])
    (recorded,) = codec.decode(seq, SUBJECT, body)
    assert recorded.at == Cause(seq, 0)
    return recorded


def snapshot(progress: Progress[Any]) -> bytes:
    """The state in canonical bytes."""
    return msgspec.json.encode(progress.state)


def restored(decider: Decider[Any], progress: Progress[Any]) -> Progress[Any]:
    """A copy as it comes back from a snapshot."""
    state = msgspec.json.decode(snapshot(progress), type=decider.state)
    return Progress(
        state=state, seq=progress.seq, item=progress.item, now_ns=progress.now_ns, tick_ns=progress.tick_ns,
        heard=dict(progress.heard), takes=progress.takes, skipped=progress.skipped,
    )  # fmt: skip
