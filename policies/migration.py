"""Migration: which slices change their tier because of what they are worth, not because somebody waits for them.

Looked at whenever a tier of an engine is measured, so that room, speed and queue are those of now:

- Relieve DRAM, so that there is room for what is worth more. Above `high_ppm` its least valuable slices go until it is
  at `low_ppm`, those that are quicker fetched back from SSD than computed: what is in SSD too is dropped from DRAM
  (what comes to DRAM is written through to SSD), what is not is demoted while SSD has room. Others are dropped only if
  they are worthless (fewer than `worthless_ppm` come back): where SSD is too slow to be of use, or there is none, DRAM
  is left to the engine.
- Relieve SSD. Above `high_ppm` its least valuable slices are dropped.
- Promote. While DRAM has room below `high_ppm`, hot slices that are in SSD alone come up, parents first, where fetching
  is quicker than computing.
- Replicate. Where engines have a transport between them (`peer_bytes_per_s`), hot slices that an engine lacks come from
  the first other that has them in DRAM, where that is quicker than computing.

A slice's value in a tier = P(asked for again within the horizon) x what it costs to get it back if it goes / bytes
(Algorithm 3's value, `policies.memory.kinds`). Of a tier those SCAN_MAX are looked at that were used longest ago, and
none goes before one that stands behind it. Left alone are pinned slices, those that waiting or just admitted requests
begin with, those that prefetch brought up, and all that is on its way. What was ordered is taken back when one of its
slices is needed after all, when it comes too late, when its link is suspended or its engine gone. Budgets, retries and
the circuit breaker: `policies.transfers`.

Sources: watermarks as in the page replacement of operating systems; the gate is measured necessity
(`policies.memory.gate`); a tier that holds what the one above it holds is as in Mooncake and LMCache.

Example: DRAM of 100 slices holds 99, high 97 %, low 95 %. Of the four least valuable three are in SSD too: dropped. One
is not, and would take 10 ms to fetch and 40 ms to compute: demoted.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from events.base import NS_PER_S, PPM, EngineId, Event, SliceId
from events.control import Ticked
from events.decisions import (
    CancelReason,
    Move,
    MoveReason,
    TransferCancelled,
    TransferOrdered,
)
from events.engine import EngineHealthChanged, EngineRegistered, EngineRemoved
from events.slice import (
    SlicesCleared,
    SlicesPinned,
    Tier,
    TierMeasured,
    TransferFinished,
)
from policies import slice_book, tier_index, tiered_engines, transfers
from policies.decider import Decider
from policies.memory.gate import fetch_ns, worth_fetching
from policies.migration_state import ACTOR, State, configure, evolve, initial
from policies.needs import NEED_FACTS
from policies.settings import Switch
from policies.tier_index import BIT, holds
from policies.tiered_engines import ENGINE_FACTS, TieredEngine, gauge, recompute_ns
from policies.transfers import Draft

SCAN_MAX = 1_024
"""Slices of a tier that are weighed because of one record."""
WALK_MAX = 16_384
"""Slices of an engine that are looked at for that, those used longest ago."""
LIFE_NS = 20 * NS_PER_S
"""After so long an order is worth nothing: the tier looks different by then."""


def decide(state: State, event: Event, now_ns: int) -> list[Event]:
    """What follows from an event that was just taken in. Changes nothing."""
    if state.settings.enabled is Switch.OFF:
        return _all_taken_back(state) if isinstance(event, Ticked) else []
    match event:
        case TierMeasured() if _works(state, event.engine_id):
            return _measured(state, event, now_ns)
        case Ticked() if state.due:
            return [*transfers.in_vain(state.transfers, now_ns, _needless(state))]
        case TransferFinished():
            broken = transfers.breakers(state.transfers, now_ns)
            return [*broken] if broken else _again(state, event, now_ns)
        case EngineRemoved() | EngineHealthChanged() | EngineRegistered() if not _works(state, event.engine_id):
            return [*transfers.without_engine(state.transfers, event.engine_id)]
        case SlicesCleared():
            return [*transfers.without_engine(state.transfers, event.engine_id, event.tier)]
        case _:
            return []


def _works(state: State, engine_id: EngineId) -> bool:
    engine = state.engines.get(engine_id)
    return engine is not None and engine.works()


def _all_taken_back(state: State) -> list[Event]:
    return [
        transfers.taken_back(state.transfers, name, CancelReason.NOT_NEEDED)
        for name, one in state.transfers.open.items()
        if not one.cancelled_ns
    ]


def _needless(state: State) -> list[TransferCancelled]:
    """Orders that would take away what is needed after all."""
    found = []
    for name, one in state.transfers.open.items():
        order = one.order
        if one.cancelled_ns or order.move not in (Move.DROP, Move.DEMOTE):
            continue
        if any(_is_kept(state, slice_id) for slice_id in order.slices):
            found.append(transfers.taken_back(state.transfers, name, CancelReason.NOT_NEEDED))
    return found


def _is_kept(state: State, slice_id: SliceId) -> bool:
    """Whether it stays where it is: pinned, wanted by a request, or brought up for somebody."""
    return slice_id in state.needs.slices or slice_id in state.pins or slice_id in state.brought


def _draft(state: State, now_ns: int) -> Draft:
    chosen = state.settings
    return Draft(state.transfers, now_ns, chosen.link_share_ppm, chosen.open_max, chosen.order_slices_max)


def _measured(state: State, event: TierMeasured, now_ns: int) -> list[Event]:
    """A tier of an engine that works was measured."""
    draft = _draft(state, now_ns)
    if event.tier is Tier.DRAM:
        _relieve_dram(state, draft, event.engine_id)
        _promote(state, draft, event.engine_id, list(state.hot))
        _replicate(state, draft, event.engine_id)
    elif event.tier is Tier.SSD:
        _relieve_ssd(state, draft, event.engine_id)
    return [*draft.said]


# Down and out.


def _surplus(state: State, draft: Draft, engine_id: EngineId, tier: Tier) -> int:
    """How many slices have to go from a tier that is above its high watermark, less those that go already."""
    chosen, now = state.settings, gauge(state.engines[engine_id], tier)
    if not now.slice_bytes or not now.bytes_max or now.bytes_used < now.bytes_max * chosen.high_ppm // PPM:
        return 0
    low = now.bytes_max * min(chosen.low_ppm, chosen.high_ppm) // PPM
    return max(0, -(-(now.bytes_used - low) // now.slice_bytes) - draft.outgoing_slices(engine_id, tier))


def _least_worth(state: State, draft: Draft, engine_id: EngineId, tier: Tier) -> list[SliceId]:
    """Slices of a tier that may go, the least valuable first, none before one that stands behind it."""
    engine, bit = state.engines[engine_id], BIT[tier]
    busy = draft.busy(engine_id)
    worth: dict[SliceId, int] = {}
    staying: list[SliceId] = []
    compute_ns: dict[int, int] = {}
    for slice_id, tiers in islice(engine.index.tiers_of.items(), WALK_MAX):
        if tiers & bit and (len(worth) == SCAN_MAX or slice_id in busy or _is_kept(state, slice_id)):
            staying.append(slice_id)
        elif tiers & bit:
            first = slice_book.depth(state.book, slice_id)
            if first not in compute_ns:  # Many slices, few depths.
                compute_ns[first] = _compute_ns(state, engine, slice_id)
            worth[slice_id] = _value(state, engine, slice_id, tier, compute_ns[first])
    return slice_book.children_first(state.book, worth.items(), staying)


def _value(state: State, engine: TieredEngine, slice_id: SliceId, tier: Tier, back_ns: int) -> int:
    """What a slice that takes so long to compute is worth in that tier, per byte."""
    if tier is Tier.DRAM and holds(engine.index, slice_id, Tier.SSD):
        back_ns = min(back_ns, tier_index.read_ns(engine.index, Tier.SSD, 1))
    size = gauge(engine, tier).slice_bytes
    return slice_book.come_back_ppm(state.book, slice_id) * max(1, back_ns) // max(1, size)


def _compute_ns(state: State, engine: TieredEngine, slice_id: SliceId) -> int:
    first = slice_book.depth(state.book, slice_id)
    return recompute_ns(engine, first=first, slices=1, slice_tokens=state.book.slice_tokens)


def _relieve_dram(state: State, draft: Draft, engine_id: EngineId) -> None:
    engine = state.engines[engine_id]
    surplus = _surplus(state, draft, engine_id, Tier.DRAM)
    if not surplus or not gauge(engine, Tier.SSD).slice_bytes:
        return  # Without SSD the engine makes room when it needs some, and knows as well what is worth least.
    room = _ssd_room(state, draft, engine_id)
    dropped: list[SliceId] = []
    demoted: list[SliceId] = []
    worthless: list[SliceId] = []
    for slice_id in _least_worth(state, draft, engine_id, Tier.DRAM):
        if len(dropped) + len(demoted) + len(worthless) == surplus:
            break
        below = holds(engine.index, slice_id, Tier.SSD)
        if slice_book.come_back_ppm(state.book, slice_id) < state.settings.worthless_ppm:
            (dropped if below else worthless).append(slice_id)
        elif not _is_quicker_fetched(state, engine, slice_id):
            continue  # In SSD it would be as good as gone.
        elif below:
            dropped.append(slice_id)
        elif len(demoted) < room:
            demoted.append(slice_id)
    _drop(state, draft, engine_id, Tier.DRAM, dropped, MoveReason.PRESSURE)
    _drop(state, draft, engine_id, Tier.DRAM, worthless, MoveReason.WORTHLESS)
    _demote(state, draft, engine_id, demoted)


def _relieve_ssd(state: State, draft: Draft, engine_id: EngineId) -> None:
    surplus = _surplus(state, draft, engine_id, Tier.SSD)
    if surplus:
        worst = _least_worth(state, draft, engine_id, Tier.SSD)[:surplus]
        _drop(state, draft, engine_id, Tier.SSD, worst, MoveReason.WORTHLESS)


def _ssd_room(state: State, draft: Draft, engine_id: EngineId) -> int:
    """How many slices SSD has room for."""
    ssd = gauge(state.engines[engine_id], Tier.SSD)
    if not ssd.slice_bytes:
        return 0
    left = ssd.bytes_max - ssd.bytes_used - draft.incoming_bytes(engine_id, Tier.SSD)
    return max(0, left // ssd.slice_bytes)


def _is_quicker_fetched(state: State, engine: TieredEngine, slice_id: SliceId) -> bool:
    """Whether fetching it back from SSD would be quicker than computing it; yes where nobody knows."""
    ssd, compute_ns = gauge(engine, Tier.SSD), _compute_ns(state, engine, slice_id)
    back_ns = fetch_ns(ssd.slice_bytes, 0, ssd.read_bytes_per_s)
    return not compute_ns or worth_fetching(back_ns, compute_ns, margin_ppm=state.settings.margin_ppm)


def _in_chain_order(state: State, slices: Sequence[SliceId]) -> tuple[SliceId, ...]:
    """As orders name slices: parents first. Carriers take them away from the last to the first."""
    return tuple(sorted(slices, key=lambda slice_id: slice_book.depth(state.book, slice_id)))


def _drop(
    state: State, draft: Draft, engine_id: EngineId, tier: Tier, slices: list[SliceId], reason: MoveReason
) -> None:
    engine, size = state.engines[engine_id], state.settings.order_slices_max
    for start in range(0, len(slices), size):
        if draft.full():
            return
        some = _in_chain_order(state, slices[start : start + size])
        draft.add(TransferOrdered(
            order="", engine_id=engine_id, move=Move.DROP, reason=reason, slices=some, from_tier=tier,
            recompute_ns=sum(_compute_ns(state, engine, slice_id) for slice_id in some),
            until_ns=draft.now_ns + LIFE_NS,
        ))  # fmt: skip


def _demote(state: State, draft: Draft, engine_id: EngineId, slices: Sequence[SliceId], tries: int = 1) -> None:
    engine = state.engines[engine_id]
    ssd = gauge(engine, Tier.SSD)
    slice_ns = tiered_engines.link_ns(engine, Move.DEMOTE, ssd.slice_bytes)
    some = _in_chain_order(state, slices[: draft.slices_of(engine_id, Tier.DRAM, slice_ns)])
    if not some:
        return
    size = len(some) * ssd.slice_bytes
    draft.add(TransferOrdered(
        order="", engine_id=engine_id, move=Move.DEMOTE, reason=MoveReason.PRESSURE, slices=some,
        from_tier=Tier.DRAM, to_tier=Tier.SSD, bytes_planned=size,
        expected_ns=fetch_ns(size, ssd.write_queue_bytes, ssd.write_bytes_per_s),
        recompute_ns=sum(_compute_ns(state, engine, slice_id) for slice_id in some),
        until_ns=draft.now_ns + LIFE_NS, tries=tries,
    ), link_ns=tiered_engines.link_ns(engine, Move.DEMOTE, size))  # fmt: skip


# Up and over.


def _room(state: State, draft: Draft, engine_id: EngineId) -> int:
    """How many slices DRAM has room for below its high watermark."""
    dram = gauge(state.engines[engine_id], Tier.DRAM)
    if not dram.slice_bytes:
        return 0
    high = dram.bytes_max * state.settings.high_ppm // PPM
    left = high - dram.bytes_used - draft.incoming_bytes(engine_id, Tier.DRAM)
    return max(0, left // dram.slice_bytes)


def _reachable(
    state: State, draft: Draft, engine_id: EngineId, wanted: Sequence[SliceId], exactly: int, most: int
) -> tuple[SliceId, ...]:
    engine = state.engines[engine_id]
    if not most or not wanted:
        return ()
    return slice_book.reachable(
        state.book, wanted, engine.index.tiers_of, exactly=exactly, models=engine.models,
        left_alone=draft.busy(engine_id), most=most,
    )  # fmt: skip


def _promote(state: State, draft: Draft, engine_id: EngineId, wanted: Sequence[SliceId], tries: int = 1) -> None:
    engine = state.engines[engine_id]
    ssd = gauge(engine, Tier.SSD)
    slice_ns = tiered_engines.link_ns(engine, Move.PROMOTE, ssd.slice_bytes)
    most = min(_room(state, draft, engine_id), draft.slices_of(engine_id, Tier.SSD, slice_ns))
    some = _reachable(state, draft, engine_id, wanted, BIT[Tier.SSD], most)
    queued = draft.queued_bytes(engine_id, Tier.SSD, ssd.at_ns)
    expected_ns = tier_index.read_ns(engine.index, Tier.SSD, len(some), queued_bytes=queued)
    compute_ns = sum(_compute_ns(state, engine, slice_id) for slice_id in some)
    if not some or not worth_fetching(expected_ns, compute_ns, margin_ppm=state.settings.margin_ppm):
        return
    size = len(some) * ssd.slice_bytes
    draft.add(TransferOrdered(
        order="", engine_id=engine_id, move=Move.PROMOTE, reason=MoveReason.HOT, slices=some, from_tier=Tier.SSD,
        to_tier=Tier.DRAM, bytes_planned=size, expected_ns=expected_ns, recompute_ns=compute_ns,
        until_ns=draft.now_ns + LIFE_NS, tries=tries,
    ), link_ns=tiered_engines.link_ns(engine, Move.PROMOTE, size))  # fmt: skip


def _replicate(
    state: State, draft: Draft, engine_id: EngineId, source: EngineId | None = None,
    wanted: Sequence[SliceId] = (), tries: int = 1,
) -> None:  # fmt: skip
    """Bring hot slices that this engine lacks from the first other that has them (or from `source`, these ones)."""
    engine, speed = state.engines[engine_id], state.settings.peer_bytes_per_s
    if not speed:
        return
    size, room = gauge(engine, Tier.DRAM).slice_bytes, _room(state, draft, engine_id)
    for name, peer in state.engines.items():
        if not room or name == engine_id or source not in (None, name) or not _are_alike(peer, engine):
            continue
        most = min(room, draft.slices_of(name, Tier.DRAM, fetch_ns(size, 0, speed)))
        there = [slice_id for slice_id in wanted or state.hot if holds(peer.index, slice_id, Tier.DRAM)]
        some = _reachable(state, draft, engine_id, there, 0, most)
        expected_ns = fetch_ns(len(some) * size, 0, speed)
        compute_ns = sum(_compute_ns(state, engine, slice_id) for slice_id in some)
        if not some or not worth_fetching(expected_ns, compute_ns, margin_ppm=state.settings.margin_ppm):
            continue
        draft.add(TransferOrdered(
            order="", engine_id=name, move=Move.REPLICATE, reason=MoveReason.SPREAD, slices=some,
            from_tier=Tier.DRAM, to_tier=Tier.DRAM, to_engine=engine_id, bytes_planned=len(some) * size,
            expected_ns=expected_ns, recompute_ns=compute_ns, until_ns=draft.now_ns + LIFE_NS, tries=tries,
        ), link_ns=expected_ns)  # fmt: skip
        room -= len(some)


def _are_alike(peer: TieredEngine, engine: TieredEngine) -> bool:
    """Whether what one holds is of use to the other: same models, slices of the same size."""
    size = gauge(engine, Tier.DRAM).slice_bytes
    return peer.works() and peer.models == engine.models and gauge(peer, Tier.DRAM).slice_bytes == size


def _again(state: State, event: TransferFinished, now_ns: int) -> list[Event]:
    """What is missing of an order that failed is tried again, where it still makes sense."""
    order = transfers.to_retry(state.transfers, event, tries_max=state.settings.tries_max)
    if order is None or not _works(state, order.engine_id):
        return []
    draft, index = _draft(state, now_ns), state.engines[order.engine_id].index
    still = [slice_id for slice_id in order.slices if holds(index, slice_id, order.from_tier)]
    match order.move:
        case Move.PROMOTE:
            _promote(state, draft, order.engine_id, still, order.tries + 1)
        case Move.REPLICATE if _works(state, order.to_engine) and still:
            _replicate(state, draft, order.to_engine, order.engine_id, still, order.tries + 1)
        case Move.DEMOTE:
            going = [one for one in still if not _is_kept(state, one) and not holds(index, one, Tier.SSD)]
            _demote(state, draft, order.engine_id, going, order.tries + 1)
        case _:
            pass  # A drop that failed is found again when its tier is measured.
    return [*draft.said]


def explain(state: State, event: Event, now_ns: int) -> dict[str, Any]:
    """For every engine its tiers against their watermarks, what would go first and what would come up; which orders are
    open, and what the links have left. Changes nothing."""
    engines, draft = [], _draft(state, now_ns)
    for name, engine in state.engines.items():
        ssd_only = [one for one in state.hot if engine.index.tiers_of.get(one, 0) == BIT[Tier.SSD]]
        engines.append({
            "engine_id": name,
            "works": engine.works(),
            "kept": sum(_is_kept(state, slice_id) for slice_id in engine.index.tiers_of),
            "hot_in_ssd_alone": ssd_only,
            "tiers": tiered_engines.described(engine),
            "surplus": {tier.value: _surplus(state, draft, name, tier) for tier in (Tier.DRAM, Tier.SSD)},
        })  # fmt: skip
    return {
        "event": event.event_kind(),
        "now_ns": now_ns,
        "enabled": state.settings.enabled.value,
        "hot": list(state.hot),
        "engines": engines,
        "transfers": transfers.described(state.transfers, now_ns, share_ppm=state.settings.link_share_ppm),
    }


MIGRATION: Decider[State] = Decider(
    name=ACTOR,
    state=State,
    initial=initial,
    evolve=evolve,
    decide=decide,
    configure=configure,
    explain=explain,
    takes=frozenset({
        *ENGINE_FACTS, *NEED_FACTS, SlicesPinned, TransferOrdered, TransferFinished, Ticked,
    }),
)  # fmt: skip
"""Migration with its default settings."""
