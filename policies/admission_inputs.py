"""The inputs of a decision of admission that could have been otherwise: what the request asks, what its engines are.

A request's deadline is its arrival plus its TTFT limit, so they move together. Had it waited less, it would have
arrived later, with the same limits.
"""

import copy
from typing import Any

from msgspec.structs import replace

from events.base import NS_PER_S, EngineId, Event, RequestId, RequestKind
from events.decisions import RequestPreempted, WakeAsked
from events.request import RequestArrived
from policies import waiting
from policies.accounts import Account
from policies.admission_state import State, desk_of
from policies.judgement import holding
from policies.levers import ENGINE, REQUEST, Lever
from policies.waiting import Waiting

TOKENS_MAX = 10_000_000
LIMIT_MAX_NS = 86_400 * NS_PER_S
PRIORITY_MAX = 1_000
BLOCKS_MAX = 1 << 31
SEQS_MAX = 65_536
ENGINES_MAX = 4
"""Engines whose size is held against the decision: those that come into question, the first of them."""


def inputs(state: State, event: Event, now_ns: int, decision: Event) -> list[Lever]:
    """What could have been otherwise about the request that the decision is about, and about its engines."""
    one = asking(state, decision)
    if one is None:
        return []
    return [*_of_request(state, event, now_ns, one), *_of_engines(state, event, now_ns, one)]


def asking(state: State, decision: Event) -> Waiting | None:
    """The request that a decision answers: it just arrived, or waits. Of a preemption it is the one that gets the
    room, of a wake the one whose latest start is due first."""
    if isinstance(decision, WakeAsked):
        return _due_first(state)
    name = "for_request" if isinstance(decision, RequestPreempted) else "request_id"
    request_id = getattr(decision, name, None)
    return None if request_id is None else undecided(state, RequestId(request_id))


def undecided(state: State, request_id: RequestId) -> Waiting | None:
    """The request if it just arrived or waits."""
    fresh = state.fresh
    if fresh is not None and fresh.request.request_id == request_id:
        return fresh
    group = state.lines.group_of.get(request_id)
    return None if group is None else state.lines.by_group[group].entries[request_id]


def _due_first(state: State) -> Waiting | None:
    if state.fresh is not None:
        return state.fresh
    waits = [one for line in state.lines.by_group.values() for one in line.entries.values()]
    return min(waits, key=lambda one: one.until_ns, default=None)


def _of_request(state: State, event: Event, now_ns: int, one: Waiting) -> list[Lever]:
    request = one.request
    swap = _Swap(state, event, one)

    def lever(name: str, value: int, high: int, change: Any, low: int = 0) -> Lever:
        put = lambda value: swap.put(change(value))  # noqa: E731
        return Lever(REQUEST, request.request_id, name, value, put, low=low, high=high)

    levers = [
        lever("prompt_tokens", request.prompt_tokens, TOKENS_MAX, lambda v: _with_prompt(one, v), low=1),
        lever("slo_ttft_ns", request.slo_ttft_ns, LIMIT_MAX_NS, lambda v: _with_ttft(one, v)),
        lever("priority", request.priority, PRIORITY_MAX, lambda v: _with(one, priority=v), low=-PRIORITY_MAX),
    ]
    if request.kind is RequestKind.LLM:
        levers += [
            lever("tokens_max", request.tokens_max, TOKENS_MAX, lambda v: _with(one, tokens_max=v)),
            lever("slo_tpot_ns", request.slo_tpot_ns, LIMIT_MAX_NS, lambda v: _with(one, slo_tpot_ns=v)),
        ]
    waited_ns = now_ns - one.arrived_ns
    if one is not state.fresh:
        levers.append(lever("waited_ns", waited_ns, LIMIT_MAX_NS, lambda v: _shifted(one, waited_ns - v)))
    return levers


class _Swap:
    """State and event with the request replaced: copied once, on the way to it only."""

    def __init__(self, state: State, event: Event, one: Waiting) -> None:
        self._state, self._event = copy.copy(state), event
        self._fresh = one is state.fresh
        self._entries: dict[RequestId, Waiting] = {}
        if self._fresh:
            return
        group = waiting.group(one.request)
        lines = self._state.lines = copy.copy(state.lines)
        lines.by_group = dict(lines.by_group)
        line = lines.by_group[group] = copy.copy(lines.by_group[group])
        self._entries = line.entries = dict(line.entries)

    def put(self, other: Waiting) -> tuple[State, Event]:
        """With this one in its place."""
        if self._fresh:
            self._state.fresh = other
            return self._state, other.request if isinstance(self._event, RequestArrived) else self._event
        self._entries[other.request.request_id] = other
        return self._state, self._event


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
        levers.append(_of_engine(state, event, account, "kv_blocks", account.kv_blocks, BLOCKS_MAX))
        levers.append(_of_engine(state, event, account, "seqs_max", account.seqs_max, SEQS_MAX))
        if not isinstance(found, list):
            tokens = account.context_tokens_max
            levers.append(_of_engine(state, event, account, "context_tokens_max", tokens, TOKENS_MAX))
    return levers


def _of_engine(state: State, event: Event, account: Account, name: str, value: int, high: int) -> Lever:
    def put(other: int) -> tuple[State, Event]:
        return _with_account(state, account.engine_id, name, other), event

    return Lever(ENGINE, account.engine_id, name, value, put, low=1, high=high)


def _with_account(state: State, engine_id: EngineId, name: str, value: int) -> State:
    other = copy.copy(state)
    account = copy.copy(state.accounts[engine_id])
    setattr(account, name, value)
    other.accounts = {**state.accounts, engine_id: account}
    return other
