"""The rule that a decision came from, in plain words.

A code names the rule and stays the same for ever; the words may get better. The code is the kind of the decision, and
its reason where it has one: `request_rejected:rejected_too_long`.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from events.base import Event
from events.decisions import (
    CancelReason,
    DeferReason,
    EngineDirected,
    HolderLost,
    LinkSuspended,
    MiscoverageNoticed,
    MoveReason,
    PreemptReason,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    ShareReason,
    SharesSet,
    TenantQuotaSet,
    TransferCancelled,
    TransferOrdered,
    WakeAsked,
)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Which rule fired, and what it says."""

    code: str
    text: str


_REJECT: dict[RejectReason, str] = {
    RejectReason.NO_ENGINE: "No engine that is ready serves this model.",
    RejectReason.TOO_LONG: "It fits the context, or the KV, of no engine that serves its model.",
    RejectReason.QUEUE_FULL: "It would have to wait, and as many wait already as may (queue_max).",
    RejectReason.SLO_INFEASIBLE: (
        "It would miss its SLO on every engine, behind the work that goes before it: work that cannot meet its "
        "deadline is not started."
    ),
    RejectReason.KV_BUDGET: "Its KV cannot be found within its slack.",
    RejectReason.DEADLINE_PASSED: (
        "It waited until the latest start that could still meet its deadline, and past it; or to be served late, for "
        "as long as it may (late_max_ns)."
    ),
    RejectReason.TENANT_QUOTA: "It wants more bytes of KV than its tenant may hold (with deferral off: than are left).",
    RejectReason.EVICTED_DEADLINE_PASSED: (
        "It was preempted, and its latest start passed before there was room for it again."
    ),
}  # fmt: skip
_IN_TIME = "It can wait and be in time. Nobody takes it now; on the first engine where it would be in time, "
_DEFER: dict[DeferReason, str] = {
    DeferReason.KV_BUDGET: _IN_TIME + "the predicted peak of KV blocks would be above the budget with it.",
    DeferReason.SEQS_MAX: _IN_TIME + "as many sequences run as can.",
    DeferReason.PREFILL_BACKLOG: _IN_TIME + "the prefill backlog is long: it loses nothing here (backlog_max_ns).",
    DeferReason.TPOT_GUARD: _IN_TIME + "it would break the pace of what runs there, or its own.",
    DeferReason.SHARE: _IN_TIME + "the share of KV memory that its kind of work has is used up.",
    DeferReason.BEHIND_OTHERS: "It can wait and be in time, and others come first in the order of the strategy.",
    DeferReason.TENANT_QUOTA: "With it its tenant would hold more bytes of KV than it may: others of it end first.",
    DeferReason.SESSION_SLOT: "As many sessions are active as the KV can hold: its session begins when one pauses.",
    DeferReason.SET_ASIDE: (
        "Not all that waits can be in time, so the longest prefills are set aside; it goes when there is room for it."
    ),
    DeferReason.KEPT_FOR_OTHERS: (
        _IN_TIME + "it would take the room that is kept for prompts of a length that is served less (fairness_ppm)."
    ),
    DeferReason.LATE: (
        "It cannot be in time any more, and hardly anybody is refused now: it goes when nobody waits who can be in "
        "time (late_max_ns)."
    ),
}  # fmt: skip
_PREEMPT: dict[PreemptReason, str] = {
    PreemptReason.MORE_URGENT: "A strictly more urgent request needs the room, and this one is the one to give way.",
}
_SHARES: dict[ShareReason, str] = {
    ShareReason.ARMED: "Every engine was measured since the start: from now on its KV memory is divided.",
    ShareReason.LOAD_MOVED: "The division of KV memory between LLM and embedding work follows the urgency of both.",
    ShareReason.BOUNDS_ASKED: "An operator's bounds hold at once: a share outside of them goes to the nearer one.",
    ShareReason.LIFTED: "It is not divided any more (quota is off, or it serves one kind only): no cap holds there.",
}
_MOVE: dict[MoveReason, str] = {
    MoveReason.PRESSURE: (
        "Its tier is above high_ppm, and these are worth least there of what was used longest ago: what is in SSD "
        "too is dropped, the rest goes down to SSD."
    ),
    MoveReason.WORTHLESS: "Its tier is above high_ppm, and these hardly ever come back.",
    MoveReason.HOT: "They are used most of late, in SSD alone, and quicker fetched than computed; DRAM has room.",
    MoveReason.SPREAD: "They are used most of late, and quicker sent there by another engine than computed.",
    MoveReason.WAITING_REQUEST: (
        "A request that has no first token yet begins with them; there they are in SSD alone, and quicker fetched "
        "than computed."
    ),
    MoveReason.NEXT_TURN: (
        "The next turn of a session is near, as its pauses go, and begins with them; they are in SSD alone, and "
        "quicker fetched than computed."
    ),
    MoveReason.HOT_PREFIX: "Many requests of late begin with them; in SSD alone, quicker fetched, and DRAM has room.",
}  # fmt: skip
_CANCEL: dict[CancelReason, str] = {
    CancelReason.NOT_NEEDED: "Nobody wants it any more, or somebody needs what it would take away.",
    CancelReason.TOO_LATE: "It was not done by until_ns: from then on it is worth nothing.",
    CancelReason.LINK_SUSPENDED: "Its link is out of use: too many transfers failed there.",
    CancelReason.ENGINE_GONE: "An engine that it has to do with is gone.",
}
_OTHERS: dict[type[Event], str] = {
    HolderLost: "It was silent for holder_timeout_ns of pool time, or started anew: clients and payloads are gone.",
    WakeAsked: "The latest start of something that waits comes before the next tick, so a tick is asked for then.",
    TenantQuotaSet: "An operator asked for it.",
    EngineDirected: "What an engine goes by within its steps changed.",
    LinkSuspended: "At least half of its last transfers failed, or the one that was tried: out of use for a while.",
    MiscoverageNoticed: "A predictor's answers ended within what it said less often, or more often, than they should.",
}


def rule_of(decision: Event, fellows: Sequence[Event] = ()) -> Rule:
    """The rule that a decision came from; `fellows` are all that the actor said for the same cause."""
    reason: Any = getattr(decision, "reason", "")
    name = str(getattr(reason, "value", reason))
    code = decision.event_kind() + (f":{name}" if name and not isinstance(decision, RequestAdmitted) else "")
    return Rule(code=code, text=_text(decision, fellows))


def _text(decision: Event, fellows: Sequence[Event]) -> str:
    match decision:
        case RequestAdmitted():
            return _admitted(decision, fellows)
        case RequestDeferred():
            return _DEFER[decision.reason]
        case RequestRejected():
            return _REJECT[decision.reason]
        case RequestPreempted():
            return _PREEMPT[decision.reason]
        case SharesSet():
            return _SHARES[decision.reason]
        case TransferOrdered():
            return _MOVE[decision.reason]
        case TransferCancelled():
            return _CANCEL[decision.reason]
        case LinkSuspended(until_ns=0):
            return "What was tried on the suspended link went well: it is in use again."
        case _:
            return _OTHERS.get(type(decision), "")


def _admitted(decision: RequestAdmitted, fellows: Sequence[Event]) -> str:
    where = decision.engine_id
    gave_way = [
        one.request_id for one in fellows
        if isinstance(one, RequestPreempted) and one.for_request == decision.request_id
    ]  # fmt: skip
    if gave_way:
        return f"It fits nowhere, and it is urgent: {', '.join(gave_way)} gives way on {where}."
    if decision.would is not None:
        would = f"{decision.would.value}{' (' + decision.reason + ')' if decision.reason else ''}"
        return f"Mode observe: everything goes on at once, to where the placement says. Enforced: {would}."
    if decision.resumed:
        return f"There is room again on {where}, which kept its place and its stream."
    if decision.slo_slack_ns < 0:
        return f"It cannot be in time any more. Nobody waits who can, and it fits on {where}."
    return f"{where} is the first engine, in the placement's order, where it fits now and would be in time."
