"""What prefetch knows, and how facts and decisions change it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from events.base import NS_PER_S, EngineId, Event, ModelId, RequestId, SliceId, TenantId
from events.control import Ticked
from events.decisions import LinkSuspended, TransferCancelled, TransferOrdered
from events.engine import EngineHealthChanged, EngineRegistered, EngineRemoved, Health
from events.request import FirstTokenSeen, RequestArrived, RequestFinished
from events.slice import SlicesCleared, SlicesPinned, TransferFinished
from policies import needs, pins, settings, slice_book, tiered_engines, transfers
from policies.needs import NEED_FACTS, Need, Needs
from policies.pins import Pins
from policies.predictors import next_turn
from policies.predictors.next_turn import Pauses, Window
from policies.prefetch_settings import PrefetchSettings
from policies.slice_book import SliceBook
from policies.tiered_engines import ENGINE_FACTS, TieredEngines
from policies.transfers import Transfers

ACTOR = "prefetch"
PREFIX = "p"
"""How its orders are named."""
SESSIONS_MAX = 4_096
"""Sessions known at a time, those heard of last."""


class Session(msgspec.Struct, kw_only=True):
    """One session. Between turns `ended_ns` is when the last one ended on `engine_id` (0 = a turn runs, or the next is
    not expected any more), and `slices` are what that one began with: what the next will want."""

    tenant: TenantId
    model: ModelId
    pauses: Pauses = msgspec.field(default_factory=Pauses)
    ended_ns: int = 0
    engine_id: EngineId = EngineId("")
    slices: tuple[SliceId, ...] = ()


class State(msgspec.Struct, kw_only=True):
    """All that prefetch knows; bounded by the limits of its parts.

    `sessions` are heard of last at the end, `pauses` those of each tenant. `hot` are the slices used most of late, as
    of the last look (`looked_ns`), the hottest first; `due` says that it looks now. `pins` end at a time.
    """

    settings: PrefetchSettings = msgspec.field(default_factory=PrefetchSettings)
    engines: TieredEngines = msgspec.field(default_factory=dict)
    book: SliceBook = msgspec.field(default_factory=SliceBook)
    needs: Needs = msgspec.field(default_factory=Needs)
    sessions: dict[str, Session] = msgspec.field(default_factory=dict)
    pauses: dict[TenantId, Pauses] = msgspec.field(default_factory=dict)
    hot: dict[SliceId, None] = msgspec.field(default_factory=dict)
    pins: Pins = msgspec.field(default_factory=dict)
    transfers: Transfers = msgspec.field(default_factory=lambda: Transfers(PREFIX))
    looked_ns: int = 0
    due: bool = False


def initial() -> State:
    """Knows nothing yet."""
    return State()


def configure(state: State, changes: Mapping[str, Any]) -> None:
    """Change the named settings, all or none. Raises ValueError that names key, value and what is allowed."""
    settings.apply(ACTOR, state.settings, changes)
    slice_book.configured(state.book, hot_uses_min=state.settings.hot_uses_min)


def evolve(state: State, event: Event, now_ns: int) -> None:
    """Take a fact or a decision in. Of requests nothing is kept before an engine reported its slices."""
    if isinstance(event, ENGINE_FACTS):
        tiered_engines.heed(state.engines, event, now_ns)
        if isinstance(event, EngineRemoved | EngineRegistered) and event.engine_id not in state.engines:
            transfers.gone(state.transfers, event.engine_id)
        elif isinstance(event, EngineHealthChanged) and event.health is Health.LOST:
            transfers.lost(state.transfers, event.engine_id)
        elif isinstance(event, SlicesCleared):
            transfers.lost(state.transfers, event.engine_id, event.tier)
    elif isinstance(event, NEED_FACTS):
        if state.engines:
            _request(state, event, now_ns)
    else:
        _other(state, event, now_ns)


def _request(state: State, event: Event, now_ns: int) -> None:
    match event:
        case RequestArrived() if event.attempt == 0:
            chosen = state.settings
            slice_book.asked(state.book, event, now_ns, horizon_ns=chosen.horizon_ns, hot_uses_min=chosen.hot_uses_min)
            _turn_began(state, event, now_ns)
        case FirstTokenSeen():
            tiered_engines.learn(state.engines, event.engine_id, state.needs.open.get(event.request_id), now_ns)
        case RequestFinished():
            _turn_ended(state, event, now_ns)
        case _:
            pass
    needs.heed(state.needs, event, now_ns)


def _session_key(tenant: TenantId, model: ModelId, session: str) -> str:
    """A session is its tenant's own."""
    return f"{tenant}\n{model}\n{session}"


def _turn_began(state: State, event: RequestArrived, now_ns: int) -> None:
    """The pause of its session is over: it is learned."""
    key = _session_key(event.tenant, event.model, event.session)
    session = state.sessions.get(key)
    if session is None or not session.ended_ns:
        return
    pause_ns = max(0, now_ns - session.ended_ns)
    session.ended_ns = 0
    next_turn.learn(session.pauses, pause_ns)
    of_tenant = state.pauses.pop(event.tenant, None) or Pauses()
    next_turn.learn(of_tenant, pause_ns)
    state.pauses[event.tenant] = of_tenant
    if len(state.pauses) > next_turn.TENANTS_MAX:
        del state.pauses[next(iter(state.pauses))]


def _turn_ended(state: State, event: RequestFinished, now_ns: int) -> None:
    need = need_of(state, event.request_id)
    if need is None or not need.session:
        return
    key = _session_key(need.tenant, need.model, need.session)
    session = state.sessions.pop(key, None) or Session(tenant=need.tenant, model=need.model)
    session.ended_ns, session.engine_id, session.slices = now_ns, event.engine_id, need.slices
    state.sessions[key] = session
    if len(state.sessions) > SESSIONS_MAX:
        del state.sessions[next(iter(state.sessions))]


def need_of(state: State, request_id: RequestId) -> Need | None:
    """What is known of a request that has not ended."""
    return state.needs.open.get(request_id) or state.needs.begun.get(request_id)


def expected(state: State, session: Session) -> Window | None:
    """When the next turn of a session is expected, in pool time; None where none is, or nobody knows."""
    window = next_turn.window(session.pauses, state.pauses.get(session.tenant)) if session.ended_ns else None
    return None if window is None else Window(session.ended_ns + window.from_ns, session.ended_ns + window.to_ns)


def _other(state: State, event: Event, now_ns: int) -> None:
    match event:
        case TransferOrdered():
            engine, link_ns = state.engines.get(event.engine_id), 0
            if engine is not None:
                link_ns = tiered_engines.link_ns(engine, event.move, event.bytes_planned)
            share_ppm = state.settings.link_share_ppm
            transfers.ordered(state.transfers, event, now_ns, link_ns=link_ns, share_ppm=share_ppm)
        case TransferCancelled():
            transfers.cancelled(state.transfers, event, now_ns)
        case TransferFinished():
            one = state.transfers.open.get(event.order)
            missing = one is not None and tiered_engines.missing(state.engines, one.order)
            transfers.finished(
                state.transfers, event, now_ns, tries_max=state.settings.tries_max, missing=missing
            )  # fmt: skip
        case LinkSuspended():
            transfers.suspended(state.transfers, event)
        case SlicesPinned():
            pins.heed(state.pins, event, now_ns)
        case Ticked():
            _ticked(state, now_ns)
        case _:
            pass


def _ticked(state: State, now_ns: int) -> None:
    """Once a second; ticks that others asked for in between change nothing."""
    chosen = state.settings
    state.due = now_ns // NS_PER_S != state.looked_ns // NS_PER_S
    if not state.due:
        return
    state.looked_ns = now_ns
    transfers.ticked(state.transfers, now_ns)
    state.pins = pins.holding(state.pins, now_ns)
    state.hot = dict.fromkeys(slice_book.hot(
        state.book, now_ns, uses_min=chosen.hot_uses_min, most=chosen.hot_max, horizon_ns=chosen.horizon_ns
    ))  # fmt: skip
    for session in state.sessions.values():
        window = expected(state, session)
        if window is not None and window.to_ns < now_ns:
            session.ended_ns = 0  # It is not expected any more; should it come, the pause says nothing.
