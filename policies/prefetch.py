"""Prefetch: slices come up from SSD to DRAM before somebody waits for them.

In this order, so that what is certain goes before what is likely:

1. Certain needs (`waiting_request`): a request is deferred, or was sent to an engine and has no first token yet, and
   part of what it begins with is in SSD alone. A deferred one may go to any engine: they are fetched where most of its
   beginning is. Asked when the request is deferred, admitted or preempted, and once a second for the oldest
   `scan_max` of them.
2. Next turns (`next_turn`): a session paused, and the window in which its next turn is expected
   (`policies.predictors.next_turn`) has come as near as twice what the fetch takes: the prompt of its last turn is
   fetched where that one ran.
3. Hot prefixes (`hot_prefix`): what many requests of late began with, parents first.

Each only where fetching the run as a whole, and bringing it up from DRAM, is quicker than computing it; the queue on
the link now counts, and what was ordered since it was measured. A run that cannot be there in time is cut to what can.

Nothing is pushed out that is needed sooner: what is likely goes into free bytes of DRAM only; what is certain may take
the place of what nobody needs, not of what waiting requests want or what is pinned. An order is taken back when its
request has its first token, ended or went elsewhere, when it comes too late, when its link is suspended or its engine
gone. Budgets, retries and the circuit breaker: `policies.transfers`.

Sources: informed prefetching, hints before guesses (Patterson et al., SOSP 1995); prefetch of the next turn as in
CachedAttention (ATC 2024). That both answer to one gate and one budget is our own.

Example: a deferred request begins with 30 slices; e1 has 10 of them in DRAM and 20 in SSD alone. They would take 160 ms
behind what is queued there, and 400 ms to compute: they are ordered, and in DRAM when it is admitted.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from events.base import NS_PER_S, EngineId, Event, RequestId, SliceId
from events.control import Ticked
from events.decisions import (
    CancelReason,
    HolderLost,
    Move,
    MoveReason,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    TransferCancelled,
    TransferOrdered,
)
from events.engine import EngineHealthChanged, EngineRegistered, EngineRemoved
from events.request import FirstTokenSeen, RequestAborted, RequestExpired, RequestFinished
from events.slice import (
    SlicesCleared,
    SlicesPinned,
    Tier,
    TransferFinished,
)
from policies import needs, slice_book, tier_index, tiered_engines, transfers
from policies.decider import Decider
from policies.memory.gate import worth_fetching
from policies.needs import NEED_FACTS, Need
from policies.prefetch_state import ACTOR, Session, State, configure, evolve, expected, initial
from policies.settings import Switch
from policies.tier_index import BIT, leading
from policies.tiered_engines import ENGINE_FACTS, gauge, recompute_ns
from policies.transfers import Draft

LEAD_FETCHES = 2
"""A next turn's slices are fetched so many times their fetch before it is expected."""
HOT_LIFE_NS = 10 * NS_PER_S
"""After so long an order for a hot prefix is worth nothing: something else is hot by then."""
TURNS_MAX = 64
"""Sessions for which something is ordered with one tick."""
NOBODY = RequestId("")
"""For whom something is ordered that nobody waits for yet."""


def decide(state: State, event: Event, now_ns: int) -> list[Event]:
    """What follows from an event that was just taken in. Changes nothing."""
    if state.settings.enabled is Switch.OFF:
        return _all_taken_back(state) if isinstance(event, Ticked) else []
    match event:
        case RequestDeferred() | RequestAdmitted() | RequestPreempted():
            return _one_request(state, event.request_id, now_ns)
        case FirstTokenSeen() | RequestFinished() | RequestRejected() | RequestAborted() | RequestExpired():
            return [*_needless(state, event.request_id)]
        case HolderLost():
            return [*_needless(state)]
        case Ticked() if state.due:
            return _tick(state, now_ns)
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


def _draft(state: State, now_ns: int) -> Draft:
    chosen = state.settings
    return Draft(state.transfers, now_ns, chosen.link_share_ppm, chosen.open_max, chosen.order_slices_max)


def _all_taken_back(state: State) -> list[Event]:
    return [
        transfers.taken_back(state.transfers, name, CancelReason.NOT_NEEDED)
        for name, one in state.transfers.open.items()
        if not one.cancelled_ns
    ]


def _one_request(state: State, request_id: RequestId, now_ns: int) -> list[Event]:
    """A request waits, or was sent somewhere."""
    need = state.needs.open.get(request_id)
    if need is None:
        return []
    draft = _draft(state, now_ns)
    _for_request(state, draft, request_id, need)
    return [*_needless(state, request_id), *draft.said]


def _tick(state: State, now_ns: int) -> list[Event]:
    """What is in vain is taken back. Where that leaves links as they are, what is certain is ordered, then the rest."""
    back = transfers.in_vain(state.transfers, now_ns, _needless(state))
    if any(not isinstance(event, TransferCancelled) for event in back):
        return [*back]
    draft = _draft(state, now_ns)
    for request_id, need in islice(needs.wanted(state.needs), state.settings.scan_max):
        _for_request(state, draft, request_id, need)
    if state.settings.next_turns is Switch.ON:
        _next_turns(state, draft)
    if state.settings.hot_prefixes is Switch.ON:
        _hot_prefixes(state, draft)
    return [*back, *draft.said]


def _needless(state: State, request_id: RequestId | None = None) -> list[TransferCancelled]:
    """Orders (of that request) whose slices nobody wants there any more."""
    return [
        transfers.taken_back(state.transfers, name, CancelReason.NOT_NEEDED)
        for name, one in state.transfers.open.items()
        if not one.cancelled_ns and request_id in (None, one.order.for_request)
        and not _is_wanted(state, one.order)
    ]  # fmt: skip


def _is_wanted(state: State, order: TransferOrdered) -> bool:
    """Whether the request of an order, or another one, still wants its slices on that engine. What is likely only is
    wanted until it is too late."""
    if not order.for_request:
        return True
    need = state.needs.open.get(order.for_request)
    if need is not None and need.engine_id in ("", order.engine_id):
        return True
    return any(
        other.engine_id in ("", order.engine_id) and order.slices[-1] in other.slices
        for _, other in needs.wanted(state.needs)
    )


# What is certain.


def _for_request(state: State, draft: Draft, request_id: RequestId, need: Need) -> None:
    """Order what a request begins with, where it was sent; or where most of it is."""
    engine_id = need.engine_id or _nearest(state, need)
    if engine_id is None or not _works(state, engine_id):
        return
    while _fetch(
        state, draft, engine_id, need.slices, MoveReason.WAITING_REQUEST, slice_tokens=need.slice_tokens,
        until_ns=need.until_ns, for_request=request_id,
    ):  # fmt: skip
        pass  # As many orders as it takes; each makes the next one smaller.


def _nearest(state: State, need: Need) -> EngineId | None:
    """The engine that has most of its beginning; the first of equals, None where nobody has anything."""
    most, nearest = 0, None
    for name, engine in state.engines.items():
        if engine.works() and need.model in engine.models:
            there = leading(engine.index, need.slices)
            if there.hbm + there.dram + there.ssd > most:
                most, nearest = there.hbm + there.dram + there.ssd, name
    return nearest


def _fetch(
    state: State, draft: Draft, engine_id: EngineId, slices: Sequence[SliceId], reason: MoveReason, *,
    slice_tokens: int, until_ns: int, for_request: RequestId = NOBODY, tries: int = 1,
) -> bool:  # fmt: skip
    """Order what of a prompt's beginning is in SSD alone, as far as room, link and time go, where that is worth it;
    whether anything was."""
    engine = state.engines[engine_id]
    ssd, there = gauge(engine, Tier.SSD), leading(engine.index, slices)
    if not there.ssd or not ssd.slice_bytes or draft.full():
        return False
    busy = draft.busy(engine_id)
    run = slices[there.hbm : there.hbm + there.dram + there.ssd]
    below = [slice_id for slice_id in run if engine.index.tiers_of[slice_id] & BIT[Tier.DRAM] == 0]
    wanted = [slice_id for slice_id in below if slice_id not in busy]
    slice_ns = tiered_engines.link_ns(engine, Move.PROMOTE, ssd.slice_bytes)
    queued = draft.queued_bytes(engine_id, Tier.SSD, ssd.at_ns)
    most = min(
        len(wanted), _room(state, draft, engine_id, certain=reason is MoveReason.WAITING_REQUEST),
        draft.slices_of(engine_id, Tier.SSD, slice_ns),
        (until_ns - draft.now_ns - tier_index.read_ns(engine.index, Tier.SSD, 1, queued_bytes=queued)) // slice_ns + 1,
    )  # fmt: skip
    if most <= 0:
        return False
    some = tuple(wanted[:most])
    first = slices.index(some[0])
    compute_ns = recompute_ns(engine, first=first, slices=most, slice_tokens=slice_tokens)
    load_ns = tier_index.load_ns(engine.index, dram=0, ssd=most, queued_bytes=queued)
    if not worth_fetching(load_ns, compute_ns, margin_ppm=state.settings.margin_ppm):
        return False
    size = most * ssd.slice_bytes
    draft.add(TransferOrdered(
        order="", engine_id=engine_id, move=Move.PROMOTE, reason=reason, slices=some, from_tier=Tier.SSD,
        to_tier=Tier.DRAM, for_request=for_request, bytes_planned=size,
        expected_ns=tier_index.read_ns(engine.index, Tier.SSD, most, queued_bytes=queued), recompute_ns=compute_ns,
        until_ns=until_ns, tries=tries,
    ), link_ns=tiered_engines.link_ns(engine, Move.PROMOTE, size))  # fmt: skip
    return True


def _room(state: State, draft: Draft, engine_id: EngineId, *, certain: bool) -> int:
    """How many slices DRAM can take: free ones; and for what is certain, those that nobody needs."""
    engine = state.engines[engine_id]
    dram, size = gauge(engine, Tier.DRAM), gauge(engine, Tier.SSD).slice_bytes
    coming = draft.incoming_bytes(engine_id, Tier.DRAM)
    free = (dram.bytes_max - dram.bytes_used - coming) // size
    if not certain or free >= state.settings.order_slices_max:
        return max(0, free)
    if engine_id not in draft.kept:
        sooner = needs.slices_wanted(state.needs, engine_id, engine.models, most=state.settings.scan_max)
        kept = sooner | dict.fromkeys(state.pins)
        draft.kept[engine_id] = sum(tier_index.holds(engine.index, slice_id, Tier.DRAM) for slice_id in kept)
    return max(0, (dram.bytes_max - coming) // size - draft.kept[engine_id])


# What is likely.


def _next_turns(state: State, draft: Draft) -> None:
    """Order what sessions will want whose next turn is near; the ones expected first, first."""
    due = []
    for session in state.sessions.values():
        window = expected(state, session)
        if window is not None and _is_near(state, draft, session, window.from_ns) and draft.now_ns < window.to_ns:
            due.append((window.from_ns, window.to_ns, session))
    due.sort(key=lambda one: one[:2])
    for _, to_ns, session in due[:TURNS_MAX]:
        while _fetch(
            state, draft, session.engine_id, session.slices, MoveReason.NEXT_TURN,
            slice_tokens=state.book.slice_tokens, until_ns=to_ns,
        ):  # fmt: skip
            pass


def _is_near(state: State, draft: Draft, session: Session, from_ns: int) -> bool:
    """Whether it is time to fetch for a turn that is expected from then on, and something is to be fetched."""
    engine = state.engines.get(session.engine_id)
    if engine is None or not engine.works():
        return False
    ssd = leading(engine.index, session.slices).ssd
    ahead_ns = LEAD_FETCHES * tier_index.read_ns(engine.index, Tier.SSD, ssd)
    return ssd > 0 and draft.now_ns >= from_ns - ahead_ns


def _hot_prefixes(state: State, draft: Draft) -> None:
    """Order hot slices that engines have in SSD alone."""
    wanted = list(state.hot)
    for name, engine in state.engines.items():
        if wanted and engine.works() and not draft.full():
            _climb(state, draft, name, wanted, until_ns=draft.now_ns + HOT_LIFE_NS)


def _climb(
    state: State, draft: Draft, engine_id: EngineId, wanted: Sequence[SliceId], *, until_ns: int, tries: int = 1
) -> None:
    """Order those of these slices that an engine has in SSD alone, parents first: they need not be of one prompt."""
    engine, book = state.engines[engine_id], state.book
    ssd = gauge(engine, Tier.SSD)
    if not ssd.slice_bytes:
        return
    slice_ns = tiered_engines.link_ns(engine, Move.PROMOTE, ssd.slice_bytes)
    most = min(_room(state, draft, engine_id, certain=False), draft.slices_of(engine_id, Tier.SSD, slice_ns))
    some = slice_book.reachable(
        book, wanted, engine.index.tiers_of, exactly=BIT[Tier.SSD], models=engine.models,
        left_alone=draft.busy(engine_id), most=most,
    )  # fmt: skip
    compute_ns = sum(
        recompute_ns(engine, first=slice_book.depth(book, one), slices=1, slice_tokens=book.slice_tokens)
        for one in some
    )
    queued = draft.queued_bytes(engine_id, Tier.SSD, ssd.at_ns)
    load_ns = tier_index.load_ns(engine.index, dram=0, ssd=len(some), queued_bytes=queued)
    if not some or not worth_fetching(load_ns, compute_ns, margin_ppm=state.settings.margin_ppm):
        return
    size = len(some) * ssd.slice_bytes
    draft.add(TransferOrdered(
        order="", engine_id=engine_id, move=Move.PROMOTE, reason=MoveReason.HOT_PREFIX, slices=some,
        from_tier=Tier.SSD, to_tier=Tier.DRAM, bytes_planned=size,
        expected_ns=tier_index.read_ns(engine.index, Tier.SSD, len(some), queued_bytes=queued),
        recompute_ns=compute_ns, until_ns=until_ns, tries=tries,
    ), link_ns=tiered_engines.link_ns(engine, Move.PROMOTE, size))  # fmt: skip


def _again(state: State, event: TransferFinished, now_ns: int) -> list[Event]:
    """What is missing of an order that failed is tried again, where somebody still wants it."""
    order = transfers.to_retry(state.transfers, event, tries_max=state.settings.tries_max)
    if order is None or now_ns >= order.until_ns or not _works(state, order.engine_id) or not _is_wanted(state, order):
        return []
    draft, tries = _draft(state, now_ns), order.tries + 1
    if order.reason is MoveReason.HOT_PREFIX:
        _climb(state, draft, order.engine_id, order.slices, until_ns=order.until_ns, tries=tries)
    else:
        _fetch(
            state, draft, order.engine_id, _whole(state, order.slices), order.reason,
            slice_tokens=state.book.slice_tokens, until_ns=order.until_ns, for_request=order.for_request, tries=tries,
        )  # fmt: skip
    return [*draft.said]


def _whole(state: State, slices: Sequence[SliceId]) -> tuple[SliceId, ...]:
    """The prompt that these slices are the end of, from its beginning."""
    before: list[SliceId] = []
    known = state.book.known.get(slices[0])
    while known is not None and known.parent:
        before.append(known.parent)
        known = slice_book.forerunner(state.book, known)
    return (*reversed(before), *slices)


def explain(state: State, event: Event, now_ns: int) -> dict[str, Any]:
    """Who wants what from where, which turns are expected when, what is hot; which orders are open, and what the links
    have left. Changes nothing."""
    wanting = []
    for request_id, need in islice(needs.wanted(state.needs), state.settings.scan_max):
        engine_id = need.engine_id or _nearest(state, need)
        engine = state.engines.get(engine_id) if engine_id is not None else None
        there = leading(engine.index, need.slices) if engine is not None else tier_index.NOTHING
        wanting.append({
            "request_id": request_id, "engine_id": engine_id or "", "left_ns": need.until_ns - now_ns,
            "slices": len(need.slices), "hbm": there.hbm, "dram": there.dram, "ssd": there.ssd,
            "fetch_ns": tier_index.load_ns(engine.index, dram=0, ssd=there.ssd) if engine is not None else 0,
            "recompute_ns": recompute_ns(
                engine, first=there.hbm + there.dram, slices=there.ssd, slice_tokens=need.slice_tokens
            ) if engine is not None else 0,
        })  # fmt: skip
    turns = [
        {"session": key.rpartition("\n")[2], "from_ns": window.from_ns - now_ns, "to_ns": window.to_ns - now_ns}
        for key, session in state.sessions.items()
        if (window := expected(state, session)) is not None
    ]
    return {
        "event": event.event_kind(),
        "now_ns": now_ns,
        "enabled": state.settings.enabled.value,
        "engines": [
            {
                "engine_id": name, "works": engine.works(), "tiers": tiered_engines.described(engine),
                "kept": len(needs.slices_wanted(state.needs, name, engine.models)) + len(state.pins),
            }
            for name, engine in state.engines.items()
        ],
        "waiting": wanting,
        "next_turns": turns[:TURNS_MAX],
        "hot": list(state.hot),
        "transfers": transfers.described(state.transfers, now_ns, share_ppm=state.settings.link_share_ppm),
    }  # fmt: skip


PREFETCH: Decider[State] = Decider(
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
"""Prefetch with its default settings."""
