"""Served late rather than refused, while the pool is calm and it takes nothing from those that can be in time.

Where nearly all are in time a refusal is no shedding of load: it is a burst that found every engine busy, and the same
request would do a moment later. So instead of being refused as too late, a request waits on in a line of its own, and
goes to an engine only while nobody who can be in time waits. A long prefill keeps to the long lane here, too.

It waits at most `late_max_ns` longer (anew, if it is preempted), and the less the more was refused or late of the last
few hundred: nothing where one in a hundred was. Then the p99 is late whatever is done, and work that helps nobody costs
others.
The pace of what runs is kept as with any other, and it is refused when it has waited for so long. Where half of the
queue is taken it does not wait: a burst of what is late must not fill it. One for whose KV its own tenant's requests
have to end first is passed over: as the head of one line with the others it would hold these up.

Source: what a server does that refuses nothing, as far as that is free; optional work in brownout (Klein et al., ICSE
2014). Measured on a conversation trace at three quarters of its knee: one in 250 was refused, and for the p99 of all
TTFTs each of them counts as one that never came.

Example: all were in time of late, `late_max_ns` is 30 s. Of a batch of prompts two cannot be in time anywhere. They go
some seconds late, when the others have gone and an engine is free. At 98 % in time they are refused at once.
"""

from collections.abc import Iterable
from typing import TypeVar

from events.base import PPM, EngineId, RequestId
from events.decisions import DeferReason, RejectReason
from events.request import RequestArrived
from policies.accounts import Account
from policies.admission_settings import AdmissionSettings
from policies.forecast import Prospect, bytes_min
from policies.judgement import (
    RETRY_AFTER_MIN_NS,
    Admit,
    Defer,
    Desk,
    Reject,
    Ruling,
    Verdict,
    held_bytes,
    hindrance,
    output_of,
    serving,
    slack_ns,
)
from policies.ordering import Ordering, served_ppm
from policies.placement import WAITS_FOR_BEST
from policies.settings import Switch
from policies.waiting import LATE_LANE, Line, Waiting

CALM_PPM = 990_000
"""With no more than this share served in time nobody is served late."""
QUEUE_PARTS = 2
"""Nobody is served late while so many wait that one part in so many of `queue_max` is taken: the rest is for those that
can be in time."""


V = TypeVar("V", bound=Verdict)


def or_late(desk: Desk, one: Waiting, verdict: V, *, work_ns: int) -> V | Defer:
    """The verdict, or leave to wait on, where it would be refused for nothing but being late. `work_ns` is the prefill
    that it brings."""
    if not isinstance(verdict, Reject) or one.lane or not _is_only_late(verdict):
        return verdict  # Who waits in a line apart does not wait for an engine, or is late already.
    if desk.settings.deferral is Switch.OFF or desk.deferred >= desk.settings.queue_max // QUEUE_PARTS:
        return verdict
    wait_ns = wait_max_ns(desk.ordering, desk.settings)
    return Defer(DeferReason.LATE, desk.now_ns + wait_ns, work_ns) if wait_ns else verdict


def too_late(desk: Desk, one: Waiting) -> Defer | Reject:
    """What is said to one whose latest start has passed, or that has waited to be served late for as long as it may."""
    return or_late(desk, one, Reject(RejectReason.DEADLINE_PASSED, RETRY_AFTER_MIN_NS), work_ns=one.work_ns)


def wait_max_ns(ordering: Ordering, settings: AdmissionSettings) -> int:
    """How long one that is late may wait now: `late_max_ns` where nobody was late, down to nothing at CALM_PPM."""
    return settings.late_max_ns * max(served_ppm(ordering) - CALM_PPM, 0) // (PPM - CALM_PPM)


def is_late(one: Waiting) -> bool:
    """Whether it waits to be served late."""
    return one.lane == LATE_LANE


def waits_for_its_tenant(desk: Desk, one: Waiting) -> bool:
    """Whether it is late, and wherever it went its tenant would be above its quota."""
    quota = desk.tenants.quota.get(one.request.tenant)
    if quota is None or not is_late(one):
        return False
    foretold = output_of(desk.outputs, desk.settings, one.request)
    wanted = bytes_min(desk.accounts, one.request, foretold, desk.settings)
    return held_bytes(desk, one.request.tenant) + wanted > quota


def nobody_in_time_waits(desk: Desk, late: Line, lines: Iterable[Line], gone: dict[RequestId, None]) -> bool:
    """Whether all that could be in time and wait for an engine that the `late` ones could go to have gone."""
    theirs = serving(desk, late.head().request, EngineId(""))
    return all(
        request_id in gone for line in lines if not (head := line.head()).lane and _any_serves(theirs, head.request)
        for request_id in line.entries
    )  # fmt: skip


def _any_serves(engines: list[Account], request: RequestArrived) -> bool:
    return any(account.serves(request.model, request.kind) for account in engines)


def judge_late(desk: Desk, one: Waiting, prospects: list[Prospect]) -> Ruling:
    """Where it goes now, best engine first, with no regard to its deadline; else it waits on."""
    for prospect in prospects:
        why = hindrance(desk, prospect)
        if why is None:
            return Admit(prospect, slack_ns(prospect, desk.now_ns))
        if why is DeferReason.PREFILL_BACKLOG and desk.settings.placement in WAITS_FOR_BEST:
            break  # Its turn there comes, and there it costs least.
    return Defer(DeferReason.LATE, one.until_ns, one.work_ns)


def _is_only_late(verdict: Reject) -> bool:
    """A pace or a prompt that is out of reach on an idle engine, too, has no Retry-After."""
    if verdict.reason is RejectReason.SLO_INFEASIBLE:
        return verdict.retry_after_ns > 0
    return verdict.reason is RejectReason.DEADLINE_PASSED
