"""What a decision comes to: a verb, and the engine where there is one.

The outcome of a step for a request (or whatever else a decision is about) is all that the step says of it: `admit e1`,
`defer`, `reject`, `preempt e2`, or nothing. Amounts, reasons and times are not part of it: the same verb on the same
engine is the same outcome. Only a wake has a time: it is nothing else.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from events import decisions
from events.base import NS_PER_S, Event

VERBS: dict[type[Event], str] = {
    decisions.RequestAdmitted: "admit",
    decisions.RequestDeferred: "defer",
    decisions.RequestRejected: "reject",
    decisions.RequestPreempted: "preempt",
    decisions.HolderLost: "end",
    decisions.WakeAsked: "wake",
    decisions.SharesSet: "set_shares",
    decisions.TenantQuotaSet: "set_quota",
    decisions.EngineDirected: "direct",
    decisions.MiscoverageNoticed: "notice",
    decisions.TransferOrdered: "move",
    decisions.TransferCancelled: "cancel",
    decisions.LinkSuspended: "suspend",
}
SUBJECTS = ("request_id", "order", "tenant", "holder", "predictor", "engine_id")
"""The fields that name what a decision is about, the first that it has."""
NOTHING = "nothing"


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """One verb with its engine ("" = none), of a wake with its time. `nothing`: it waits on, or is left as it is."""

    verb: str
    engine_id: str = ""
    at_ns: int = 0

    def __str__(self) -> str:
        at = f"at {self.at_ns / NS_PER_S:.3f} s" if self.at_ns else ""
        return " ".join(part for part in (self.verb, self.engine_id, at) if part)


class Subject(NamedTuple):
    """What decisions are about. Those about no request are told apart by their kind, too."""

    field: str
    name: str
    kind: str


def subject_of(decision: Event) -> Subject:
    """What a decision is about."""
    for field in SUBJECTS:
        name = getattr(decision, field, None)
        if name is not None:
            return Subject(field, str(name), "" if field == "request_id" else decision.event_kind())
    return Subject("", "", decision.event_kind())


def word_of(decision: Event) -> Word:
    """A decision as verb and engine."""
    engine_id: Any = getattr(decision, "engine_id", "")
    at_ns = decision.at_ns if isinstance(decision, decisions.WakeAsked) else 0
    return Word(verb=_verb_of(decision), engine_id=str(engine_id), at_ns=at_ns)


def _verb_of(decision: Event) -> str:
    match decision:
        case decisions.RequestAdmitted(resumed=True):
            return "resume"
        case decisions.SharesSet(reason=decisions.ShareReason.LIFTED):
            return "lift_shares"
        case decisions.EngineDirected(eviction=""):
            return "release"
        case decisions.TransferOrdered():
            return decision.move.value
        case decisions.LinkSuspended(until_ns=0):
            return "resume_link"
        case _:
            return VERBS.get(type(decision), decision.event_kind())


def outcome(said: Iterable[Event], subject: Subject) -> tuple[Word, ...]:
    """All that a step says of a subject."""
    return tuple(word_of(one) for one in said if subject_of(one) == subject) or (Word(verb=NOTHING),)


def text(words: Iterable[Word]) -> str:
    """An outcome as people read it."""
    return ", ".join(str(word) for word in words)
