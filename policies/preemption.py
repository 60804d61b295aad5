"""Who makes room for a more urgent request, and whether that pays. The fourth verdict of admission: PREEMPT.

Preempted work is computed again, so it is the last resort. In plain words, for a request that was deferred or refused:

1. It is asked for only where waiting would let the request miss its deadline: it is refused as too late, or it lacks
   memory or a sequence and, as far as can be predicted, enough of what runs will not have ended by its latest start.
   Room that others wait for already when it arrives is not room for it.
2. Victims have a lower priority. With `preemption` = slack also those of the same priority that wait inside an engine
   for their first token and keep their own deadline when they wait behind this one.
3. Only what `policies.memory.victims` allows, which protects answers that are nearly complete, those that were
   preempted `preemptions_max` times, and tenants that hold little. With a first token only where the engine can
   preempt; without one where it can abort, and nobody has seen a part of the answer.
4. It is done only if the request then fits that engine and is predicted to be in time there. Else nothing is done:
   nobody is preempted in vain.

What can be looked at is bounded: ENGINES_MAX engines in the placement's order, the CANDIDATES_MAX newest of the less
urgent on each (they have lost least), and one request per record.

Example: priority 0 fills the engine and will for 5 s. A request of priority 1 with 2 s of slack takes the place of the
newest of them; one with 8 s of slack waits.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from events.base import NS_PER_S, PPM, RequestId, RequestKind
from events.decisions import DeferReason, RejectReason
from events.request import RequestArrived
from policies import waiting
from policies.accounts import Account, Resident, blocks, has_begun
from policies.admission_settings import Preemption
from policies.forecast import (
    Prospect,
    alone_ns,
    backlog_ns,
    blocked,
    blocks_wanted,
    budget_blocks,
    expected_tokens,
    llm_peak,
    prospect,
    room_blocks,
    share_is_set,
    tokens_now,
)
from policies.judgement import (
    Admit,
    Defer,
    Desk,
    Preempt,
    Reject,
    Ruling,
    Verdict,
    above_quota,
    lateness_ns,
    ranked,
    slack_ns,
    with_margin,
)
from policies.memory.victims import CannotFree, Running, Urgent, choose
from policies.predictors.step_time import step_ns
from policies.predictors.ttft import NOMINAL, prefill_pairs, work_ns
from policies.trial import Trial, without
from policies.waiting import Waiting

ENGINES_MAX = 2
CANDIDATES_MAX = 64
TRIES_MAX = 3
"""Times that more is asked for on one engine, when what was chosen first is not enough."""
NO_PACE_NS = 3_600 * NS_PER_S
"""Slack of a running answer without a TPOT limit: nothing makes it late."""
_ROOM = (DeferReason.KV_BUDGET, DeferReason.SHARE, DeferReason.SEQS_MAX, DeferReason.BEHIND_OTHERS)


def or_room(
    desk: Desk, one: Waiting, ruling: Ruling, accounts: Sequence[Account], *, others_wait: bool = False
) -> Verdict:
    """The ruling, or who makes room for the request on one of these engines, which could hold it. Changes nothing but
    what is left of `preempts_left`."""
    if not _may_ask(desk, ruling):
        return ruling
    some = [account for account in accounts if _less_urgent_there(desk, account, one.request)]
    if not some:
        return ruling
    desk.preempts_left -= 1
    there = ranked(desk, one.request, some, waiting.group(one.request))[:ENGINES_MAX]
    if isinstance(ruling, Defer) and not others_wait:
        left_ns = ruling.until_ns - desk.now_ns
        if any(room_ns(desk, each) <= left_ns for each in there):
            return ruling
    for each in there:
        preempt = _on_engine(desk, each)
        if preempt is not None:
            return preempt
    return ruling


def may_make_room(desk: Desk, request: RequestArrived, accounts: Iterable[Account]) -> bool:
    """At a glance: whether anybody there could have to make room for the request, whatever is said to it."""
    return _is_possible(desk) and any(_less_urgent_there(desk, account, request) for account in accounts)


def _is_possible(desk: Desk) -> bool:
    return desk.settings.preemption is not Preemption.OFF and desk.preempts_left > 0


def _may_ask(desk: Desk, ruling: Ruling) -> bool:
    if not _is_possible(desk):
        return False
    match ruling:
        case Defer():
            return ruling.reason in _ROOM
        case Reject():
            return ruling.reason is RejectReason.SLO_INFEASIBLE and ruling.retry_after_ns > 0
        case Admit():
            return False


def _less_urgent_there(desk: Desk, account: Account, request: RequestArrived) -> bool:
    """At a glance: whether anybody there could be less urgent."""
    if not account.priorities:
        return False
    least = min(account.priorities)
    if least < request.priority:
        return True
    return desk.settings.preemption is Preemption.SLACK and least == request.priority and len(account.prefilling) > 0


def room_ns(desk: Desk, one: Prospect) -> int:
    """How long until enough of what runs there has probably ended for the request to fit, at the pace of now."""
    trial = one.trial
    step_now_ns = _step_now_ns(trial)
    short = max(1, _short_blocks(desk, one)) if trial.account.kv_blocks else 1
    line_ns = backlog_ns(trial, desk.now_ns)
    ends = sorted(
        (
            (expected_tokens(each) - tokens_now(each, step_now_ns, desk.now_ns)) * step_now_ns
            + (line_ns if each.prefilling else 0),
            _blocks_final(trial.account, each),
        )
        for each in trial.residents()
    )
    for left_ns, freed in ends:
        short -= freed
        if short <= 0:
            return max(1, left_ns)
    return NO_PACE_NS


def _short_blocks(desk: Desk, one: Prospect) -> int:
    """Blocks that are missing there for the request, by its share and by the budget (not above 0: none)."""
    account, load, kind = one.trial.account, one.trial.load, one.request.kind
    peak, embedding = llm_peak(one, desk.settings), load.embedding_blocks
    if kind is RequestKind.EMBEDDING:
        embedding += blocks_wanted(one, desk.settings)
    alike = peak if kind is RequestKind.LLM else embedding
    return max(
        peak + embedding - budget_blocks(account, desk.settings),
        alike - room_blocks(account, kind, desk.settings),
    )


def _on_engine(desk: Desk, one: Prospect) -> Preempt | None:
    """The victims on this engine after which the request fits there and is in time; None = there are none."""
    settings, trial = desk.settings, one.trial
    if above_quota(desk, one) or _could_go(one, desk):
        return None
    running = [
        _running(desk, trial, request_id, resident)
        for request_id, resident in islice(_candidates(desk, trial, one), CANDIDATES_MAX)
    ]  # fmt: skip
    urgent = Urgent(
        priority=one.request.priority,
        slack_ns=one.request.deadline_ns - desk.now_ns - with_margin(alone_ns(one), settings),
    )
    need = max(1, _short_blocks(desk, one)) if trial.account.kv_blocks else 1
    for _ in range(TRIES_MAX):
        chosen = choose(
            running, need_blocks=need, urgent=urgent, protect_ppm=settings.protect_ppm,
            can_preempt=trial.account.can_preempt, preempted_max=settings.preemptions_max,
            victims_max=settings.preempt_victims_max,
        )  # fmt: skip
        if isinstance(chosen, CannotFree):
            return None
        victims = {row.request_id: trial.account.residents[row.request_id] for row in chosen.victims}
        after = prospect(without(trial, victims), one.request, foretold=one.foretold, now_ns=desk.now_ns)
        if _could_go(after, desk):
            return Preempt(victims, Admit(after, slack_ns(after, desk.now_ns)))
        need = chosen.blocks_freed + 1
    return None


def _could_go(one: Prospect, desk: Desk) -> bool:
    """Whether it fits there, and is in time."""
    settings, now_ns = desk.settings, desk.now_ns
    return lateness_ns(one, settings, now_ns) <= 0 and blocked(one, settings, now_ns) is None


def _candidates(desk: Desk, trial: Trial, one: Prospect) -> Iterator[tuple[RequestId, Resident]]:
    """Who could make room at all, the newest first. Where shares are set, another kind's memory is of no use."""
    account, request = trial.account, one.request
    shared = share_is_set(account)
    for request_id, resident in reversed(account.residents.items()):
        priority = resident.request.priority
        if priority > request.priority or request_id in trial.withdrawn:
            continue
        if priority == request.priority and not _waits_behind(desk, trial, request_id, resident, one):
            continue
        if shared and resident.request.kind is not request.kind:
            continue
        if has_begun(resident):
            # An answer in one piece whose prefill is presumed to be over: nobody knows how far it is.
            if account.can_preempt and resident.decodes and resident.request.stream:
                yield request_id, resident
        elif account.can_abort:
            yield request_id, resident


def _waits_behind(desk: Desk, trial: Trial, request_id: RequestId, resident: Resident, one: Prospect) -> bool:
    """Whether it has no first token, and keeps its deadline when it starts anew behind the request."""
    if desk.settings.preemption is not Preemption.SLACK or has_begun(resident):
        return False
    row = _running(desk, trial, request_id, resident)
    return row.slack_ns - row.lost_ns > with_margin(alone_ns(one), desk.settings)


def _running(desk: Desk, trial: Trial, request_id: RequestId, resident: Resident) -> Running:
    """The resident as victims are chosen by: what it would lose, and what it has left."""
    account, request = trial.account, resident.request
    step_now_ns = _step_now_ns(trial)
    tokens = tokens_now(resident, step_now_ns, desk.now_ns)
    if has_begun(resident):
        expected = expected_tokens(resident)
        lost_ns = _work_ns(trial, tokens=resident.prompt_tokens + tokens, cached=0)
        slack_ns = NO_PACE_NS
        if request.slo_tpot_ns:
            since_ns = desk.now_ns - (resident.token_ns or resident.first_ns)
            slack_ns = request.slo_tpot_ns * (expected - 1) - since_ns - (expected - tokens) * step_now_ns
    else:
        expected = max(1, resident.output_expected)
        alone = with_margin(_work_ns(trial, tokens=resident.uncached_tokens, cached=0), desk.settings)
        at_turn = next(iter(account.prefilling), None) == request_id
        lost_ns = min(alone, max(0, desk.now_ns - account.head_since_ns)) if at_turn else 0
        slack_ns = request.deadline_ns - desk.now_ns - alone + lost_ns
    return Running(
        request_id=request_id, tenant=request.tenant, priority=request.priority, slack_ns=slack_ns,
        tokens_done=tokens, tokens_expected=expected, blocks_freed=_blocks_final(account, resident), lost_ns=lost_ns,
        first_token=has_begun(resident), preempted=resident.preemptions,
    )  # fmt: skip


def _blocks_final(account: Account, resident: Resident) -> int:
    """What it is promised there: what its leaving gives back."""
    return max(1, blocks(account, resident.prompt_tokens + max(resident.output_reserved, resident.output_tokens)))


def _step_now_ns(trial: Trial) -> int:
    """A decode step of what is there now."""
    load = trial.load
    seqs = max(load.decode_seqs, 1)
    return max(1, step_ns(trial.account.step or NOMINAL, tokens=seqs, context=load.decode_context, seqs=seqs))


def _work_ns(trial: Trial, *, tokens: int, cached: int) -> int:
    """Prefill of that many tokens there, corrected."""
    account = trial.account
    raw_ns = work_ns(
        account.step or NOMINAL, tokens=max(tokens, 1), pairs=prefill_pairs(prompt=tokens + cached, cached=cached),
        batch_tokens=account.batch_tokens, context=0, seqs=0,
    )  # fmt: skip
    return raw_ns * account.correction.ratio_ppm // PPM
