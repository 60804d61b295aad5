"""What admission looks at when it decides: plain values, for people and for reports."""

from collections.abc import Sequence
from typing import Any

import msgspec

from events.base import EngineId, Event
from events.decisions import RequestAdmitted
from events.request import RequestArrived
from policies import waiting
from policies.accounts import Account
from policies.admission_inputs import asking
from policies.admission_state import State, desk_of
from policies.forecast import (
    Prospect,
    alone_ns,
    backlog_ns,
    blocked,
    budget_blocks,
    peak_with,
    reserved_tokens,
)
from policies.judgement import (
    Admit,
    Defer,
    Desk,
    Reject,
    Ruling,
    holding,
    judge,
    lateness_ns,
    ranked,
    settle,
    slack_ns,
)
from policies.waiting import Waiting


def explain(state: State, event: Event, now_ns: int) -> dict[str, Any]:
    """The requests that `event` makes admission look at (the one that arrived, else the head of each line), each with
    the engines it could go to, what is predicted there, and the rule that decides. Changes nothing."""
    if isinstance(event, RequestArrived):
        looked_at = [state.fresh] if state.fresh is not None else []
    else:
        looked_at = [next(iter(line.entries.values())) for line in state.lines.by_group.values()]
    desk = desk_of(state, now_ns)
    return {
        "now_ns": now_ns,
        "settings": msgspec.to_builtins(state.settings),
        "deferred": len(state.lines.group_of),
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
        sent = asking(state, earlier)
        if isinstance(earlier, RequestAdmitted) and sent is not None:
            account = state.accounts[earlier.engine_id]
            settle(desk, ranked(desk, sent.request, [account], waiting.group(sent.request))[0])
    return {
        "now_ns": now_ns,
        "settings": msgspec.to_builtins(state.settings),
        "deferred": len(state.lines.group_of),
        "requests": [_request(state, desk, one)],
    }


def _request(state: State, desk: Desk, one: Waiting) -> dict[str, Any]:
    request, group = one.request, waiting.group(one.request)
    line = state.lines.by_group.get(group)
    found = holding(desk, request, one.avoid)
    order = [] if isinstance(found, Reject) else ranked(desk, request, found, group)
    rank_of = {prospect.trial.account.engine_id: rank for rank, prospect in enumerate(order)}
    return {
        "request_id": request.request_id,
        "prompt_tokens": request.prompt_tokens,
        "deadline_ns": request.deadline_ns,
        "slack_ns": request.deadline_ns - desk.now_ns,
        "work_before_ns": line.work_ns if line else 0,
        "passed": one.passed,
        "rule": _rule(judge(desk, order) if not isinstance(found, Reject) else found),
        "engines": [
            _engine(desk, account, order[rank_of[engine_id]] if engine_id in rank_of else None, rank_of)
            for engine_id, account in desk.accounts.items()
        ],
    }


def _rule(verdict: Ruling) -> dict[str, Any]:
    """The verdict if nobody stood before it."""
    match verdict:
        case Admit():
            return {"would": "admit", "engine_id": verdict.prospect.trial.account.engine_id, "reason": ""}
        case Defer():
            return {"would": "defer", "reason": verdict.reason.value, "until_ns": verdict.until_ns}
        case Reject():
            return {"would": "reject", "reason": verdict.reason.value, "retry_after_ns": verdict.retry_after_ns}


def _engine(desk: Desk, account: Account, one: Prospect | None, rank_of: dict[EngineId, int]) -> dict[str, Any]:
    settings, now_ns = desk.settings, desk.now_ns
    load = desk.trial(account).load
    row: dict[str, Any] = {
        "engine_id": account.engine_id,
        "health": account.health.value,
        "takes_work": account.takes_work(),
        "candidate": one is not None,
        "seqs": load.seqs,
        "seqs_max": account.seqs_max,
        "blocks_held": load.blocks_held,
        "blocks_reserved": load.blocks_final,
        "blocks_foreign": account.foreign_blocks,
        "budget_blocks": budget_blocks(account, settings),
    }
    if one is None:
        return row
    why = blocked(one, settings, now_ns)
    return row | {
        "rank": rank_of[account.engine_id],
        "cached_tokens": one.cached_tokens,
        "output_tokens": reserved_tokens(one, settings),
        "peak_blocks": peak_with(one, settings),
        "judged": one.judged,
        "backlog_ns": backlog_ns(one.trial, now_ns),
        "ttft_ns": one.ttft_ns,
        "ttft_idle_ns": alone_ns(one),
        "slack_ns": slack_ns(one, now_ns),
        "late_ns": max(0, lateness_ns(one, settings, now_ns)),
        "blocked": why.value if why else "",
    }
