"""The inputs of a decision of admission that could have been otherwise: what the request asks, what its engines are.

A request's deadline is its arrival plus its TTFT limit, so they move together. Had it waited less, it would have
arrived later, with the same limits. One that waits takes the place in its line that its other values give it.
"""

import copy
from bisect import insort
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from events.base import NS_PER_S, EngineId, Event, RequestId, RequestKind
from events.decisions import RequestPreempted, WakeAsked
from events.request import RequestArrived
from policies import ordering, waiting
from policies.accounts import Account
from policies.admission_state import desk_of
from policies.judgement import holding
from policies.levers import ENGINE, REQUEST, Lever, with_settings
from policies.waiting import Line, Place, Waiting
from policies.whereabouts import State

TIMES_MAX = 64
"""An amount is tried up to so many times what it was, and at least up to the floors below."""
TOKENS_FLOOR = 4_096
LIMIT_FLOOR_NS = NS_PER_S
PRIORITY_MAX = 100
ENGINES_MAX = 4
"""Engines whose size is held against the decision: those that come into question, the first of them."""
ORDER_SETTINGS = frozenset({"strategy"})
"""Settings that what waits is sorted by already."""


def inputs(state: State, event: Event, now_ns: int, decision: Event) -> list[Lever]:
    """What could have been otherwise about the request that the decision is about, and about its engines."""
    one = asking(state, decision)
    if one is None:
        return []
    return [*_of_request(state, event, now_ns, one), *_of_engines(state, event, now_ns, one)]


def tuned(state: State, changes: dict[str, Any]) -> State:
    """The state with other settings, and with its lines sorted by them."""
    other = with_settings(state, changes)
    if not ORDER_SETTINGS & changes.keys():
        return other
    key = ordering.rule_of(other.ordering, other.settings).key
    other.lines = copy.copy(state.lines)
    other.lines.by_group = {
        name: Line({request_id: copy.copy(one) for request_id, one in line.entries.items()}, [], line.work_ns)
        for name, line in state.lines.by_group.items()
    }
    waiting.reorder(other.lines, key)
    return other


def asking(state: State, decision: Event) -> Waiting | None:
    """The request that a decision answers: it just arrived, waits, or is parked. Of a preemption it is the one that
    gets the room, of a wake the one whose latest start it is asked for."""
    if isinstance(decision, WakeAsked):
        return _due_at(state, decision.at_ns)
    name = "for_request" if isinstance(decision, RequestPreempted) else "request_id"
    request_id = getattr(decision, name, None)
    return None if request_id is None else _undecided(state, RequestId(request_id))


def _undecided(state: State, request_id: RequestId) -> Waiting | None:
    fresh = state.fresh
    if fresh is not None and fresh.request.request_id == request_id:
        return fresh
    if request_id in state.parked_on:
        return state.accounts[state.parked_on[request_id]].parked[request_id]
    group = state.lines.group_of.get(request_id)
    return None if group is None else state.lines.by_group[group].entries[request_id]


def _due_at(state: State, at_ns: int) -> Waiting | None:
    """Wakes are asked for at the next full step after a latest start, so it is the last of those before."""
    if state.fresh is not None:
        return state.fresh
    waits = (one for line in state.lines.by_group.values() for one in line.entries.values() if one.until_ns <= at_ns)
    return max(waits, key=lambda one: one.until_ns, default=None)


def _of_request(state: State, event: Event, now_ns: int, one: Waiting) -> list[Lever]:
    request, put = one.request, _put(state, event, one)

    def lever(name: str, value: int, floor: int, change: Callable[[int], Waiting], low: int = 0) -> Lever:
        high = max(value * TIMES_MAX, floor)
        return Lever(REQUEST, request.request_id, name, value, lambda other: put(change(other)), low=low, high=high)

    priority = Lever(
        REQUEST, request.request_id, "priority", request.priority, lambda other: put(_with(one, priority=other)),
        low=min(-PRIORITY_MAX, request.priority), high=max(PRIORITY_MAX, request.priority),
    )  # fmt: skip
    levers = [
        lever("prompt_tokens", request.prompt_tokens, TOKENS_FLOOR, lambda v: _with_prompt(one, v), low=1),
        lever("slo_ttft_ns", request.slo_ttft_ns, LIMIT_FLOOR_NS, lambda v: _with_ttft(one, v)),
        priority,
    ]
    if request.kind is RequestKind.LLM:
        levers += [
            lever("tokens_max", request.tokens_max, TOKENS_FLOOR, lambda v: _with(one, tokens_max=v)),
            lever("slo_tpot_ns", request.slo_tpot_ns, LIMIT_FLOOR_NS, lambda v: _with(one, slo_tpot_ns=v)),
        ]
    waited_ns = now_ns - one.arrived_ns
    if one is not state.fresh:
        levers.append(lever("waited_ns", waited_ns, LIMIT_FLOOR_NS, lambda v: _shifted(one, waited_ns - v)))
    return levers


def _put(state: State, event: Event, one: Waiting) -> Callable[[Waiting], tuple[State, Event]]:
    """How another request is put in the place of this one. What lies on the way to it is copied once."""
    other, request_id = copy.copy(state), one.request.request_id
    if one is state.fresh:

        def put_fresh(changed: Waiting) -> tuple[State, Event]:
            other.fresh = changed
            return other, changed.request if isinstance(event, RequestArrived) else event

        return put_fresh
    if request_id in state.parked_on:
        account = copy.copy(state.accounts[state.parked_on[request_id]])
        other.accounts = {**state.accounts, account.engine_id: account}
        account.parked = dict(account.parked)

        def put_parked(changed: Waiting) -> tuple[State, Event]:
            account.parked[request_id] = changed
            return other, event

        return put_parked
    line, rest = _line_without(other, one)
    key = ordering.rule_of(state.ordering, state.settings).key

    def put_waiting(changed: Waiting) -> tuple[State, Event]:
        changed.key = key(changed)
        line.entries[request_id], line.order = changed, list(rest)
        insort(line.order, waiting.place(changed))
        return other, event

    return put_waiting


def _line_without(state: State, one: Waiting) -> tuple[Line, list[Place]]:
    """The line of a request, on the state's own copy of the lines, and the places of the others."""
    request_id = one.request.request_id
    group = state.lines.group_of[request_id]
    state.lines = copy.copy(state.lines)
    state.lines.by_group = dict(state.lines.by_group)
    line = state.lines.by_group[group] = copy.copy(state.lines.by_group[group])
    line.entries = dict(line.entries)
    return line, [place for place in line.order if place[2] != request_id]


def _with(one: Waiting, **changes: Any) -> Waiting:
    return replace(one, request=replace(one.request, **changes))


def _with_prompt(one: Waiting, prompt_tokens: int) -> Waiting:
    """A shorter prompt has fewer full slices; of a longer one only those that it has are known."""
    full = prompt_tokens // max(one.request.slice_tokens, 1)
    return _with(one, prompt_tokens=prompt_tokens, slices=one.request.slices[:full])


def _with_ttft(one: Waiting, slo_ttft_ns: int) -> Waiting:
    later_ns, request = slo_ttft_ns - one.request.slo_ttft_ns, one.request
    other = _with(one, slo_ttft_ns=slo_ttft_ns, deadline_ns=request.deadline_ns + later_ns)
    return replace(other, until_ns=one.until_ns + later_ns)


def _shifted(one: Waiting, later_ns: int) -> Waiting:
    other = _with(one, deadline_ns=one.request.deadline_ns + later_ns)
    return replace(other, arrived_ns=one.arrived_ns + later_ns, until_ns=one.until_ns + later_ns)


def _of_engines(state: State, event: Event, now_ns: int, one: Waiting) -> list[Lever]:
    found = holding(desk_of(state, now_ns), one.request, one.avoid)
    # Where nobody can hold it, all come into question.
    accounts = found if isinstance(found, list) else list(state.accounts.values())
    levers = []
    for account in accounts[:ENGINES_MAX]:
        levers.append(_of_engine(state, event, account, "kv_blocks", account.kv_blocks))
        levers.append(_of_engine(state, event, account, "seqs_max", account.seqs_max))
        if not isinstance(found, list):
            levers.append(_of_engine(state, event, account, "context_tokens_max", account.context_tokens_max))
    return levers


def _of_engine(state: State, event: Event, account: Account, name: str, value: int) -> Lever:
    def put(other: int) -> tuple[State, Event]:
        return _with_account(state, account.engine_id, name, other), event

    return Lever(ENGINE, account.engine_id, name, value, put, low=1, high=value * TIMES_MAX)


def _with_account(state: State, engine_id: EngineId, name: str, value: int) -> State:
    other = copy.copy(state)
    account = copy.copy(state.accounts[engine_id])
    setattr(account, name, value)
    other.accounts = {**state.accounts, engine_id: account}
    return other
