"""What migration knows, and how facts and decisions change it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from events.base import NS_PER_S, Event, SliceId
from events.control import Ticked
from events.decisions import LinkSuspended, Move, TransferCancelled, TransferOrdered
from events.engine import EngineHealthChanged, EngineRegistered, EngineRemoved, Health
from events.request import FirstTokenSeen, RequestArrived
from events.slice import SlicesCleared, SlicesPinned, TransferFinished
from policies import needs, pins, settings, slice_book, tiered_engines, transfers
from policies.migration_settings import MigrationSettings
from policies.needs import NEED_FACTS, Needs
from policies.pins import Pins
from policies.slice_book import SliceBook
from policies.tiered_engines import ENGINE_FACTS, TieredEngines
from policies.transfers import Transfers

ACTOR = "migration"
PREFIX = "m"
"""How its orders are named."""
BROUGHT_MAX = 8_192
"""Slices remembered that prefetch had brought up, the newest."""


class State(msgspec.Struct, kw_only=True):
    """All that migration knows; bounded by the limits of its parts.

    `hot` are the slices used most of late, as of the last look (`looked_ns`), the hottest first; `due` says that it
    looks now. `pins` end at a time; so does what prefetch had `brought` for somebody.
    """

    settings: MigrationSettings = msgspec.field(default_factory=MigrationSettings)
    engines: TieredEngines = msgspec.field(default_factory=dict)
    book: SliceBook = msgspec.field(default_factory=SliceBook)
    needs: Needs = msgspec.field(default_factory=Needs)
    hot: dict[SliceId, None] = msgspec.field(default_factory=dict)
    pins: Pins = msgspec.field(default_factory=dict)
    brought: dict[SliceId, int] = msgspec.field(default_factory=dict)
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
    if isinstance(event, RequestArrived) and event.attempt == 0:
        chosen = state.settings
        slice_book.asked(state.book, event, now_ns, horizon_ns=chosen.horizon_ns, hot_uses_min=chosen.hot_uses_min)
    if isinstance(event, FirstTokenSeen):
        tiered_engines.learn(state.engines, event.engine_id, state.needs.open.get(event.request_id), now_ns)
    needs.heed(state.needs, event, now_ns)


def _other(state: State, event: Event, now_ns: int) -> None:
    match event:
        case TransferOrdered():
            _ordered(state, event, now_ns)
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


def _ordered(state: State, event: TransferOrdered, now_ns: int) -> None:
    engine, chosen = state.engines.get(event.engine_id), state.settings
    link_ns = 0
    if engine is not None:
        link_ns = tiered_engines.link_ns(
            engine, event.move, event.bytes_planned, peer_bytes_per_s=chosen.peer_bytes_per_s
        )
    transfers.ordered(state.transfers, event, now_ns, link_ns=link_ns, share_ppm=chosen.link_share_ppm)
    if event.move is Move.PROMOTE and not event.order.startswith(PREFIX):
        for slice_id in event.slices:
            state.brought.pop(slice_id, None)
            state.brought[slice_id] = event.until_ns
        while len(state.brought) > BROUGHT_MAX:
            del state.brought[next(iter(state.brought))]


def _ticked(state: State, now_ns: int) -> None:
    """Once a second; ticks that others asked for in between change nothing."""
    chosen = state.settings
    state.due = now_ns // NS_PER_S != state.looked_ns // NS_PER_S
    if not state.due:
        return
    state.looked_ns = now_ns
    transfers.ticked(state.transfers, now_ns)
    state.pins = pins.holding(state.pins, now_ns)
    state.brought = {slice_id: until_ns for slice_id, until_ns in state.brought.items() if until_ns > now_ns}
    state.hot = dict.fromkeys(slice_book.hot(
        state.book, now_ns, uses_min=chosen.hot_uses_min, most=chosen.hot_max, horizon_ns=chosen.horizon_ns
    ))  # fmt: skip
