"""Eviction: what every engine goes by when it has to evict or to preempt within a step.

An engine cannot ask when it is short of memory, so it is told beforehand (a delegated choice): the kind of slice
eviction (`policies.memory.kinds`), which answers are too near their end to give way (`policies.memory.victims`), and
the slices that are special:

- pinned: an operator said so; until the pin ends.
- needed: those that waiting requests for a model of this engine begin with, as far as anybody asked for them before
  (what nobody did is nowhere), in the order in which they began to wait.
- hot: those used most of late in the whole pool, and at least `hot_uses_min` times.

What is pinned and needed takes at most half of an engine's KV, what is hot a quarter; whole slices from the beginning
of each prompt, since a slice is worth nothing without those before it.

A directive is said when an engine registers, and with a tick when it would differ: in kind, protection, horizon, pins
or needs, or in an eighth of what is hot. Per engine at most once a second, and no more than SLICES_MAX slices per tick
in all; engines that were told longest ago come first. An engine that was started anew, or whose agent did not hear, is
told again. Switched off, engines are told once to choose as they like.

Sources: pins with an end are Mooncake's soft pins and LMCache's pin call; the hot set of a pool is our own. That
engines answer within a step and the log holds only what they go by is the design's (delegated choices).

Example: request a begins with slices 1, 2, 3, of which another began with 1, 2, and is deferred; with the next tick
engine e1 is told that 1, 2 are needed. a is admitted; with the tick after that e1 is told that nothing is.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from events.base import NS_PER_S, EngineId, Event, SliceId
from events.control import Ticked
from events.decisions import (
    EngineDirected,
    HolderLost,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
)
from events.engine import EngineMeasured, EngineRegistered, EngineRemoved
from events.request import RequestAborted, RequestArrived, RequestExpired, RequestFinished
from events.slice import SlicesPinned
from policies.decider import Decider
from policies.eviction_state import ACTOR, Engine, State, configure, evolve, initial
from policies.memory import hottest
from policies.memory.reuse import half_life_ns, uses_of_late
from policies.settings import Switch

SAID_EVERY_NS = NS_PER_S
"""An engine is told at most so often."""
SLICES_MAX = 8_192
"""Slices named because of one record: it has to fit into one message."""
AS_IT_LIKES = ""
"""The kind of eviction of an engine that chooses alone."""


def decide(state: State, event: Event, now_ns: int) -> list[Event]:
    """What follows from this fact. Changes nothing."""
    match event:
        case EngineRegistered() if event.engine_id in state.engines:
            return list(_say(state, [event.engine_id], now_ns))
        case Ticked():
            waited = [name for name, engine in state.engines.items() if _may_be_told(engine, now_ns)]
            waited.sort(key=lambda name: state.engines[name].said_ns)
            return list(_say(state, waited, now_ns)) if waited else []
        case _:
            return []


def _may_be_told(engine: Engine, now_ns: int) -> bool:
    return engine.said is None or now_ns - engine.said_ns >= SAID_EVERY_NS


def _say(state: State, names: Iterable[EngineId], now_ns: int) -> Iterable[Event]:
    """Directives for those of these engines for which something changed."""
    hot = _hot(state, now_ns)
    version, left = state.version, SLICES_MAX
    for name in names:
        engine = state.engines[name]
        wanted = _wanted(state, name, engine, hot, version + 1)
        if not _differs(wanted, engine.said):
            continue
        left -= len(wanted.pinned) + len(wanted.needed) + len(wanted.hot)
        if left < 0:
            return
        version += 1
        yield wanted


def _wanted(state: State, name: EngineId, engine: Engine, hot: list[SliceId], version: int) -> EngineDirected:
    settings = state.settings
    if settings.enabled is Switch.OFF:
        return EngineDirected(engine_id=name, version=version, eviction=AS_IT_LIKES, protect_ppm=0)
    slices_max = engine.kv_tokens // state.slice_tokens
    pinned = tuple(islice(state.pins, slices_max // 2))
    needed = _needed(state, engine, min(settings.needed_max, slices_max // 2 - len(pinned)))
    return EngineDirected(
        engine_id=name, version=version, eviction=settings.kind.value, protect_ppm=settings.protect_ppm, pinned=pinned,
        needed=needed, hot=tuple(hot[: slices_max // 4]), horizon_ns=settings.horizon_ns,
    )  # fmt: skip


def _needed(state: State, engine: Engine, most: int) -> tuple[SliceId, ...]:
    found: dict[SliceId, None] = {}
    for request_id in state.waiting:
        if len(found) >= most:
            break
        one = state.open[request_id]
        if one.model in engine.models:
            found.update(dict.fromkeys(one.slices[: one.computed]))
    return tuple(islice(found, max(0, most)))


def _hot(state: State, now_ns: int) -> list[SliceId]:
    """The hottest first."""
    chosen = state.settings
    found = hottest.hot(
        state.hottest, state.heat.__getitem__, now_ns, uses_min=chosen.hot_uses_min, horizon_ns=chosen.horizon_ns
    )
    places = [(order, slice_id) for slice_id, order in hottest.foremost(found, chosen.hot_max).items()]
    places.sort(reverse=True)
    return [slice_id for _, slice_id in places[: chosen.hot_max]]


def _differs(wanted: EngineDirected, said: EngineDirected | None) -> bool:
    """Whether it is worth saying: an engine that was never told, and need not be, is not."""
    if said is None:
        return wanted.eviction != AS_IT_LIKES
    if (wanted.eviction, wanted.protect_ppm, wanted.horizon_ns) != (said.eviction, said.protect_ppm, said.horizon_ns):
        return True
    if sorted(wanted.pinned) != sorted(said.pinned) or sorted(wanted.needed) != sorted(said.needed):
        return True
    before = dict.fromkeys(said.hot)
    new = sum(slice_id not in before for slice_id in wanted.hot)
    gone = len(said.hot) - (len(wanted.hot) - new)
    return 8 * max(new, gone) > max(len(wanted.hot), len(said.hot))


def explain(state: State, event: Event, now_ns: int) -> dict[str, Any]:
    """For every engine what it goes by, what it should go by now, and whether that is worth saying; which slices are
    hot, and how often they were used of late. Changes nothing."""
    hot, half_life = _hot(state, now_ns), half_life_ns(state.settings.horizon_ns)
    engines = []
    for name, engine in state.engines.items():
        wanted = _wanted(state, name, engine, hot, state.version + 1)
        engines.append({
            "engine_id": name,
            "goes_by": engine.said.version if engine.said is not None else 0,
            "told_ns_ago": now_ns - engine.said_ns if engine.said is not None else None,
            "eviction": wanted.eviction,
            "protect_ppm": wanted.protect_ppm,
            "pinned": list(wanted.pinned),
            "needed": list(wanted.needed),
            "hot": list(wanted.hot),
            "differs": _differs(wanted, engine.said),
        })  # fmt: skip
    return {
        "event": event.event_kind(),
        "now_ns": now_ns,
        "enabled": state.settings.enabled.value,
        "waiting": len(state.waiting),
        "hot": {slice_id: uses_of_late(state.heat[slice_id], now_ns, half_life) for slice_id in hot},
        "engines": engines,
    }


EVICTION: Decider[State] = Decider(
    name=ACTOR,
    state=State,
    initial=initial,
    evolve=evolve,
    decide=decide,
    configure=configure,
    explain=explain,
    takes=frozenset({
        RequestArrived, RequestDeferred, RequestAdmitted, RequestRejected, RequestPreempted, RequestFinished,
        RequestAborted, RequestExpired, HolderLost, SlicesPinned, EngineRegistered, EngineRemoved, EngineMeasured,
        Ticked,
    }),
)  # fmt: skip
"""Eviction with its default settings."""
