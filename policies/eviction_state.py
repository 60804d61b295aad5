"""What eviction knows, and how facts and decisions change it."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from events.base import NS_PER_S, EngineId, Event, ModelId, RequestId, SliceId
from events.control import Ticked
from events.decisions import (
    EngineDirected,
    HolderLost,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
)
from events.engine import EngineKind, EngineMeasured, EngineRegistered, EngineRemoved
from events.request import RequestAborted, RequestArrived, RequestExpired, RequestFinished
from events.slice import SlicesPinned
from policies import pins, settings
from policies.eviction_settings import EvictionSettings
from policies.memory import hottest
from policies.memory.hottest import Hottest
from policies.memory.reuse import Heat, half_life_ns
from policies.pins import Pins

ACTOR = "eviction"
HEAT_MAX = 16_384
"""Slices whose heat is known: those used last."""
LEAD_MAX = 256
"""Slices of a prompt that are looked at, the first ones: what prompts share stands at their beginning."""
OPEN_MAX = 2_048
"""Requests whose slices are remembered, the newest; of an older one that still waits nothing is kept."""
HEARD_NS = 5 * NS_PER_S
"""An agent that is there has its engine go by a directive within this time."""


class Engine(msgspec.Struct, kw_only=True):
    """An engine that takes directives. `said` is the newest one, and since when it counts; `went_by` the newest version
    that it ever went by. One that `has_agent` hears only what is said while its agent listens."""

    models: tuple[ModelId, ...]
    kv_tokens: int
    said: EngineDirected | None = None
    said_ns: int = 0
    went_by: int = 0
    has_agent: bool = False


class Open(msgspec.Struct, array_like=True):
    """A request that has not ended: its model, the slices that it begins with, and how many of those, from the first,
    somebody may have computed: another request before it, or itself before it was preempted."""

    model: ModelId
    slices: tuple[SliceId, ...]
    computed: int = 0


class State(msgspec.Struct, kw_only=True):
    """All that eviction knows; bounded by engines and the limits above.

    `warm` are the slices of `heat` that were used more than once, of `slice_tokens` tokens, and of those `hottest` are
    hot. `pins` end at a time.
    `version` is that of the newest directive: versions rise over all engines, so one that comes back is not taken for
    the one before.
    """

    settings: EvictionSettings = msgspec.field(default_factory=EvictionSettings)
    engines: dict[EngineId, Engine] = msgspec.field(default_factory=dict)
    heat: dict[SliceId, Heat] = msgspec.field(default_factory=dict)
    warm: dict[SliceId, None] = msgspec.field(default_factory=dict)
    hottest: Hottest = msgspec.field(default_factory=Hottest)
    slice_tokens: int = 256
    open: dict[RequestId, Open] = msgspec.field(default_factory=dict)
    waiting: dict[RequestId, None] = msgspec.field(default_factory=dict)
    pins: Pins = msgspec.field(default_factory=dict)
    version: int = 0


def initial() -> State:
    """Knows nothing yet."""
    return State()


def configure(state: State, changes: Mapping[str, Any]) -> None:
    """Change the named settings, all or none. Raises ValueError that names key, value and what is allowed."""
    settings.apply(ACTOR, state.settings, changes)
    state.hottest = hottest.anew(state.heat.items(), uses_min=state.settings.hot_uses_min)


def evolve(state: State, event: Event, now_ns: int) -> None:
    """Take a fact or a decision in."""
    match event:
        case RequestArrived():
            _arrived(state, event, now_ns)
        case RequestDeferred() | RequestPreempted() | RequestAdmitted():
            _decided(state, event)
        case RequestRejected() | RequestFinished() | RequestAborted() | RequestExpired():
            _end(state, [event.request_id])
        case HolderLost():
            _end(state, event.requests)
        case SlicesPinned():
            pins.heed(state.pins, event, now_ns)
        case EngineRegistered():
            _registered(state, event)
        case EngineRemoved():
            state.engines.pop(event.engine_id, None)
        case EngineMeasured():
            _measured(state, event, now_ns)
        case EngineDirected():
            _directed(state, event, now_ns)
        case Ticked():
            _ticked(state, now_ns)
        case _:
            pass


def _ticked(state: State, now_ns: int) -> None:
    chosen = state.settings
    state.pins = pins.holding(state.pins, now_ns)
    hottest.cool(
        state.hottest, state.heat.__getitem__, now_ns, uses_min=chosen.hot_uses_min, horizon_ns=chosen.horizon_ns
    )


def _arrived(state: State, event: RequestArrived, now_ns: int) -> None:
    lead = event.slices[:LEAD_MAX]
    if not lead:
        return
    if event.attempt == 0:
        _warm_up(state, lead, now_ns)
    computed = next((n for n, slice_id in enumerate(lead) if slice_id not in state.warm), len(lead))
    state.open[event.request_id] = Open(event.model, lead, computed)
    state.slice_tokens = max(1, event.slice_tokens)
    if len(state.open) > OPEN_MAX:
        _end(state, [next(iter(state.open))])


def _warm_up(state: State, lead: Sequence[SliceId], now_ns: int) -> None:
    half_life, uses_min, heats = half_life_ns(state.settings.horizon_ns), state.settings.hot_uses_min, state.heat
    once = Heat()
    once.add(now_ns, half_life)
    hot_at_once = hottest.is_hot(once, uses_min=uses_min)
    for slice_id in lead:
        heat = heats.pop(slice_id, None)
        if heat is None:  # Most are: they are asked of at every arrival.
            heats[slice_id] = heat = Heat(once.epoch, once.amount)
            if not hot_at_once:
                continue
        else:
            state.warm[slice_id] = None
            heat.add(now_ns, half_life)
            heats[slice_id] = heat
        hottest.used(state.hottest, slice_id, heat, uses_min=uses_min)
    # All at one go: a dictionary passes over what has left it whenever it is asked for its first one.
    for oldest in list(islice(heats, max(0, len(heats) - HEAT_MAX))):
        del heats[oldest]
        state.warm.pop(oldest, None)
        hottest.forgotten(state.hottest, oldest)


def _decided(state: State, event: RequestDeferred | RequestPreempted | RequestAdmitted) -> None:
    """It waits, for the first time or again; or it waits no more."""
    if isinstance(event, RequestAdmitted):
        state.waiting.pop(event.request_id, None)
    elif event.request_id in state.open:
        state.waiting[event.request_id] = None
        if isinstance(event, RequestPreempted):
            one = state.open[event.request_id]
            one.computed = len(one.slices)


def _end(state: State, ended: Sequence[RequestId]) -> None:
    for request_id in ended:
        state.open.pop(request_id, None)
        state.waiting.pop(request_id, None)


def _registered(state: State, event: EngineRegistered) -> None:
    """Said again, it may be because the engine was started anew: what it was told is not known to hold. Stock engines
    take no directives; only ours and those with our agent (which reports slices) do."""
    if event.kind is not EngineKind.SIMULATED and not event.capability.reports_slices:
        state.engines.pop(event.engine_id, None)
        return
    kv_tokens = event.kv_blocks * event.block_tokens
    has_agent = event.kind is not EngineKind.SIMULATED
    state.engines[event.engine_id] = Engine(models=event.models, kv_tokens=kv_tokens, has_agent=has_agent)


def _directed(state: State, event: EngineDirected, now_ns: int) -> None:
    engine = state.engines.get(event.engine_id)
    state.version = max(state.version, event.version)
    if engine is not None:
        engine.said, engine.said_ns = event, now_ns


def _measured(state: State, event: EngineMeasured, now_ns: int) -> None:
    """An engine that goes by an older directive than before was started anew; one that still goes by an older one than
    it was told, long after, never heard it. Both are told again."""
    engine = state.engines.get(event.engine_id)
    if engine is None:
        return
    told_ns = now_ns - engine.said_ns if engine.said is not None and engine.has_agent else 0
    deaf = engine.said is not None and event.directive_version < engine.said.version and told_ns >= HEARD_NS
    if event.directive_version < engine.went_by or deaf:
        engine.said = None
    engine.went_by = event.directive_version
