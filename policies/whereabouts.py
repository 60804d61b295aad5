"""What admission knows, and where each request is: just arrived, waiting, running on an engine or parked on one.

A request is in one place at a time, and nowhere after its end. What it holds moves with it: the account of its engine,
its tenant's book, its line. Facts and decisions (`policies.admission_state`) change places by what stands here only.
"""

import msgspec

from events.base import EngineId, HolderId, RequestId
from events.decisions import SharesSet
from events.request import RequestArrived
from policies import accounts, sessions, tenancy, waiting
from policies.accounts import Account, Resident
from policies.admission_settings import AdmissionSettings
from policies.holders import Holders
from policies.ordering import Ordering
from policies.predictors.output_length import Outputs
from policies.sessions import Sessions
from policies.tenancy import Tenants
from policies.tier_index import TierIndex
from policies.waiting import Lines, Waiting


class State(msgspec.Struct, kw_only=True):
    """All that admission knows. Bounded by engines x sequences, `queue_max`, and the limits of its parts; in mode
    `observe` by what the holders let in.

    `running` says where each admitted request is, `parked_on` where each preempted one is that goes on only there.
    `fresh` is the request that just arrived and is not decided yet.
    `lost_on` is the engine that a request was lost on, until it is offered again. `turns` counts placements by line.
    `woken_ns` is the last wake asked for. `unregistered` are engines that reported slices before they were registered.
    """

    settings: AdmissionSettings = msgspec.field(default_factory=AdmissionSettings)
    accounts: dict[EngineId, Account] = msgspec.field(default_factory=dict)
    running: dict[RequestId, EngineId] = msgspec.field(default_factory=dict)
    parked_on: dict[RequestId, EngineId] = msgspec.field(default_factory=dict)
    tenants: Tenants = msgspec.field(default_factory=Tenants)
    pool_shares: SharesSet | None = None
    sessions: Sessions = msgspec.field(default_factory=Sessions)
    lines: Lines = msgspec.field(default_factory=Lines)
    ordering: Ordering = msgspec.field(default_factory=Ordering)
    fresh: Waiting | None = None
    lost_on: dict[RequestId, EngineId] = msgspec.field(default_factory=dict)
    outputs: Outputs = msgspec.field(default_factory=Outputs)
    holders: Holders = msgspec.field(default_factory=Holders)
    turns: dict[str, int] = msgspec.field(default_factory=dict)
    woken_ns: int = 0
    unregistered: dict[EngineId, TierIndex] = msgspec.field(default_factory=dict)


def hold(state: State, account: Account, request_id: RequestId, sent: Resident) -> None:
    """It runs there from now on, at its tenant's cost."""
    accounts.hold(account, request_id, sent)
    state.running[request_id] = account.engine_id
    charge(state, account, sent)


def charge(state: State, account: Account, sent: Resident) -> None:
    """Its tenant's book says what it is promised now."""
    wanted = accounts.bytes_of(account, sent)
    tenancy.charge(state.tenants, sent.request.tenant, wanted - sent.bytes_charged)
    sent.bytes_charged = wanted


def release(state: State, request_id: RequestId, now_ns: int) -> tuple[Account, Resident]:
    """It holds nothing any more on the engine where it was, and its tenant is refunded."""
    account = state.accounts[state.running.pop(request_id)]
    sent = accounts.release(account, request_id, now_ns)
    tenancy.charge(state.tenants, sent.request.tenant, -sent.bytes_charged)
    sent.bytes_charged = 0
    return account, sent


def park(state: State, account: Account, one: Waiting) -> None:
    """It waits on that engine, and goes on only there."""
    account.parked[one.request.request_id] = one
    state.parked_on[one.request.request_id] = account.engine_id


def unpark(state: State, request_id: RequestId) -> Waiting:
    """It is parked no more."""
    return state.accounts[state.parked_on.pop(request_id)].parked.pop(request_id)


def undecided(state: State, request_id: RequestId) -> Waiting | None:
    """The request if it just arrived or waits."""
    fresh = state.fresh
    if fresh is not None and fresh.request.request_id == request_id:
        return fresh
    group = state.lines.group_of.get(request_id)
    return None if group is None else state.lines.by_group[group].entries[request_id]


def account_of(state: State, request_id: RequestId) -> Account | None:
    """The engine that it runs on; None when it runs on none."""
    engine_id = state.running.get(request_id)
    return None if engine_id is None else state.accounts[engine_id]


def forget(state: State, request_id: RequestId, now_ns: int) -> None:
    """It ended, wherever it was."""
    if request_id in state.running:
        account, sent = release(state, request_id, now_ns)
        end_turn(state, sent.request, sent.output_tokens, now_ns)
        drop_if_gone(state, account.engine_id)
    elif request_id in state.parked_on:
        one = unpark(state, request_id)
        end_turn(state, one.request, one.output_tokens, now_ns)
        drop_if_gone(state, one.resume_on)
    elif request_id in state.lines.group_of:
        left = waiting.take(state.lines, request_id)
        assert left is not None, "who has a line waits in it"
        end_turn(state, left.request, 0, now_ns)
    elif state.fresh is not None and state.fresh.request.request_id == request_id:
        state.fresh = None


def end_turn(state: State, request: RequestArrived, output_tokens: int, now_ns: int) -> None:
    """The lease of its session runs until its next turn is due. A second time changes nothing."""
    if request.session:
        sessions.turn_ended(
            state.sessions, request, tokens=request.prompt_tokens + output_tokens, now_ns=now_ns,
            lease_max_ns=state.settings.session_lease_max_ns,
        )  # fmt: skip


def drop_if_gone(state: State, engine_id: EngineId) -> None:
    """An engine that was removed is known until the last of its requests has left it."""
    account = state.accounts[engine_id]
    if account.removed and not account.residents and not account.parked:
        del state.accounts[engine_id]


def requests_of(state: State, holder: HolderId) -> list[RequestId]:
    """What a holder holds: running first, then parked, then waiting, each in order."""
    running = [
        request_id for request_id, engine_id in state.running.items()
        if state.accounts[engine_id].residents[request_id].request.holder == holder
    ]  # fmt: skip
    parked = [
        request_id for request_id, engine_id in state.parked_on.items()
        if state.accounts[engine_id].parked[request_id].request.holder == holder
    ]  # fmt: skip
    deferred = [
        request_id for line in state.lines.by_group.values() for request_id, one in line.entries.items()
        if one.request.holder == holder
    ]  # fmt: skip
    return running + parked + deferred
