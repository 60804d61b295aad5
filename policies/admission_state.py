"""How facts and decisions change what admission knows (`policies.whereabouts`).

What is known of a request is dropped when it ends; the same id after that is a new request. A holder's silence is
counted by ticks. An engine that is lost keeps its residents in the books until their holders say that they ended.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from events.base import EngineId, Event, HolderId, RequestId, RequestKind
from events.control import Ticked
from events.decisions import (
    DeferReason,
    HolderLost,
    MiscoverageNoticed,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    SharesSet,
    TenantQuotaSet,
    WakeAsked,
)
from events.engine import EngineHealthChanged, EngineMeasured, EngineRegistered, EngineRemoved
from events.request import (
    AbortReason,
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
from events.slice import SlicesCleared, SlicesHit, SlicesRemoved, SlicesStored, TierMeasured
from policies import (
    accounts,
    holders,
    ordering,
    parking,
    placement,
    prefix_index,
    sessions,
    settings,
    slice_reports,
    tenancy,
    waiting,
)
from policies.accounts import Account
from policies.forecast import bytes_min
from policies.judgement import Desk, longer_output, output_of, resident
from policies.predictors import output_length
from policies.settings import Switch
from policies.tier_index import TierIndex
from policies.trial import trial_of
from policies.waiting import Waiting
from policies.whereabouts import (
    State,
    account_of,
    charge,
    drop_if_gone,
    end_turn,
    forget,
    hold,
    park,
    release,
    requests_of,
    undecided,
    unpark,
)

LOST_MAX = 1_024
"""Requests remembered as lost on an engine until they are offered again."""
IMPOSSIBLE = (RejectReason.NO_ENGINE, RejectReason.TOO_LONG, RejectReason.TENANT_QUOTA)
"""Refusals that no order would have spared anybody."""


def initial() -> State:
    """Before the first record."""
    return State()


def desk_of(state: State, now_ns: int) -> Desk:
    """What a decision of now looks at."""
    return Desk(
        state.accounts, state.outputs, state.turns, state.settings, state.tenants, now_ns, ordering=state.ordering,
        sessions=state.sessions, deferred=len(state.lines.group_of),
    )  # fmt: skip


def configure(state: State, changes: Mapping[str, Any]) -> None:
    """Change the named settings, all or none. ValueError names key, value and what is allowed."""
    settings.apply("admission", state.settings, changes)
    _keep_order(state)
    if state.settings.session_slots is Switch.OFF:
        sessions.clear(state.sessions)


def evolve(state: State, event: Event, now_ns: int) -> None:  # noqa: C901
    """Take one fact or decision in."""
    match event:
        case RequestArrived():
            _arrived(state, event, now_ns)
        case RequestAdmitted():
            _admitted(state, event, now_ns)
        case RequestDeferred():
            _deferred(state, event)
        case RequestPreempted():
            _preempted(state, event, now_ns)
        case RequestRejected() | RequestExpired():
            _refused(state, event)
            forget(state, event.request_id, now_ns)
        case DispatchStarted():
            _dispatched(state, event, now_ns)
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
            _registered(state, event)
        case EngineRemoved() if event.engine_id in state.accounts:
            state.accounts[event.engine_id].removed = True
            drop_if_gone(state, event.engine_id)
        case EngineHealthChanged() if event.engine_id in state.accounts:
            accounts.change_health(state.accounts[event.engine_id], event.health)
        case EngineMeasured() if event.engine_id in state.accounts:
            accounts.measure(state.accounts[event.engine_id], event)
        case SlicesStored() | SlicesRemoved() | SlicesCleared() | SlicesHit() | TierMeasured():
            slice_reports.heed(state.accounts, state.unregistered, event, now_ns)
        case Ticked():
            _ticked(state, now_ns)
        case OutputPredicted():
            output_length.heard(state.outputs, event)
        case MiscoverageNoticed():
            output_length.noticed(state.outputs, event)
        case SharesSet():
            ordering.shares_set(state.ordering, event)
            state.pool_shares = accounts.shares_set(state.accounts, state.pool_shares, event)
        case TenantQuotaSet():
            tenancy.set_quota(state.tenants, event.tenant, event.kv_bytes_max)
        case WakeAsked():
            state.woken_ns = event.at_ns
        case _:
            pass


def _arrived(state: State, event: RequestArrived, now_ns: int) -> None:
    for account in state.accounts.values():
        accounts.presume_first_tokens(account, now_ns)
    holders.hear(state.holders, event.holder)
    state.fresh = None
    known = (state.running, state.lines.group_of, state.parked_on)
    if any(event.request_id in where for where in known):
        return  # Said twice.
    avoid = state.lost_on.pop(event.request_id, EngineId(""))
    state.fresh = Waiting(request=event, avoid=avoid, arrived_ns=now_ns)
    lane = waiting.tenant_lane(event.tenant)
    if waiting.group(event) + lane in state.lines.by_group:
        state.fresh.lane = lane  # Behind those of its tenant that wait for it to have room.


def _admitted(state: State, event: RequestAdmitted, now_ns: int) -> None:
    if event.resumed:
        _resumed(state, event, now_ns)
        return
    one, account = undecided(state, event.request_id), state.accounts.get(event.engine_id)
    if one is None or account is None:
        return
    request, group = one.request, waiting.group(one.request)
    waiting.note_admitted(state.lines, one)
    if waiting.take(state.lines, request.request_id) is None:
        state.fresh = None
    placement.count_turn(state.turns, group)
    foretold = output_of(state.outputs, state.settings, request)
    output_length.sent(state.outputs, request.request_id, foretold)
    sent = resident(
        foretold, trial_of(account), request, event.cached_tokens_predicted, event.output_tokens_predicted, now_ns
    )
    sent.preemptions, sent.preempted_on = one.preemptions, one.preempted_on
    if state.settings.session_slots is Switch.ON:
        sessions.turn_began(state.sessions, request, now_ns)
    if not one.preemptions:
        served = one.lane != waiting.LATE_LANE
        ordering.decided(state.ordering, request, served=served, tokens=sent.uncached_tokens)
        _keep_order(state)
    hold(state, account, request.request_id, sent)
    if not account.reports_slices:
        prefix_index.touch(
            account.prefix, request.slices[: request.prompt_tokens // request.slice_tokens],
            slice_tokens=request.slice_tokens, tokens_max=accounts.kv_tokens(account),
        )  # fmt: skip


def _resumed(state: State, event: RequestAdmitted, now_ns: int) -> None:
    """A parked request goes on where it is."""
    if state.parked_on.get(event.request_id) != event.engine_id:
        return
    account = state.accounts[event.engine_id]
    one = unpark(state, event.request_id)
    sent = parking.resident_again(
        trial_of(account), one, reserved=event.output_tokens_predicted, cached=event.cached_tokens_predicted,
        now_ns=now_ns,
    )  # fmt: skip
    hold(state, account, event.request_id, sent)


def _preempted(state: State, event: RequestPreempted, now_ns: int) -> None:
    """It gave way: it waits again, or is parked where its stream is."""
    if state.running.get(event.request_id) != event.engine_id:
        return
    account, sent = release(state, event.request_id, now_ns)
    one = parking.put_back(account, sent, state.settings, output_tokens=event.output_tokens, now_ns=now_ns)
    if one.resume_on:
        park(state, account, one)
    else:
        _line_up(state, one)


def _registered(state: State, event: EngineRegistered) -> None:
    account = state.accounts.get(event.engine_id)
    if account is None:
        tiers = state.unregistered.pop(event.engine_id, None) or TierIndex()
        account = state.accounts[event.engine_id] = Account(engine_id=event.engine_id, tiers=tiers)
    accounts.describe(account, event)
    if state.pool_shares is not None and not account.own_shares:
        accounts.divide(account, state.pool_shares)
    for sent in account.residents.values():
        charge(state, account, sent)  # A block may be of another size now.


def _deferred(state: State, event: RequestDeferred) -> None:
    one = undecided(state, event.request_id)
    if one is not None and event.reason is DeferReason.LATE and waiting.take(state.lines, event.request_id):
        one.lane, one.until_ns, one.passed = waiting.LATE_LANE, event.until_ns, 0  # Nobody there has passed it.
        _line_up(state, one)
    elif one is not None and one is state.fresh:
        one.until_ns, one.work_ns = event.until_ns, event.work_ns
        if event.reason is DeferReason.LATE:
            one.lane = waiting.LATE_LANE
        one.foretold = output_of(state.outputs, state.settings, one.request)
        if event.reason is DeferReason.SESSION_SLOT:
            one.lane = waiting.SESSIONS_LANE
        if event.reason is DeferReason.TENANT_QUOTA:
            one.lane = waiting.tenant_lane(one.request.tenant)
            one.bytes_wanted = bytes_min(state.accounts, one.request, one.foretold, state.settings)
        _line_up(state, one)
        state.fresh = None


def _line_up(state: State, one: Waiting) -> None:
    """It waits, at the place that the strategy gives it."""
    one.key = ordering.rule_of(state.ordering, state.settings).key(one)
    waiting.put(state.lines, one)


def _keep_order(state: State) -> None:
    """Sort the lines anew if another strategy is in force than before."""
    name = ordering.name_of(state.ordering, state.settings)
    if state.ordering.ordered_by != name:
        state.ordering.ordered_by = name
        waiting.reorder(state.lines, ordering.rule_of(state.ordering, state.settings).key)


def _refused(state: State, event: RequestRejected | RequestExpired) -> None:
    """One more that was not served, where serving it was possible at all."""
    one = undecided(state, event.request_id)
    if one is None or (isinstance(event, RequestRejected) and event.reason in IMPOSSIBLE):
        return
    ordering.decided(state.ordering, one.request, served=False)
    _keep_order(state)


def _preempted_from(state: State, request_id: RequestId, engine_id: EngineId) -> Waiting | None:
    """The request as it waits, or waited before it went elsewhere, if it was taken off that engine without a token."""
    group = state.lines.group_of.get(request_id)
    if group is not None:
        one = state.lines.by_group[group].entries[request_id]
        return one if one.preempted_on == engine_id else None
    account = account_of(state, request_id)
    if account is None or account.engine_id == engine_id:
        return None
    sent = account.residents[request_id]
    return parking.as_waiting(sent) if sent.preempted_on == engine_id and not accounts.has_begun(sent) else None


def _dispatched(state: State, event: DispatchStarted, now_ns: int) -> None:
    account = account_of(state, event.request_id)
    if account is not None and account.engine_id == event.engine_id:
        accounts.dispatched(account, event.request_id, now_ns)


def _first_token(state: State, event: FirstTokenSeen, now_ns: int) -> None:
    _unpreempt(state, event, now_ns)
    account = account_of(state, event.request_id)
    if account is not None and account.engine_id == event.engine_id:
        holders.hear(state.holders, account.residents[event.request_id].request.holder)
        accounts.first_token(account, event.request_id, now_ns)
        accounts.presume_first_tokens(account, now_ns)


def _unpreempt(state: State, event: FirstTokenSeen, now_ns: int) -> None:
    """The first token of a request came from an engine that it was taken off without one: the order came too late.
    Where the engine can preempt, the stream is held there; where it cannot, the order was not carried out."""
    account = state.accounts.get(event.engine_id)
    one = _preempted_from(state, event.request_id, event.engine_id)
    if account is None or one is None or one.request.kind is RequestKind.EMBEDDING:
        return  # What has no answer to go on with is done when it is finished, and not before.
    if event.request_id in state.running:
        left, _ = release(state, event.request_id, now_ns)
        drop_if_gone(state, left.engine_id)
    else:
        waiting.take(state.lines, event.request_id)
    one = parking.begun_after_all(one, account, now_ns=now_ns)
    if account.can_preempt:
        park(state, account, one)
    else:
        reserved = longer_output(state.outputs, state.settings, account, one.request, one.foretold, so_far=1)
        hold(state, account, event.request_id, parking.back_in_place(trial_of(account), one, reserved, now_ns=now_ns))


def _finished(state: State, event: RequestFinished, now_ns: int) -> None:
    account = account_of(state, event.request_id)
    if account is not None:
        sent = account.residents[event.request_id]
        if sent.decodes:
            output_length.ended(state.outputs, sent.request, sent.foretold, event.output_tokens)
            end_turn(state, sent.request, event.output_tokens, now_ns)
        else:
            accounts.first_token(account, event.request_id, now_ns)
        holders.hear(state.holders, sent.request.holder)
    forget(state, event.request_id, now_ns)


def _aborted(state: State, event: RequestAborted, now_ns: int) -> None:
    engine_id = state.running.get(event.request_id)
    forget(state, event.request_id, now_ns)
    if engine_id is None or event.engine_id not in ("", engine_id) or event.reason is not AbortReason.ENGINE_LOST:
        return  # Who runs nothing there cannot know.
    account = state.accounts.get(engine_id)
    if account is not None:
        account.suspect = True
    if not event.final:
        state.lost_on[event.request_id] = engine_id
        if len(state.lost_on) > LOST_MAX:
            del state.lost_on[next(iter(state.lost_on))]


def _beat(state: State, event: HolderBeat, now_ns: int) -> None:
    heard = holders.hear(state.holders, event.holder)
    if event.epoch and heard.epoch != event.epoch and (not heard.epoch or not requests_of(state, event.holder)):
        heard.epoch = event.epoch  # Else `decide` sees another epoch, and what it held before is lost.
    for one in event.progress:
        account = account_of(state, one.request_id)
        if account is None:
            continue
        accounts.progressed(account, one.request_id, one.output_tokens, now_ns)
        sent = account.residents[one.request_id]
        if sent.decodes and sent.output_tokens >= sent.output_reserved:
            longer = longer_output(
                state.outputs, state.settings, account, sent.request, sent.foretold, so_far=sent.output_tokens
            )
            accounts.reserve(account, one.request_id, longer)
            charge(state, account, sent)


def _end_holder(state: State, holder: HolderId, ended: Sequence[RequestId], now_ns: int) -> None:
    """These requests of it end; it is forgotten with its last one."""
    for request_id in ended:
        forget(state, request_id, now_ns)
    if not requests_of(state, holder):
        state.holders.heard.pop(holder, None)


def _ticked(state: State, now_ns: int) -> None:
    holders.tick(state.holders, now_ns)
    sessions.expire(state.sessions, now_ns)
    for holder in holders.silent(state.holders, state.settings.holder_timeout_ns):
        if not requests_of(state, holder):
            del state.holders.heard[holder]  # Nothing of it is left: no need to say so.
    for account in list(state.accounts.values()):
        accounts.presume_first_tokens(account, now_ns)
        for request_id in accounts.overdue(account, now_ns - state.settings.request_max_ns):
            forget(state, request_id, now_ns)
