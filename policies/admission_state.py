"""What admission knows, and how facts and decisions change it.

What is known of a request is dropped when it ends; the same id after that is a new request. A holder's silence is
counted by ticks. An engine that is lost keeps its residents in the books until their holders say that they ended.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from events.base import EngineId, Event, HolderId, RequestId
from events.control import Ticked
from events.decisions import HolderLost, RequestAdmitted, RequestDeferred, RequestRejected, WakeAsked
from events.engine import EngineHealthChanged, EngineMeasured, EngineRegistered, EngineRemoved
from events.request import (
    AbortReason,
    FirstTokenSeen,
    HolderBeat,
    HolderStopped,
    RequestAborted,
    RequestArrived,
    RequestExpired,
    RequestFinished,
)
from policies import accounts, holders, prefix_index, settings, waiting
from policies.accounts import Account, Resident
from policies.admission_settings import AdmissionSettings
from policies.forecast import longest_output, trial_of
from policies.holders import Holders
from policies.judgement import resident
from policies.predictors import output_length
from policies.predictors.output_length import Histograms
from policies.waiting import Lines, Waiting

LOST_MAX = 1_024
"""Requests remembered as lost on an engine until they are offered again."""
OVERDUE_MAX = 16
"""Requests per engine and tick that are dropped for being there too long."""


class State(msgspec.Struct, kw_only=True):
    """All that admission knows. Bounded by engines x sequences, `queue_max`, and the limits of its parts; in mode
    `observe` by what the holders let in.

    `running` says where each admitted request is. `fresh` is the request that just arrived and is not decided yet.
    `lost_on` is the engine that a request was lost on, until it is offered again. `turns` counts placements by line.
    `woken_ns` is the last wake asked for.
    """

    settings: AdmissionSettings = msgspec.field(default_factory=AdmissionSettings)
    accounts: dict[EngineId, Account] = msgspec.field(default_factory=dict)
    running: dict[RequestId, EngineId] = msgspec.field(default_factory=dict)
    lines: Lines = msgspec.field(default_factory=Lines)
    fresh: Waiting | None = None
    lost_on: dict[RequestId, EngineId] = msgspec.field(default_factory=dict)
    histograms: Histograms = msgspec.field(default_factory=dict)
    holders: Holders = msgspec.field(default_factory=Holders)
    turns: dict[str, int] = msgspec.field(default_factory=dict)
    woken_ns: int = 0


def initial() -> State:
    """Before the first record."""
    return State()


def configure(state: State, changes: Mapping[str, Any]) -> None:
    """Change the named settings, all or none. ValueError names key, value and what is allowed."""
    settings.apply("admission", state.settings, changes)


def evolve(state: State, event: Event, now_ns: int) -> None:  # noqa: C901
    """Take one fact or decision in."""
    match event:
        case RequestArrived():
            _arrived(state, event, now_ns)
        case RequestAdmitted():
            _admitted(state, event, now_ns)
        case RequestDeferred():
            _deferred(state, event)
        case RequestRejected() | RequestExpired():
            _forget(state, event.request_id, now_ns)
        case FirstTokenSeen():
            _first_token(state, event, now_ns)
        case RequestFinished():
            _finished(state, event, now_ns)
        case RequestAborted():
            _aborted(state, event, now_ns)
        case HolderBeat():
            _beat(state, event, now_ns)
        case HolderStopped():
            _end_holder(state, event.holder, requests_of(state, event.holder), now_ns)
        case HolderLost():
            _end_holder(state, event.holder, event.requests, now_ns)
        case EngineRegistered():
            account = state.accounts.setdefault(event.engine_id, Account(engine_id=event.engine_id))
            accounts.describe(account, event)
        case EngineRemoved() if event.engine_id in state.accounts:
            state.accounts[event.engine_id].removed = True
            _drop_if_gone(state, event.engine_id)
        case EngineHealthChanged() if event.engine_id in state.accounts:
            accounts.change_health(state.accounts[event.engine_id], event.health)
        case EngineMeasured() if event.engine_id in state.accounts:
            accounts.measure(state.accounts[event.engine_id], event)
        case Ticked():
            _ticked(state, now_ns)
        case WakeAsked():
            state.woken_ns = event.at_ns
        case _:
            pass


def _arrived(state: State, event: RequestArrived, now_ns: int) -> None:
    for account in state.accounts.values():
        accounts.presume_first_tokens(account, now_ns)
    holders.hear(state.holders, event.holder)
    state.fresh = None
    if event.request_id in state.running or event.request_id in state.lines.group_of:
        return  # Said twice.
    avoid = state.lost_on.pop(event.request_id, EngineId(""))
    state.fresh = Waiting(request=event, avoid=avoid, arrived_ns=now_ns)


def _admitted(state: State, event: RequestAdmitted, now_ns: int) -> None:
    one, account = _undecided(state, event.request_id), state.accounts.get(event.engine_id)
    if one is None or account is None:
        return
    request, group = one.request, waiting.group(one.request)
    waiting.note_admitted(state.lines, request)
    if waiting.take(state.lines, request.request_id) is None:
        state.fresh = None
    state.turns[group] = state.turns.get(group, 0) + 1
    sent = resident(
        state.histograms, state.settings, trial_of(account), request,
        event.cached_tokens_predicted, event.output_tokens_predicted, now_ns,
    )  # fmt: skip
    accounts.hold(account, request.request_id, sent)
    state.running[request.request_id] = event.engine_id
    prefix_index.touch(
        account.prefix, request.slices[: request.prompt_tokens // request.slice_tokens],
        slice_tokens=request.slice_tokens, tokens_max=accounts.kv_tokens(account),
    )  # fmt: skip


def _deferred(state: State, event: RequestDeferred) -> None:
    one = _undecided(state, event.request_id)
    if one is not None and one is state.fresh:
        one.until_ns, one.work_ns = event.until_ns, event.work_ns
        waiting.put(state.lines, one)
        state.fresh = None


def _undecided(state: State, request_id: RequestId) -> Waiting | None:
    """The request if it just arrived or waits."""
    fresh = state.fresh
    if fresh is not None and fresh.request.request_id == request_id:
        return fresh
    group = state.lines.group_of.get(request_id)
    return None if group is None else state.lines.by_group[group].entries[request_id]


def _first_token(state: State, event: FirstTokenSeen, now_ns: int) -> None:
    account = _account_of(state, event.request_id)
    if account is not None:
        holders.hear(state.holders, account.residents[event.request_id].holder)
        accounts.first_token(account, event.request_id, now_ns)
        accounts.presume_first_tokens(account, now_ns)


def _finished(state: State, event: RequestFinished, now_ns: int) -> None:
    account = _account_of(state, event.request_id)
    if account is not None:
        sent = account.residents[event.request_id]
        if sent.decodes:
            output_length.observe(state.histograms, sent.history, event.output_tokens)
        else:
            accounts.first_token(account, event.request_id, now_ns)
        holders.hear(state.holders, sent.holder)
    _forget(state, event.request_id, now_ns)


def _aborted(state: State, event: RequestAborted, now_ns: int) -> None:
    engine_id = state.running.get(event.request_id)
    _forget(state, event.request_id, now_ns)
    if engine_id is None or event.reason is not AbortReason.ENGINE_LOST:
        return  # Who runs nothing there cannot know.
    account = state.accounts.get(engine_id)
    if account is not None:
        account.suspect = True
    if not event.final:
        state.lost_on[event.request_id] = engine_id
        if len(state.lost_on) > LOST_MAX:
            del state.lost_on[next(iter(state.lost_on))]


def _account_of(state: State, request_id: RequestId) -> Account | None:
    engine_id = state.running.get(request_id)
    return None if engine_id is None else state.accounts[engine_id]


def _forget(state: State, request_id: RequestId, now_ns: int) -> None:
    """It ended, wherever it was."""
    engine_id = state.running.pop(request_id, None)
    if engine_id is not None:
        accounts.release(state.accounts[engine_id], request_id, now_ns)
        _drop_if_gone(state, engine_id)
    elif waiting.take(state.lines, request_id) is None:
        fresh = state.fresh
        if fresh is not None and fresh.request.request_id == request_id:
            state.fresh = None


def _drop_if_gone(state: State, engine_id: EngineId) -> None:
    account = state.accounts[engine_id]
    if account.removed and not account.residents:
        del state.accounts[engine_id]


def _beat(state: State, event: HolderBeat, now_ns: int) -> None:
    heard = holders.hear(state.holders, event.holder)
    if event.epoch and heard.epoch != event.epoch and (not heard.epoch or not requests_of(state, event.holder)):
        heard.epoch = event.epoch  # Else `decide` sees another epoch, and what it held before is lost.
    for one in event.progress:
        account = _account_of(state, one.request_id)
        if account is None:
            continue
        accounts.progressed(account, one.request_id, one.output_tokens, now_ns)
        sent = account.residents[one.request_id]
        if sent.decodes and sent.output_tokens >= sent.output_reserved:
            accounts.reserve(account, one.request_id, _longer(state, account, sent))


def _longer(state: State, account: Account, sent: Resident) -> int:
    """What to promise a request that reached its reserved length and still runs: no more than the engine can hold."""
    longer = output_length.predict(
        state.histograms, sent.history, quantile_ppm=state.settings.output_quantile_ppm, tokens_max=sent.tokens_max,
        default=state.settings.output_tokens_default, so_far=sent.output_tokens,
    )  # fmt: skip
    return max(sent.output_tokens + 1, min(longer, longest_output(account, sent.prompt_tokens, state.settings)))


def _end_holder(state: State, holder: HolderId, ended: Sequence[RequestId], now_ns: int) -> None:
    """These requests of it end; it is forgotten with its last one."""
    for request_id in ended:
        _forget(state, request_id, now_ns)
    if not requests_of(state, holder):
        state.holders.heard.pop(holder, None)


def requests_of(state: State, holder: HolderId) -> list[RequestId]:
    """What a holder holds: running first, then waiting, each in order."""
    running = [
        request_id for request_id, engine_id in state.running.items()
        if state.accounts[engine_id].residents[request_id].holder == holder
    ]  # fmt: skip
    deferred = [
        request_id for line in state.lines.by_group.values() for request_id, one in line.entries.items()
        if one.request.holder == holder
    ]  # fmt: skip
    return running + deferred


def _ticked(state: State, now_ns: int) -> None:
    holders.tick(state.holders, now_ns)
    for holder in holders.silent(state.holders, state.settings.holder_timeout_ns):
        if not requests_of(state, holder):
            del state.holders.heard[holder]  # Nothing of it is left: no need to say so.
    for account in list(state.accounts.values()):
        accounts.presume_first_tokens(account, now_ns)
        # In the order in which they were admitted, so the first young one ends the search.
        for request_id, sent in list(islice(account.residents.items(), OVERDUE_MAX)):
            if sent.admitted_ns > now_ns - state.settings.request_max_ns:
                break
            _forget(state, request_id, now_ns)
