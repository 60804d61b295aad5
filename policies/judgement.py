"""What is said to one request: admit, defer or reject, and why. The rules of admission, in their order.

1. No engine of the pool that is ready serves this model: reject (no engine).
2. It fits the context or the KV of none of them: reject (too long).
3. Its pace is out of reach even on an idle engine: reject (SLO infeasible).
4. Behind the work that stands before it, it would be late on every engine: reject (SLO infeasible). Waiting does not
   help: that work takes as long wherever this one waits. Work that cannot meet its deadline is not started.
5. Engines in the placement's order, those where it would be in time: the first where it fits gets it. It fits when
   a sequence is free, the predicted peak of KV is within the budget, the prefill backlog is short, and nobody's pace
   breaks. Where nothing but the backlog keeps it from the engine where it costs least, it waits for its turn there
   rather than have another one compute what is cached here (delay scheduling, Zaharia et al., EuroSys 2010).
   Within its tenant's quota, too: above it alone, it is rejected (tenant quota).
6. Else it is deferred, until the latest moment at which it could still be in time.
7. Where 4 or 6 would let it miss its deadline, less urgent requests may have to make room: `policies.preemption`.
8. What would be refused for nothing but being late is served late where that harms nobody: `policies.late_service`.

With `deferral` off rule 5 asks nothing but whether it would be in time.

Where nothing is known about the speed of an engine (no StepModel, no first tokens seen yet) deadlines are not judged
there; memory is.
"""

from dataclasses import dataclass, field

from events.base import NS_PER_S, PPM, EngineId, ModelId, RequestId, RequestKind, TenantId
from events.decisions import DeferReason, RejectReason
from events.request import RequestArrived
from policies import kept_room, ordering, placement, sessions
from policies.accounts import Account, Resident, bytes_of, kv_tokens
from policies.admission_settings import AdmissionSettings
from policies.forecast import (
    Prospect,
    alone_ns,
    blocked,
    budget_left_ppm,
    bytes_wanted,
    can_ever_hold,
    is_backed_up,
    is_full,
    longest_output,
    own_work_ns,
    prospect,
    reserved_tokens,
    resident_of,
)
from policies.ordering import Ordering
from policies.placement.candidate import Asked, Candidate
from policies.predictors import output_length
from policies.predictors.output_length import Outputs
from policies.predictors.output_question import Foretold
from policies.predictors.step_time import step_ns
from policies.sessions import Sessions
from policies.settings import Switch
from policies.tenancy import Tenants
from policies.trial import Trial, promise, trial_of
from policies.waiting import Waiting

RETRY_AFTER_MIN_NS = NS_PER_S
PREEMPTS_MAX = 1
"""Requests for which victims are looked for because of one record."""


@dataclass(slots=True, frozen=True)
class Admit:
    """Send it there."""

    prospect: Prospect
    slack_ns: int


@dataclass(slots=True, frozen=True)
class Defer:
    """Hold it."""

    reason: DeferReason
    until_ns: int
    work_ns: int


@dataclass(slots=True, frozen=True)
class Reject:
    """Do not serve it."""

    reason: RejectReason
    retry_after_ns: int = 0


@dataclass(slots=True, frozen=True)
class Preempt:
    """Take these off the engine, then send it there."""

    victims: dict[RequestId, Resident]
    admit: Admit


Ruling = Admit | Defer | Reject
"""What is said with everybody else left where they are."""
Verdict = Ruling | Preempt


@dataclass(slots=True)
class Desk:
    """What one decision looks at: the accounts, and what it has promised so far (`promised_bytes` by tenant, less what
    was preempted; `session_tokens` by model). Changes no account. `preempts_left` bounds how often one decision looks
    for victims, `deferred` is how many waited before it."""

    accounts: dict[EngineId, Account]
    outputs: Outputs
    turns: dict[str, int]
    settings: AdmissionSettings
    tenants: Tenants
    now_ns: int
    trials: dict[EngineId, Trial] = field(default_factory=dict)
    sessions: Sessions = field(default_factory=Sessions)
    promised_bytes: dict[TenantId, int] = field(default_factory=dict)
    session_tokens: dict[ModelId, int] = field(default_factory=dict)
    preempts_left: int = PREEMPTS_MAX
    deferred: int = 0
    ordering: Ordering = field(default_factory=Ordering)
    kept_tokens: int | None = None
    """Prompt tokens for which room is kept, once it was asked for."""
    serving: dict[tuple[ModelId, RequestKind], list[Account]] = field(default_factory=dict)
    """The engines that take work of a kind for a model, once they were asked for. Not to be changed."""

    def trial(self, account: Account) -> Trial:
        """The engine with what was promised on it."""
        trial = self.trials.get(account.engine_id)
        if trial is None:
            trial = self.trials[account.engine_id] = trial_of(account)
        return trial


def output_of(
    outputs: Outputs, settings: AdmissionSettings, request: RequestArrived, *, so_far: int = 0, key: str = ""
) -> Foretold:
    """Predicted output tokens of a request: it has `so_far` of them, and its answer is filed under `key` (""= to be
    found)."""
    if request.kind is RequestKind.EMBEDDING:
        return Foretold()
    return output_length.foretell(
        outputs, request, kind=settings.output_predictor, target_ppm=settings.output_quantile_ppm,
        tokens_default=settings.output_tokens_default, so_far=so_far, key=key,
    )  # fmt: skip


def longer_output(
    outputs: Outputs, settings: AdmissionSettings, account: Account, request: RequestArrived, foretold: Foretold,
    *, so_far: int,
) -> int:  # fmt: skip
    """What to promise a request that has `so_far` output tokens and runs on: no more than the engine can hold."""
    longer = output_of(outputs, settings, request, so_far=so_far, key=foretold.key).high
    return max(so_far + 1, min(longer, longest_output(account, request.prompt_tokens, settings)))


def serving(desk: Desk, request: RequestArrived, avoid: EngineId, *, only: EngineId | None = None) -> list[Account]:
    """The engines that would take it, without the one that it was lost on if there is another. `only`: of these."""
    model, kind = request.model, request.kind
    if only is not None:
        one = desk.accounts.get(only)
        found = [one] if one is not None and one.takes_work() and one.serves(model, kind) else []
    elif (kept := desk.serving.get((model, kind))) is not None:
        found = kept
    else:
        found = [one for one in desk.accounts.values() if one.takes_work() and one.serves(model, kind)]
        desk.serving[model, kind] = found
    if avoid:
        return [account for account in found if account.engine_id != avoid] or found
    return found


def ranked(desk: Desk, request: RequestArrived, accounts: list[Account], group: str) -> list[Prospect]:
    """The request on each of these engines, in the placement's order."""
    settings = desk.settings
    foretold = output_of(desk.outputs, settings, request)
    prospects = [
        prospect(desk.trial(account), request, foretold=foretold, now_ns=desk.now_ns) for account in accounts
    ]  # fmt: skip
    if len(prospects) == 1:
        return prospects
    candidates, asked = contest(desk, request, prospects, group)
    return [prospects[candidate.position] for candidate in placement.ranked(settings.placement, candidates, asked)]


def contest(
    desk: Desk, request: RequestArrived, prospects: list[Prospect], group: str
) -> tuple[list[Candidate], Asked]:
    """What the placement goes by: the engines as candidates, and what is asked of them."""
    settings = desk.settings
    looks = settings.placement in placement.LOOKS_AT_ROOM
    candidates = [_candidate(desk, position, one, looks=looks) for position, one in enumerate(prospects)]
    nearest = candidates[0]
    load_tokens, ttft_max_ns, work_max_ns = 0, nearest.ttft_ns, nearest.work_ns
    for candidate in candidates:
        load_tokens += candidate.load_tokens
        if candidate.ttft_ns > ttft_max_ns:
            ttft_max_ns = candidate.ttft_ns
        if candidate.work_ns > work_max_ns:
            work_max_ns = candidate.work_ns
        if candidate.cached_tokens > nearest.cached_tokens:
            nearest = candidate
    asked = Asked(
        request.prompt_tokens, len(candidates), desk.turns.get(group, 0), load_tokens,
        settings.affinity_tokens_min, settings.affinity_load_ppm, ttft_max_ns, work_max_ns,
        nearest.cached_tokens, nearest.labels,
        request.session or (request.slices[0] if request.slices else ""), settings.overlap_ppm,
    )  # fmt: skip
    return candidates, asked


def _candidate(desk: Desk, position: int, one: Prospect, *, looks: bool) -> Candidate:
    account, load = one.trial.account, one.trial.load
    return Candidate(
        account.engine_id, position, load.decode_context + load.prefill_context, one.cached_tokens, one.ttft_ns,
        own_work_ns(one, desk.now_ns), load.prefill_tokens, account.block_tokens, account.labels,
        budget_left_ppm(one, desk.settings) if looks else PPM,
        looks and (is_full(one.trial, one.request, desk.settings) or has_no_turn(one.trial, desk)),
    )  # fmt: skip


def has_no_turn(trial: Trial, desk: Desk) -> bool:
    """Whether so much prefill work stands before the engine that nobody who waits goes there."""
    return trial.account.step is not None and is_backed_up(trial, desk.settings, desk.now_ns)


def holding(desk: Desk, request: RequestArrived, avoid: EngineId) -> list[Account] | Reject:
    """Rules 1 and 2: the engines that could hold it, in the order in which they were registered."""
    found = serving(desk, request, avoid)
    if not found:
        return Reject(RejectReason.NO_ENGINE, RETRY_AFTER_MIN_NS)
    return [a for a in found if can_ever_hold(a, request, desk.settings)] or Reject(RejectReason.TOO_LONG)


def judge(desk: Desk, prospects: list[Prospect], *, ahead_ns: int = 0, may_go: bool = True) -> Ruling:
    """Rules 3 to 6, for engines that could hold it, best first. `ahead_ns` is the deferred work that goes first unless
    this one goes now; `may_go` is false where others must go first."""
    settings, now_ns, request = desk.settings, desk.now_ns, prospects[0].request
    if request.slo_tpot_ns and not any(pace_in_reach(one, settings) for one in prospects):
        return Reject(RejectReason.SLO_INFEASIBLE)
    if desk.tenants.quota and all(above_quota(desk, one, alone=True) for one in prospects):
        return Reject(RejectReason.TENANT_QUOTA)
    reason = None if may_go else DeferReason.BEHIND_OTHERS
    late_min_ns = None
    for one in prospects:
        late_ns = lateness_ns(one, settings, now_ns)
        late_min_ns = late_ns if late_min_ns is None else min(late_min_ns, late_ns)
        if may_go and late_ns <= 0:
            why = hindrance(desk, one)
            if why is None:
                return Admit(one, slack_ns(one, now_ns))
            reason = reason or why
            # Its turn there comes in time, and there it costs least.
            may_go = not (why is DeferReason.PREFILL_BACKLOG and settings.placement in placement.WAITS_FOR_BEST)
    assert late_min_ns is not None, "there is an engine to judge"
    work_ns = prefill_ns(prospects)
    late_ns = late_min_ns + ahead_ns // len(prospects)
    if late_ns > 0:
        hopeless = with_margin(work_ns, settings) > request.slo_ttft_ns
        return Reject(RejectReason.SLO_INFEASIBLE, 0 if hopeless else retry_after_ns(late_ns, settings))
    assert reason is not None, "an engine where it is in time either takes it or says why not"
    if settings.deferral is Switch.OFF and reason is DeferReason.TENANT_QUOTA:
        return Reject(RejectReason.TENANT_QUOTA, RETRY_AFTER_MIN_NS)
    control_ns = min(one.trial.account.control_ns for one in prospects)
    return Defer(reason, request.deadline_ns - control_ns - with_margin(work_ns, settings), work_ns)


def prefill_ns(prospects: list[Prospect]) -> int:
    """The prefill that a request brings, on the engine where it is least."""
    return min(alone_ns(one) if one.judged else 0 for one in prospects)


def hindrance(desk: Desk, one: Prospect) -> DeferReason | None:
    """Why it cannot go to an engine where it would be in time; None when it can."""
    if desk.tenants.quota and above_quota(desk, one):
        return DeferReason.TENANT_QUOTA
    if desk.settings.deferral is Switch.OFF:
        return None
    if desk.settings.session_slots is Switch.ON and lacks_slot(desk, one.request):
        return DeferReason.SESSION_SLOT
    why = blocked(one, desk.settings, desk.now_ns)
    return DeferReason.KEPT_FOR_OTHERS if why is None and takes_kept_room(desk, one) else why


def takes_kept_room(desk: Desk, one: Prospect) -> bool:
    """Whether it would take the room that is kept for prompts that lag behind, and is none of them."""
    if desk.kept_tokens is None:
        desk.kept_tokens = ordering.kept_tokens(desk.ordering, desk.settings)
    if not desk.kept_tokens or ordering.lags(desk.ordering, one.request, desk.settings):
        return False
    trials = [desk.trial(account) for account in serving(desk, one.request, EngineId(""))]
    return kept_room.takes_it(one, trials, kept_tokens=desk.kept_tokens, settings=desk.settings)


def lacks_slot(desk: Desk, request: RequestArrived) -> bool:
    """Whether its session has to wait until fewer are active."""
    until_ns = sessions.waits_until_ns(request, wait_max_ns=desk.settings.session_wait_max_ns)
    if not request.session or desk.now_ns >= until_ns:
        return False
    promised = desk.session_tokens.get(request.model, 0)
    return sessions.needs_slot(desk.sessions, request, tokens_max=slot_tokens_max(desk, request), promised=promised)


def slot_tokens_max(desk: Desk, request: RequestArrived) -> int:
    """How many tokens the prefixes of the active sessions of its model may have."""
    model, kind = request.model, request.kind
    kv = sum(kv_tokens(one) for one in desk.accounts.values() if one.takes_work() and one.serves(model, kind))
    return kv * desk.settings.session_kv_ppm // PPM


def above_quota(desk: Desk, one: Prospect, *, alone: bool = False) -> bool:
    """Whether its tenant would be above its quota with this one there (`alone`: even if it held nothing else)."""
    tenant = one.request.tenant
    quota = desk.tenants.quota.get(tenant)
    if quota is None:
        return False
    held = 0 if alone else held_bytes(desk, tenant)
    return held + bytes_wanted(one, desk.settings) > quota


def held_bytes(desk: Desk, tenant: TenantId) -> int:
    """What its tenant holds, with what was promised in this decision."""
    return desk.tenants.held.get(tenant, 0) + desk.promised_bytes.get(tenant, 0)


def has_quota_left(desk: Desk, one: Waiting) -> bool:
    """At a glance: whether its tenant may hold it as well, where it waits for that."""
    quota = desk.tenants.quota.get(one.request.tenant)
    return quota is None or held_bytes(desk, one.request.tenant) + one.bytes_wanted <= quota


def lateness_ns(one: Prospect, settings: AdmissionSettings, now_ns: int) -> int:
    """By how much it would miss its deadline there (not above 0: it would not). Not judged is in time."""
    slack_ns = one.request.deadline_ns - now_ns
    return (with_margin(one.ttft_ns, settings) if one.judged else 0) - slack_ns


def slack_ns(one: Prospect, now_ns: int) -> int:
    """What is left to the deadline after the predicted TTFT there, without margin."""
    return one.request.deadline_ns - now_ns - (one.ttft_ns if one.judged else 0)


def with_margin(ttft_ns: int, settings: AdmissionSettings) -> int:
    """A predicted TTFT as it is held against the slack."""
    return ttft_ns * settings.ttft_margin_ppm // PPM


def pace_in_reach(one: Prospect, settings: AdmissionSettings) -> bool:
    """Whether the engine could keep its TPOT limit if it were alone there."""
    step, limit_ns = one.trial.account.step, one.request.slo_tpot_ns
    if step is None or not limit_ns or not settings.tpot_margin_ppm or one.request.kind is RequestKind.EMBEDDING:
        return True
    alone_ns = step_ns(step, tokens=1, context=one.request.prompt_tokens, seqs=1)
    return alone_ns * PPM <= limit_ns * settings.tpot_margin_ppm


def settle(desk: Desk, one: Prospect) -> None:
    """The request goes there: what is decided next must count it."""
    reserved = reserved_tokens(one, desk.settings)
    sent = resident(one.foretold, one.trial, one.request, one.cached_tokens, reserved, desk.now_ns)
    promise(one.trial, sent)
    _promise_bytes(desk, sent, bytes_of(one.trial.account, sent))
    if one.request.session:
        model = one.request.model
        desk.session_tokens[model] = desk.session_tokens.get(model, 0) + one.request.prompt_tokens


def clear(desk: Desk, one: Prospect, victims: dict[RequestId, Resident]) -> None:
    """These leave the engine that the request goes to: what is decided next must count it."""
    desk.trials[one.trial.account.engine_id] = one.trial  # Which is without them.
    for resident in victims.values():
        _promise_bytes(desk, resident, -resident.bytes_charged)


def _promise_bytes(desk: Desk, resident: Resident, amount: int) -> None:
    tenant = resident.request.tenant
    desk.promised_bytes[tenant] = desk.promised_bytes.get(tenant, 0) + amount


def resident(
    foretold: Foretold, trial: Trial, request: RequestArrived, cached: int, reserved: int, now_ns: int
) -> Resident:
    """How a request stands in the account of the engine that it is sent to."""
    return resident_of(trial, request, foretold=foretold, cached=cached, reserved=reserved, now_ns=now_ns)


def retry_after_ns(late_ns: int, settings: AdmissionSettings) -> int:
    """Advice for the client: when what stands before it now will be done."""
    return min(max(late_ns, RETRY_AFTER_MIN_NS), settings.retry_after_max_ns)
