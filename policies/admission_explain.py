"""What admission looks at when it decides: plain values, for people and for reports."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import msgspec

from events.base import EngineId, Event
from events.decisions import RequestAdmitted, RequestPreempted
from events.request import RequestArrived
from policies import ordering, parking, placement, sessions, waiting
from policies.accounts import Account
from policies.admission_inputs import asking
from policies.admission_settings import Mode
from policies.admission_state import desk_of
from policies.forecast import (
    Prospect,
    alone_ns,
    backlog_ns,
    budget_blocks,
    held_tokens,
    peak_with,
    reserved_tokens,
    share_blocks,
)
from policies.judgement import (
    Admit,
    Defer,
    Desk,
    Reject,
    Ruling,
    contest,
    hindrance,
    holding,
    judge,
    lateness_ns,
    output_of,
    prefill_ns,
    ranked,
    settle,
    slack_ns,
    slot_tokens_max,
)
from policies.late_service import is_late, judge_late, or_late, too_late, wait_max_ns
from policies.predictors import output_length
from policies.predictors.kv_footprint import footprint_bytes
from policies.trial import promise, withdraw
from policies.waiting import Line, Waiting
from policies.whereabouts import State


def explain(state: State, event: Event, now_ns: int) -> dict[str, Any]:
    """The requests that `event` makes admission look at (the one that arrived, else the head of each line), each with
    the engines it could go to, what is predicted there, and the rule that decides. Changes nothing."""
    if isinstance(event, RequestArrived):
        looked_at = [state.fresh] if state.fresh is not None else []
    else:
        looked_at = [line.head() for line in state.lines.by_group.values()]
    desk = desk_of(state, now_ns)
    return {
        "now_ns": now_ns,
        "settings": msgspec.to_builtins(state.settings),
        "deferred": len(state.lines.group_of),
        "long_lane_ppm": ordering.lane_ppm(state.ordering, state.settings),
        "late_max_ns": wait_max_ns(state.ordering, state.settings),
        "requests": [_request(state, desk, one) for one in looked_at],
    }


def knew(state: State, event: Event, now_ns: int, decision: Event, before: Sequence[Event]) -> dict[str, Any]:
    """What one decision was made from: the request that it answers, and the engines with what was promised there
    earlier in the same step (`before`). Where it answers no request: all that `explain` says. Changes nothing."""
    one = asking(state, decision)
    if one is None:
        return explain(state, event, now_ns)
    desk = desk_of(state, now_ns)
    for earlier in before:
        _count(state, desk, earlier, one)
    return {
        "now_ns": now_ns,
        "settings": msgspec.to_builtins(state.settings),
        "deferred": len(state.lines.group_of),
        "long_lane_ppm": ordering.lane_ppm(state.ordering, state.settings),
        "late_max_ns": wait_max_ns(state.ordering, state.settings),
        "requests": [_request(state, desk, one)],
    }


def _count(state: State, desk: Desk, earlier: Event, one: Waiting) -> None:
    """What was decided before in the same step: it is promised, or taken off, already."""
    sent = asking(state, earlier)
    if sent is None or sent is one:
        return
    match earlier:
        case RequestAdmitted() if not earlier.resumed:
            account = state.accounts[earlier.engine_id]
            settle(desk, ranked(desk, sent.request, [account], waiting.group(sent.request))[0])
        case RequestAdmitted():
            trial = desk.trial(state.accounts[earlier.engine_id])
            promise(trial, parking.resident_again(
                trial, sent, reserved=earlier.output_tokens_predicted, cached=earlier.cached_tokens_predicted,
                now_ns=desk.now_ns,
            ))  # fmt: skip
            trial.resumed[earlier.request_id] = None
        case RequestPreempted():
            account = state.accounts[earlier.engine_id]
            withdraw(desk.trial(account), {earlier.request_id: account.residents[earlier.request_id]})
        case _:
            pass


def _request(state: State, desk: Desk, one: Waiting) -> dict[str, Any]:
    request = one.request
    line = state.lines.by_group.get(waiting.line_name(one))
    order, rule = _order(desk, one)
    scores = _scores(desk, one, order)
    seen = {
        prospect.trial.account.engine_id: _candidate(desk, prospect)
        | {"rank": rank, "score": scores[prospect.trial.account.engine_id]}
        for rank, prospect in enumerate(order)
    }
    foretold = order[0].foretold if order else output_of(desk.outputs, desk.settings, request)
    return {
        "request_id": request.request_id,
        "prompt_tokens": request.prompt_tokens,
        "priority": request.priority,
        "deadline_ns": request.deadline_ns,
        "slack_ns": request.deadline_ns - desk.now_ns,
        "predictor": foretold.predictor,
        "output_tokens_low": foretold.low,
        "output_tokens_expected": foretold.expected,
        "output_tokens_high": foretold.high,
        "predictors": output_length.calibrated(desk.outputs),
        "requests_before": _before(state, line, one) if line is not None else 0,
        "work_before_ns": line.work_ns if line is not None else 0,
        "passed": one.passed,
        "preemptions": one.preemptions,
        "tenant": request.tenant,
        "tenant_bytes_held": desk.tenants.held.get(request.tenant, 0),
        "tenant_bytes_max": desk.tenants.quota.get(request.tenant, 0),
        "session": request.session,
        "session_has_slot": sessions.key_of(request) in desk.sessions.leases,
        "session_tokens_active": desk.sessions.tokens.get(request.model, 0) + desk.session_tokens.get(request.model, 0),
        "session_tokens_max": slot_tokens_max(desk, request),
        "rule": rule,
        "engines": [
            _account(desk, account) | seen.get(account.engine_id, {"candidate": False})
            for account in desk.accounts.values()
        ],
    }


def _order(desk: Desk, one: Waiting) -> tuple[list[Prospect], dict[str, Any]]:
    """The engines that it could go to, best first, and what would be said if nobody stood before it."""
    if one.resume_on:
        trial = desk.trial(desk.accounts[one.resume_on])
        made = one.output_tokens
        foretold = output_of(desk.outputs, desk.settings, one.request, so_far=made, key=one.foretold.key)
        prospect = parking.going_on(trial, one, foretold=foretold, now_ns=desk.now_ns)
        goes = parking.fits(prospect, desk.settings)
        return [prospect], {"would": "resume" if goes else "park", "engine_id": one.resume_on, "reason": ""}
    found = holding(desk, one.request, one.avoid)
    if isinstance(found, Reject):
        return [], _rule(found)
    order = ranked(desk, one.request, found, waiting.group(one.request))
    return order, _rule(_ruling(desk, one, order))


def _ruling(desk: Desk, one: Waiting, order: list[Prospect]) -> Ruling:
    """What is said to one that these engines could hold, best first."""
    if desk.settings.mode is Mode.OBSERVE:
        return judge(desk, order)
    if 0 < one.until_ns <= desk.now_ns:
        return too_late(desk, one)
    if is_late(one):
        return judge_late(desk, one, order)
    return or_late(desk, one, judge(desk, order), work_ns=prefill_ns(order))


def _scores(desk: Desk, one: Waiting, order: list[Prospect]) -> dict[EngineId, int]:
    """What the placement gives each engine, at most a million; the greatest comes first."""
    if not order:
        return {}
    in_place = [
        prospect for account in desk.accounts.values() for prospect in order if prospect.trial.account is account
    ]
    candidates, asked = contest(desk, one.request, in_place, waiting.group(one.request))
    score = placement.KINDS[desk.settings.placement]
    return {candidate.engine_id: score(candidate, asked) for candidate in candidates}


def _before(state: State, line: Line, one: Waiting) -> int:
    """How many of its line stand before it in the strategy's order; one that just arrived stands where its key says."""
    if one is not state.fresh:
        return bisect_left(line.order, waiting.place(one))
    key = ordering.rule_of(state.ordering, state.settings).key(one)
    return bisect_left(line.order, key, key=lambda place: place[0])


def _rule(verdict: Ruling) -> dict[str, Any]:
    """The verdict if nobody stood before it."""
    match verdict:
        case Admit():
            return {"would": "admit", "engine_id": verdict.prospect.trial.account.engine_id, "reason": ""}
        case Defer():
            return {"would": "defer", "reason": verdict.reason.value, "until_ns": verdict.until_ns}
        case Reject():
            return {"would": "reject", "reason": verdict.reason.value, "retry_after_ns": verdict.retry_after_ns}


def _account(desk: Desk, account: Account) -> dict[str, Any]:
    """An engine, whoever asks."""
    load = desk.trial(account).load
    return {
        "engine_id": account.engine_id,
        "health": account.health.value,
        "takes_work": account.takes_work(),
        "seqs": load.seqs,
        "seqs_max": account.seqs_max,
        "parked": len(account.parked),
        "blocks_held": load.blocks_held,
        "blocks_reserved": load.blocks_final,
        "blocks_embedding": load.embedding_blocks,
        "blocks_foreign": account.foreign_blocks,
        "budget_blocks": budget_blocks(account, desk.settings),
        "llm_share_ppm": account.llm_ppm,
        "embedding_share_ppm": account.embedding_ppm,
    }


def _candidate(desk: Desk, one: Prospect) -> dict[str, Any]:
    """The request on an engine."""
    settings, now_ns, account = desk.settings, desk.now_ns, one.trial.account
    why = hindrance(desk, one)
    new_bytes = footprint_bytes(
        one.foretold.interval, prompt_tokens=held_tokens(account, one.request), cached_tokens=one.cached_tokens,
        block_tokens=account.block_tokens, block_bytes=account.block_bytes,
    )  # fmt: skip
    return {
        "candidate": True,
        "kv_bytes_low": new_bytes.low,
        "kv_bytes_expected": new_bytes.expected,
        "kv_bytes_high": new_bytes.high,
        "cached_tokens": one.cached_tokens,
        "load_ns": one.load_ns,
        "output_tokens": reserved_tokens(one, settings),
        "peak_blocks": peak_with(one, settings),
        "share_blocks": share_blocks(account, one.request.kind, settings),
        "judged": one.judged,
        "backlog_ns": backlog_ns(one.trial, now_ns),
        "ttft_ns": one.ttft_ns,
        "ttft_idle_ns": alone_ns(one),
        "slack_ns": slack_ns(one, now_ns),
        "late_ns": max(0, lateness_ns(one, settings, now_ns)),
        "blocked": why.value if why else "",
    }
