"""What quota knows: who wants how much memory where, who got it too late, and the shares and quotas in force.

A request's demand stands with the engine that it was admitted to, and with the pool while it waits. What is known of
it is dropped when it ends. Slack deficit = the part of the wanted time by which first tokens (or vectors) come late,
as a decayed mean over requests; one that is refused for want of memory, or expires, missed all of it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from events.base import PPM, EngineId, Event, RequestId, RequestKind, TenantId
from events.control import Ticked
from events.decisions import (
    HolderLost,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    ShareReason,
    SharesSet,
    TenantQuotaSet,
)
from events.engine import EngineHealthChanged, EngineMeasured, EngineRegistered, EngineRemoved, Health
from events.quota import ShareBoundsAsked
from events.request import FirstTokenSeen, RequestAborted, RequestArrived, RequestExpired, RequestFinished
from policies import settings, share_control
from policies.predictors import embedding_load
from policies.predictors.embedding_load import EmbeddingLoad
from policies.quota_settings import QuotaSettings
from policies.share_control import Share

ACTOR = "quota"
POOL = EngineId("")
"""Stands for the pool as a whole, and for every engine without bounds of its own."""
OPEN_MAX = 65_536
"""Requests whose demand is known at once; of more, the oldest are forgotten."""
BOUNDS_MAX = 1_024
TENANTS_MAX = 4_096
DEFICIT_PART = 8
"""Each request moves a slack deficit by an eighth of the difference, and each period lets an eighth of it go."""
IDLE_PERIODS = 8
"""After so many periods without embedding jobs nothing is left to forecast from, and the forecast begins anew."""
NOT_OURS = frozenset({RejectReason.NO_ENGINE, RejectReason.TOO_LONG})
"""Refusals that more memory would not have prevented."""


class Book(msgspec.Struct):
    """What requests of one kind hold on an engine, in bytes; or what they wait for, in tokens (the pool's book).
    `peak` is the most in this period, `deficit_ppm` how late they come."""

    held: int = 0
    peak: int = 0
    deficit_ppm: int = 0


class Books(msgspec.Struct):
    """Both kinds, and the embedding load of the last periods; `idle` periods were without any."""

    llm: Book = msgspec.field(default_factory=Book)
    embedding: Book = msgspec.field(default_factory=Book)
    load: EmbeddingLoad = msgspec.field(default_factory=EmbeddingLoad)
    idle: int = IDLE_PERIODS

    def of(self, kind: RequestKind) -> Book:
        """One kind's."""
        return self.llm if kind is RequestKind.LLM else self.embedding


class Wants(msgspec.Struct, array_like=True):
    """What the load of the last period wants of an engine's memory: the embedding share, the upper end of the forecast
    (no share falls below it), and the urgency of both kinds."""

    embedding_ppm: int = 0
    floor_ppm: int = 0
    llm_urgency: int = 0
    embedding_urgency: int = 0


class Engine(msgspec.Struct, kw_only=True):
    """An engine of the pool. `measured_ns` is when it was last measured since quota was started or changed (-1 = not
    yet)."""

    kv_bytes: int
    kv_tokens: int
    batch_tokens: int
    llm: bool
    embedding: bool
    ready: bool = True
    measured_ns: int = -1
    books: Books = msgspec.field(default_factory=Books)
    wants: Wants = msgspec.field(default_factory=Wants)

    def serves_both(self) -> bool:
        """Whether there is something to divide."""
        return self.llm and self.embedding


class Open(msgspec.Struct, array_like=True):
    """A request that has not ended: its prompt, and what it holds on an engine ("" = nowhere). While it waits,
    `waits` tokens stand in the pool's book for it."""

    kind: RequestKind
    tokens: int
    slo_ns: int
    inputs: int = 1
    engine_id: EngineId = POOL
    held: int = 0
    waits: int = 0
    seen: bool = False


class Bounds(msgspec.Struct, array_like=True):
    """What an operator wants the embedding share of an engine to stay within."""

    low_ppm: int
    high_ppm: int


class State(msgspec.Struct, kw_only=True):
    """All that quota knows; bounded by engines, OPEN_MAX, BOUNDS_MAX and TENANTS_MAX. `period_ns` is when this period
    began (0 = no tick yet), `due` whether one has just ended."""

    settings: QuotaSettings = msgspec.field(default_factory=QuotaSettings)
    engines: dict[EngineId, Engine] = msgspec.field(default_factory=dict)
    waiting: Books = msgspec.field(default_factory=Books)
    open: dict[RequestId, Open] = msgspec.field(default_factory=dict)
    shares: dict[EngineId, Share] = msgspec.field(default_factory=dict)
    bounds: dict[EngineId, Bounds] = msgspec.field(default_factory=dict)
    tenants: dict[TenantId, int] = msgspec.field(default_factory=dict)
    period_ns: int = 0
    due: bool = False


def initial() -> State:
    """Before the first record."""
    return State()


def configure(state: State, changes: Mapping[str, Any]) -> None:
    """Change the named settings, all or none; until every engine is measured anew, no share moves. ValueError names
    key, value and what is allowed."""
    settings.apply(ACTOR, state.settings, changes)
    for engine in state.engines.values():
        engine.measured_ns = -1


def wanted_ppm(wants: Wants, share_ppm: int) -> int:
    """Where a share wants to go: down only as far as the upper end of the forecast."""
    return max(wants.embedding_ppm, min(share_ppm, wants.floor_ppm))


def bounds_of(state: State, engine_id: EngineId) -> Bounds:
    """What the embedding share of an engine stays within: its own bounds, the pool's, or those of the settings."""
    own = state.bounds.get(engine_id) or state.bounds.get(POOL)
    if own is not None:
        return own
    low = state.settings.embedding_min_ppm
    return Bounds(low, max(low, state.settings.embedding_max_ppm))


def are_bounds(event: ShareBoundsAsked) -> bool:
    """Whether what is asked for are bounds of a share."""
    return 0 <= event.embedding_min_ppm <= event.embedding_max_ppm <= PPM


def evolve(state: State, event: Event, now_ns: int) -> None:  # noqa: C901
    """Take one fact or decision in."""
    match event:
        case RequestArrived():
            _arrived(state, event)
        case RequestDeferred() if event.request_id in state.open:
            _wait(state, state.open[event.request_id])
        case RequestAdmitted() if event.request_id in state.open:
            _admitted(state, state.open[event.request_id], event)
        case RequestPreempted() if event.request_id in state.open:
            _let_go(state, state.open[event.request_id])
            _wait(state, state.open[event.request_id])
        case FirstTokenSeen() if event.request_id in state.open:
            _served(state, state.open[event.request_id], event.ttft_ns)
        case RequestFinished() if event.request_id in state.open:
            _served(state, state.open[event.request_id], event.ttft_ns)
            _forget(state, event.request_id)
        case RequestRejected() if event.reason in NOT_OURS:
            _forget(state, event.request_id)
        case RequestRejected() | RequestExpired():
            _missed(state, event.request_id)
            _forget(state, event.request_id)
        case RequestAborted():
            _forget(state, event.request_id)
        case HolderLost():
            for request_id in event.requests:
                _forget(state, request_id)
        case EngineRegistered():
            _registered(state, event)
        case EngineRemoved():
            _removed(state, event.engine_id)
        case EngineHealthChanged() if event.engine_id in state.engines:
            state.engines[event.engine_id].ready = event.health is Health.READY
        case EngineMeasured() if event.engine_id in state.engines:
            state.engines[event.engine_id].measured_ns = now_ns
        case Ticked():
            _ticked(state, now_ns)
        case ShareBoundsAsked() if are_bounds(event):
            if event.engine_id in state.bounds or len(state.bounds) < BOUNDS_MAX:
                state.bounds[event.engine_id] = Bounds(event.embedding_min_ppm, event.embedding_max_ppm)
        case SharesSet():
            _set(state, event)
        case TenantQuotaSet():
            state.tenants.pop(event.tenant, None)
            if event.kv_bytes_max:
                state.tenants[event.tenant] = event.kv_bytes_max
        case _:
            pass


def _arrived(state: State, event: RequestArrived) -> None:
    if event.request_id in state.open:
        return  # Offered again, or said twice: what it wants is known.
    state.open[event.request_id] = Open(event.kind, event.prompt_tokens, event.slo_ttft_ns, max(1, event.inputs))
    if len(state.open) > OPEN_MAX:
        _forget(state, next(iter(state.open)))


def _wait(state: State, one: Open) -> None:
    if not one.waits:
        one.waits = max(1, _at_once(state, one))
        _hold(state.waiting.of(one.kind), one.waits)


def _at_once(state: State, one: Open) -> int:
    """Tokens that it will hold at once. The inputs of an embedding job pass through an engine one after another: a step
    computes so many, and the longest input (its mean, here) may have begun before that."""
    if one.kind is RequestKind.LLM:
        return one.tokens
    batch = max((engine.batch_tokens for engine in _able(state, one.kind)), default=one.tokens)
    return min(one.tokens, batch + one.tokens // one.inputs)


def _admitted(state: State, one: Open, event: RequestAdmitted) -> None:
    _let_go(state, one)
    engine = state.engines.get(event.engine_id)
    if engine is not None:
        one.engine_id = event.engine_id
        one.held = event.embedding_workspace_bytes or event.kv_bytes_reserved
        _hold(engine.books.of(one.kind), one.held)


def _hold(book: Book, amount: int) -> None:
    book.held += amount
    book.peak = max(book.peak, book.held)


def _let_go(state: State, one: Open) -> None:
    """It neither waits nor holds anything any more."""
    if one.waits:
        state.waiting.of(one.kind).held -= one.waits
    engine = state.engines.get(one.engine_id)
    if engine is not None:
        engine.books.of(one.kind).held -= one.held
    one.waits, one.engine_id, one.held = 0, POOL, 0


def _forget(state: State, request_id: RequestId) -> None:
    one = state.open.pop(request_id, None)
    if one is not None:
        _let_go(state, one)


def _served(state: State, one: Open, ttft_ns: int) -> None:
    """The first token (or the vector) was there: how much of the wanted time is missing."""
    engine = state.engines.get(one.engine_id)
    if engine is None or one.seen:
        return
    one.seen = True
    late_ns = max(0, ttft_ns - one.slo_ns)
    _late(engine.books.of(one.kind), min(PPM, late_ns * PPM // max(1, one.slo_ns)))


def _missed(state: State, request_id: RequestId) -> None:
    """It ends without an answer for want of room: missed wherever it could have gone."""
    one = state.open.get(request_id)
    if one is None or one.seen:
        return
    one.seen = True
    for engine in state.engines.values():
        if engine.serves_both():
            _late(engine.books.of(one.kind), PPM)


def _late(book: Book, missing_ppm: int) -> None:
    book.deficit_ppm += (missing_ppm - book.deficit_ppm) // DEFICIT_PART


def _registered(state: State, event: EngineRegistered) -> None:
    before = state.engines.get(event.engine_id)
    engine = state.engines[event.engine_id] = Engine(
        kv_bytes=max(1, event.kv_blocks * event.block_bytes), kv_tokens=max(1, event.kv_blocks * event.block_tokens),
        batch_tokens=event.capability.batch_tokens_max,
        llm=event.capability.llm, embedding=event.capability.embedding,
    )  # fmt: skip
    if before is not None:
        engine.ready, engine.measured_ns = before.ready, before.measured_ns
        engine.books, engine.wants = before.books, before.wants


def _removed(state: State, engine_id: EngineId) -> None:
    """What is open there holds nothing that counts any more: an engine that comes back begins with empty books."""
    for one in state.open.values():
        if one.engine_id == engine_id:
            _let_go(state, one)
    state.engines.pop(engine_id, None)
    state.shares.pop(engine_id, None)


def _set(state: State, event: SharesSet) -> None:
    if event.reason is ShareReason.LIFTED:
        state.shares.pop(event.engine_id, None)
        return
    share = state.shares.get(event.engine_id)
    if share is None:
        state.shares[event.engine_id] = Share(embedding_ppm=event.embedding_ppm)
    else:
        share_control.note(share, event.embedding_ppm, learns=event.reason is ShareReason.LOAD_MOVED)


# The end of a period ------------------------------------------------------------------------------------------------


def _ticked(state: State, now_ns: int) -> None:
    """When a period has ended, what is wanted is decided from its peaks; then the next one begins."""
    state.due = bool(state.period_ns) and now_ns - state.period_ns >= state.settings.period_ns
    if state.due or not state.period_ns:
        state.period_ns = now_ns
    if not state.due:
        return
    divided = [engine for engine in state.engines.values() if engine.serves_both()]
    for engine in divided:
        _observe(engine.books, _demand(state, engine, RequestKind.EMBEDDING))
        engine.wants = _wants(state, engine)
    _begin_period(state)


def _observe(books: Books, embedding_bytes: int) -> None:
    books.idle = 0 if embedding_bytes else min(books.idle + 1, IDLE_PERIODS)
    if books.idle >= IDLE_PERIODS:
        books.load = EmbeddingLoad()
    else:
        embedding_load.observe(books.load, embedding_bytes)


def _begin_period(state: State) -> None:
    """Peaks begin anew, and lateness that is not confirmed fades."""
    for books in (*(engine.books for engine in state.engines.values()), state.waiting):
        for book in (books.llm, books.embedding):
            book.peak = book.held
            book.deficit_ppm -= -(-book.deficit_ppm // DEFICIT_PART)


def _demand(state: State, engine: Engine, kind: RequestKind) -> int:
    """The most bytes that requests of a kind held on an engine in this period, or waited for: what waits in the pool
    is laid on the engines that could take it by their size."""
    waiting = state.waiting.of(kind).peak
    held = engine.books.of(kind).peak
    if not waiting:
        return held
    tokens = sum(one.kv_tokens for one in _able(state, kind))
    return held + waiting * engine.kv_bytes // max(1, tokens)


def _able(state: State, kind: RequestKind) -> Iterator[Engine]:
    for engine in state.engines.values():
        if engine.ready and (engine.llm if kind is RequestKind.LLM else engine.embedding):
            yield engine


def _wants(state: State, engine: Engine) -> Wants:
    """Of both kinds' urgency the embedding jobs' part, not below what is forecast of them. No such jobs: nothing."""
    chosen = state.settings
    llm = _urgency(state, engine, RequestKind.LLM)
    embedding = _urgency(state, engine, RequestKind.EMBEDDING) * chosen.embedding_weight_ppm // PPM
    part_ppm = embedding * PPM // (llm + embedding) if embedding else 0
    if not engine.books.load.samples:
        return Wants(part_ppm, 0, llm, embedding)
    ahead = embedding_load.forecast(engine.books.load, chosen.forecast_periods)
    expected_ppm, floor_ppm = (min(PPM, amount * PPM // engine.kv_bytes) for amount in (ahead.expected, ahead.high))
    return Wants(max(part_ppm, expected_ppm), floor_ppm, llm, embedding)


def _urgency(state: State, engine: Engine, kind: RequestKind) -> int:
    """Slack deficit and queue pressure, weighted. Queue pressure: the memory that is held or waited for, in ppm of the
    engine's."""
    pressure_ppm = _demand(state, engine, kind) * PPM // engine.kv_bytes
    late = state.settings.slack_weight_ppm * engine.books.of(kind).deficit_ppm
    return (late + state.settings.queue_weight_ppm * pressure_ppm) // PPM


def stale(state: State, now_ns: int) -> list[EngineId]:
    """Engines that take work and whose facts are not fresh: not measured since the start, or not of late."""
    return [
        engine_id
        for engine_id, engine in state.engines.items()
        if engine.ready and not (engine.measured_ns >= 0 and now_ns - engine.measured_ns <= state.settings.fresh_ns)
    ]
