"""Admission: which request goes to which engine now, which waits, and which is refused. Algorithm 1.

The rules for one request stand in `policies.judgement`. Around them:

- Deferred requests are looked at again whenever something may have changed: for one engine when a request there ends
  or gives its first token or the engine is measured, for all with every tick. Each line goes in the order of
  the strategy (`policies.lineup`); while its head does not fit, at most `passes_max` later ones go before it.
- One whose latest start has passed is refused (evicted, if it was preempted), or goes late: `policies.late_service`.
- One that has its first token and was preempted goes on before all that: see `policies.parking`.
- In mode `observe` everything is admitted at once where the placement says, with what would have been decided; only
  what no engine can serve is refused.
- A holder that is silent too long is lost: its requests end. An engine that is lost gets nothing new; what runs there
  stays in the books until its holder says that it ended.
- What is known of a request is dropped when it ends. The same id after that is a new request.

Example: engine with 100 free blocks; a prompt of 80 blocks with an answer of 30 predicted waits (`kv_budget`), a
prompt of 20 blocks behind it is admitted, and the first goes as soon as enough has ended.
"""

from functools import partial
from itertools import islice

from events.base import NS_PER_MS, NS_PER_S, EngineId, Event, RequestId, RequestKind
from events.control import Ticked
from events.decisions import (
    DeferReason,
    HolderLost,
    PreemptReason,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    SharesSet,
    TenantQuotaSet,
    WakeAsked,
    Would,
)
from events.engine import EngineHealthChanged, EngineMeasured, EngineRegistered, EngineRemoved
from events.request import (
    DispatchStarted,
    FirstTokenSeen,
    HolderBeat,
    HolderStopped,
    OutputPredicted,
    RequestAborted,
    RequestArrived,
    RequestExpired,
    RequestFinished,
)
from policies import holders, parking, preemption, sessions, waiting
from policies.accounts import Account, Resident, blocks, bytes_of
from policies.admission_explain import explain
from policies.admission_settings import AdmissionSettings, Mode
from policies.admission_state import configure, desk_of, evolve, initial
from policies.decider import Decider
from policies.forecast import (
    Prospect,
    alone_ns,
    bytes_wanted,
    can_ever_hold,
    is_full,
    reserved_tokens,
    turn_in_ns,
)
from policies.glance import surely_waits
from policies.judgement import (
    Admit,
    Defer,
    Desk,
    Preempt,
    Reject,
    Ruling,
    Verdict,
    clear,
    has_no_turn,
    has_quota_left,
    holding,
    judge,
    longer_output,
    output_of,
    prefill_ns,
    ranked,
    retry_after_ns,
    serving,
    settle,
    slack_ns,
)
from policies.late_service import is_late, judge_late, nobody_in_time_waits, or_late, too_late, waits_for_its_tenant
from policies.lineup import first_ruling, keeps_out, line_key, lineup, passes_left
from policies.placement import WAITS_FOR_BEST
from policies.predictors import output_length
from policies.settings import Switch
from policies.tier_index import SLICE_FACTS
from policies.trial import promise
from policies.waiting import Line, Waiting
from policies.whereabouts import State, requests_of

ACTOR = "admission"
WAKE_STEP_NS = 10 * NS_PER_MS
"""Wakes are asked for at multiples of this, so that many deadlines share one."""
EXPIRED_MAX = 256
"""Requests refused per tick because their time is up; a wake is asked for when there are more. What is decided because
of one record has to fit into one message."""
DECIDED_MAX = 512
"""Decisions because of one record, after which no further line is looked at: a line says at most `scan_max` words, and
what is left has its turn with the next record."""
LOST_NAMED_MAX = 1_024
"""Requests that end per record because their holders are lost; the others end with the next tick or beat."""


def decide(state: State, event: Event, now_ns: int) -> list[Event]:
    """What follows from this fact. Changes nothing."""
    match event:
        case RequestArrived():
            return _decide_fresh(state, state.fresh, now_ns) if state.fresh is not None else []
        case Ticked():
            return _decide_tick(state, now_ns)
        case HolderBeat():
            return _decide_beat(state, event)
        case RequestFinished():
            alarms = output_length.alarms(state.outputs)
            return [*alarms, *_drain(state, now_ns, only=event.engine_id)]
        case FirstTokenSeen() | EngineMeasured() | EngineRegistered():
            return _drain(state, now_ns, only=event.engine_id)
        case EngineHealthChanged() | EngineRemoved() | RequestAborted() | RequestExpired() | HolderStopped():
            return _drain(state, now_ns)
        case SharesSet() | TenantQuotaSet():
            return _drain(state, now_ns)
        case _:
            return []


def _decide_fresh(state: State, fresh: Waiting, now_ns: int) -> list[Event]:
    """One request that just arrived."""
    desk = desk_of(state, now_ns)
    if state.settings.mode is Mode.OBSERVE:
        return [_observed(desk, fresh, alone=True)]
    verdict = _first_verdict(state, desk, fresh)
    said = _said(desk, verdict, fresh)
    if isinstance(verdict, Defer):
        look_ns = _look_ns(state, fresh, verdict.until_ns, now_ns)
        turn_ns = _turn_ns(desk) if verdict.reason is DeferReason.PREFILL_BACKLOG else 0
        return [*said, *_wake(state, min(look_ns, turn_ns or look_ns), now_ns)]
    return said


def _first_verdict(state: State, desk: Desk, fresh: Waiting) -> Verdict:
    settings, group = state.settings, waiting.group(fresh.request)
    found = holding(desk, fresh.request, fresh.avoid)
    if isinstance(found, Reject):
        return found
    prospects = ranked(desk, fresh.request, found, group)
    line = state.lines.by_group.get(waiting.line_name(fresh))
    ruling = first_ruling(desk, fresh, prospects, line)
    verdict = preemption.or_room(desk, fresh, ruling, found, others_wait=line is not None)
    if isinstance(verdict, Reject):
        verdict = or_late(desk, fresh, verdict, work_ns=prefill_ns(prospects))
    if isinstance(verdict, Defer) and len(state.lines.group_of) >= settings.queue_max:
        return Reject(RejectReason.QUEUE_FULL, retry_after_ns(line.work_ns if line else 0, settings))
    return verdict


def _observed(desk: Desk, one: Waiting, *, alone: bool = False) -> Event:
    """Admitted where the placement says, whatever the verdict; but what nobody can serve is refused. `alone`: nothing
    else is decided because of the same record."""
    found = holding(desk, one.request, one.avoid)
    if isinstance(found, Reject):
        return _rejected(found, one)
    prospects = ranked(desk, one.request, found, waiting.group(one.request))
    verdict = judge(desk, prospects)
    match verdict:
        case Admit():
            would, reason = Would.ADMIT, ""
        case Defer():
            would, reason = Would.DEFER, verdict.reason.value
        case Reject():
            would, reason = Would.REJECT, verdict.reason.value
    if not alone:
        settle(desk, prospects[0])
    return _admitted(desk.settings, prospects[0], slack_ns(prospects[0], desk.now_ns), would=would, reason=reason)


def _count(desk: Desk, verdict: Verdict) -> None:
    """What is decided next because of the same record counts it."""
    match verdict:
        case Admit():
            settle(desk, verdict.prospect)
        case Preempt(victims, admit):
            clear(desk, admit.prospect, victims)
            settle(desk, admit.prospect)
        case _:
            pass


def _said(desk: Desk, verdict: Verdict, one: Waiting) -> list[Event]:
    """The verdict as it stands in the log."""
    match verdict:
        case Admit():
            return [_admitted(desk.settings, verdict.prospect, verdict.slack_ns)]
        case Preempt(victims, admit):
            account = admit.prospect.trial.account
            orders = [_preempted(account, sent, for_request=one.request.request_id) for sent in victims.values()]
            return [*orders, *_said(desk, admit, one)]
        case Defer():
            return [RequestDeferred(
                request_id=one.request.request_id, until_ns=verdict.until_ns, reason=verdict.reason,
                work_ns=verdict.work_ns, attempt=one.request.attempt,
            )]  # fmt: skip
        case Reject():
            return [_rejected(verdict, one)]


def _preempted(account: Account, sent: Resident, *, for_request: RequestId) -> RequestPreempted:
    return RequestPreempted(
        request_id=sent.request.request_id, engine_id=account.engine_id, for_request=for_request,
        reason=PreemptReason.MORE_URGENT, output_tokens=sent.output_tokens,
        kv_bytes_freed=blocks(account, sent.prompt_tokens + sent.output_tokens) * account.block_bytes,
        attempt=sent.request.attempt,
    )  # fmt: skip


def _rejected(verdict: Reject, one: Waiting) -> RequestRejected:
    """One that was preempted is not as if it had never been served: it was evicted."""
    evicted = one.preemptions and verdict.reason in (RejectReason.SLO_INFEASIBLE, RejectReason.DEADLINE_PASSED)
    return RequestRejected(
        request_id=one.request.request_id,
        reason=RejectReason.EVICTED_DEADLINE_PASSED if evicted else verdict.reason,
        retry_after_ns=verdict.retry_after_ns, attempt=one.request.attempt,
    )  # fmt: skip


def _admitted(
    settings: AdmissionSettings, one: Prospect, slack: int, *, would: Would | None = None, reason: str = ""
) -> RequestAdmitted:
    request, account = one.request, one.trial.account
    reserved = reserved_tokens(one, settings)
    return RequestAdmitted(
        request_id=request.request_id, engine_id=account.engine_id,
        output_tokens_predicted=reserved, cached_tokens_predicted=one.cached_tokens,
        kv_cache_tokens=request.prompt_tokens + reserved,
        kv_bytes_reserved=bytes_wanted(one, settings),
        ttft_predicted_ns=one.ttft_ns if one.judged else 0, slo_slack_ns=slack,
        attempt=request.attempt, would=would, reason=reason,
        output_tokens_low=min(one.foretold.low, reserved), predictor=one.foretold.predictor,
        embedding_workspace_bytes=bytes_wanted(one, settings) if request.kind is RequestKind.EMBEDDING else 0,
    )  # fmt: skip


def _decide_beat(state: State, event: HolderBeat) -> list[Event]:
    """A holder that started anew has nothing of what it held before."""
    heard = state.holders.heard[event.holder]
    if not event.epoch or heard.epoch == event.epoch:
        return []
    return [HolderLost(holder=event.holder, requests=tuple(requests_of(state, event.holder)[:LOST_NAMED_MAX]))]


def _decide_tick(state: State, now_ns: int) -> list[Event]:
    """Silent holders, latest starts that have passed, then all that waits."""
    decisions: list[Event] = []
    gone: dict[RequestId, None] = {}
    for holder in holders.silent(state.holders, state.settings.holder_timeout_ns):
        requests = tuple(requests_of(state, holder)[: LOST_NAMED_MAX - len(gone)])
        if not requests:
            break
        decisions.append(HolderLost(holder=holder, requests=requests))
        gone.update(dict.fromkeys(requests))
    if not state.lines.by_group and not state.parked_on:
        return decisions
    drained = _drain(state, now_ns, gone=gone, expire=True)
    left = [
        _look_ns(state, one, one.until_ns, now_ns)
        for line in state.lines.by_group.values() for request_id, one in line.entries.items() if request_id not in gone
    ]  # fmt: skip
    return [*decisions, *drained, *(_wake(state, max(min(left), now_ns + 1), now_ns) if left else ())]


def _drain(
    state: State, now_ns: int, *, only: EngineId | None = None, gone: dict[RequestId, None] | None = None,
    expire: bool = False,
) -> list[Event]:  # fmt: skip
    """Look again at what waits, in the order of the strategy. `only`: nothing changed but on that engine. `gone` is
    left out, and what is decided here is added to it. `expire`: look for passed deadlines beyond `scan_max`, too."""
    lines = list(state.lines.by_group.values())
    if not lines and not state.parked_on:
        return []
    gone = {} if gone is None else gone
    desk = desk_of(state, now_ns)
    resumed = _go_on(state, desk, only=only, gone=gone) if state.parked_on else []
    lines.sort(key=partial(line_key, desk))
    expire = expire and state.settings.mode is Mode.ENFORCE
    decisions: list[Event] = [*resumed, *(_expire(desk, lines, gone) if expire else ())]
    for line in lines:
        if len(decisions) >= DECIDED_MAX:
            break
        if desk.settings.mode is Mode.OBSERVE:
            decisions += _let_through(desk, line, gone=gone)
        elif nobody_in_time_waits(desk, line, lines, gone) if is_late(line.head()) else _any_has_quota_left(desk, line):
            decisions += _drain_line(desk, line, only=only, gone=gone)
    # What is sent just before an engine has done all that it has lets it go on without a gap.
    waits = any(request_id not in gone for line in lines for request_id in line.entries)
    turn_ns = _turn_ns(desk, only=only) if waits else 0
    return [*decisions, *(_wake(state, turn_ns, now_ns) if turn_ns else ())]


def _turn_ns(desk: Desk, *, only: EngineId | None = None) -> int:
    """When the first engine that is backed up takes work again (`only`: that one); 0 if none is."""
    if desk.settings.deferral is Switch.OFF:
        return 0
    turns = (
        turn_in_ns(desk.trial(account), desk.settings, desk.now_ns)
        for name, account in desk.accounts.items()
        if account.step is not None and account.takes_work() and (only is None or name == only)
    )
    soonest_ns = min((turn_ns for turn_ns in turns if turn_ns > 0), default=0)
    return desk.now_ns + soonest_ns if soonest_ns else 0


def _let_through(desk: Desk, line: Line, *, gone: dict[RequestId, None]) -> list[Event]:
    """What still waits when mode `observe` begins goes on, late or not; nothing is set aside."""
    left = [one for one in line.ordered() if one.request.request_id not in gone][:EXPIRED_MAX]
    gone.update(dict.fromkeys(one.request.request_id for one in left))
    return [_observed(desk, one) for one in left]


def _any_has_quota_left(desk: Desk, line: Line) -> bool:
    some = islice(line.ordered(), desk.settings.scan_max)
    return not line.head().lane or any(has_quota_left(desk, one) for one in some)


def _expire(desk: Desk, lines: list[Line], gone: dict[RequestId, None]) -> list[Event]:
    late = (
        one for line in lines for request_id, one in line.entries.items()
        if one.until_ns <= desk.now_ns and request_id not in gone
    )  # fmt: skip
    expired = {one.request.request_id: one for one in islice(late, EXPIRED_MAX)}
    gone.update(dict.fromkeys(expired))
    return [said for one in expired.values() for said in _said(desk, too_late(desk, one), one)]


def _drain_line(desk: Desk, line: Line, *, only: EngineId | None, gone: dict[RequestId, None]) -> list[Event]:
    """The first of a line that fit. Once one does not, as many may pass it as it has passes left."""
    decisions: list[Event] = []
    settings, passes = desk.settings, 0
    head: Waiting | None = None
    if only is not None:
        account = desk.accounts.get(only)
        if account is None or has_no_turn(desk.trial(account), desk):
            return []
    for one in islice(lineup(desk, line, gone=gone), settings.scan_max):
        if head is not None and passes <= 0:
            break
        if one.until_ns > desk.now_ns and (keeps_out(desk, one) or waits_for_its_tenant(desk, one)):
            continue
        request_id, said = one.request.request_id, _again(desk, one, only=only)
        if not said:
            if head is None:
                head, passes = one, passes_left(desk, one)
            continue
        decisions += said
        gone[request_id] = None
        if head is not None and isinstance(said[-1], RequestAdmitted):
            passes -= 1
    return decisions


def _again(desk: Desk, one: Waiting, *, only: EngineId | None) -> list[Event]:
    """What is said now to a request that waits; nothing = it waits on."""
    if one.until_ns <= desk.now_ns:
        return _said(desk, too_late(desk, one), one)
    # Too late on one engine is not too late on all: the next tick looks at them all.
    elsewhere = only is not None and len(desk.accounts) > 1
    if elsewhere:
        there = [account for account in serving(desk, one.request, one.avoid, only=only)
                 if can_ever_hold(account, one.request, desk.settings)]  # fmt: skip
        if not there:
            return []
    else:
        holds = holding(desk, one.request, one.avoid)
        if isinstance(holds, Reject):
            return [_rejected(holds, one)]
        there = holds
        if surely_waits(desk, one, there):
            return []
    if elsewhere and all(is_full(desk.trial(account), one.request, desk.settings) for account in there):
        ruling: Ruling = Defer(DeferReason.KV_BUDGET, one.until_ns, one.work_ns)
    else:
        prospects = _prospects(desk, one, there, elsewhere=elsewhere)
        ruling = judge_late(desk, one, prospects) if is_late(one) else judge(desk, prospects)
    verdict = ruling if is_late(one) else preemption.or_room(desk, one, ruling, there)
    if isinstance(verdict, Defer) or (isinstance(verdict, Reject) and elsewhere):
        return []
    _count(desk, verdict)
    return _said(desk, or_late(desk, one, verdict, work_ns=one.work_ns), one)


def _prospects(desk: Desk, one: Waiting, there: list[Account], *, elsewhere: bool) -> list[Prospect]:
    """The request on these engines, best first. Where one `elsewhere` would have less to compute, on all that could
    hold it: it may be worth waiting for."""
    group = waiting.group(one.request)
    prospects = ranked(desk, one.request, there, group)
    if not elsewhere or desk.settings.placement not in WAITS_FOR_BEST or alone_ns(prospects[0]) <= one.work_ns:
        return prospects
    holds = holding(desk, one.request, one.avoid)
    return prospects if isinstance(holds, Reject) else ranked(desk, one.request, holds, group)


def _go_on(state: State, desk: Desk, *, only: EngineId | None, gone: dict[RequestId, None]) -> list[Event]:
    """Those that are parked and can go on now, or have to. On each engine those go first that have to, then the most
    important, then who was parked first; the next does not pass it."""
    engines = [only] if only is not None else list(dict.fromkeys(state.parked_on.values()))
    decisions: list[Event] = []
    for engine_id in engines:
        account = state.accounts.get(engine_id)
        parked = account.parked.items() if account is not None else ()
        left = (item for item in parked if item[0] not in gone)
        in_order = sorted(left, key=lambda item: (not _must_go_on(desk, item[1]), -item[1].request.priority))
        for request_id, one in in_order:
            said = _resumed(state, desk, state.accounts[engine_id], one) if len(decisions) < EXPIRED_MAX else None
            if said is None:
                break
            decisions.append(said)
            gone[request_id] = None
    return decisions


def _resumed(state: State, desk: Desk, account: Account, one: Waiting) -> RequestAdmitted | None:
    """It goes on where its stream is; None = not yet."""
    settings, trial, request = desk.settings, desk.trial(account), one.request
    made = one.output_tokens
    foretold = output_of(desk.outputs, settings, request, so_far=made, key=one.foretold.key)
    reserved = longer_output(desk.outputs, settings, account, request, one.foretold, so_far=made)
    prospect = parking.going_on(trial, one, foretold=foretold, now_ns=desk.now_ns)
    if not _must_go_on(desk, one) and (
        not account.takes_work() or _urgent_waits(state, one) or not parking.fits(prospect, settings)
    ):
        return None
    sent = parking.resident_again(trial, one, reserved=reserved, cached=prospect.cached_tokens, now_ns=desk.now_ns)
    promise(trial, sent)
    trial.resumed[request.request_id] = None
    return RequestAdmitted(
        request_id=request.request_id, engine_id=account.engine_id, resumed=True, attempt=request.attempt,
        output_tokens_predicted=reserved, output_tokens_low=min(foretold.low, reserved), predictor=foretold.predictor,
        cached_tokens_predicted=prospect.cached_tokens, kv_cache_tokens=request.prompt_tokens + reserved,
        kv_bytes_reserved=bytes_of(account, sent), ttft_predicted_ns=prospect.ttft_ns if prospect.judged else 0,
        slo_slack_ns=0,
    )  # fmt: skip


def _must_go_on(desk: Desk, one: Waiting) -> bool:
    """Whether it has been parked for as long as it may."""
    return desk.settings.mode is Mode.OBSERVE or desk.now_ns >= one.arrived_ns + desk.settings.resume_max_ns


def _urgent_waits(state: State, parked: Waiting) -> bool:
    """Whether a request of a higher priority waits for an engine like this one: it goes first."""
    line = state.lines.by_group.get(waiting.group(parked.request))
    if line is None:
        return False
    some = islice(line.entries.values(), state.settings.scan_max)
    return any(one.request.priority > parked.request.priority for one in some)


def _look_ns(state: State, one: Waiting, until_ns: int, now_ns: int) -> int:
    """When it has to be looked at again at the latest: when its time is up, or when it needs no slot any more."""
    if state.settings.session_slots is Switch.OFF or not one.request.session:
        return until_ns
    slot_ns = sessions.waits_until_ns(one.request, wait_max_ns=state.settings.session_wait_max_ns)
    return min(until_ns, slot_ns) if slot_ns > now_ns else until_ns


def _wake(state: State, until_ns: int, now_ns: int) -> list[Event]:
    """Ask for a tick at `until_ns` if none comes sooner."""
    at_ns = -(-until_ns // WAKE_STEP_NS) * WAKE_STEP_NS
    next_tick_ns = (state.holders.tick_ns or now_ns) + NS_PER_S
    asked = now_ns < state.woken_ns <= at_ns
    return [WakeAsked(at_ns=at_ns)] if now_ns < at_ns < next_tick_ns and not asked else []


ADMISSION: Decider[State] = Decider(
    name=ACTOR,
    state=State,
    initial=initial,
    evolve=evolve,
    decide=decide,
    configure=configure,
    explain=explain,
    takes=frozenset({
        RequestArrived, DispatchStarted, FirstTokenSeen, RequestFinished, RequestAborted, RequestExpired, HolderBeat,
        HolderStopped, OutputPredicted, EngineRegistered, EngineRemoved, EngineHealthChanged, EngineMeasured, Ticked,
        SharesSet, TenantQuotaSet, *SLICE_FACTS,
    }),
)  # fmt: skip
"""Admission with its default settings."""
