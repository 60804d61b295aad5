"""What is found out before systems are compared: knees, the best point of the grid for each baseline, lru or arc.

1. A first knee of the careful baseline as shipped (lru), on few engines and a short window.
2. The grid: every baseline at every point, at loads of that knee, with tuning seeds. Each gets the point at which it
   has the most goodput; first the careful baseline, which also chooses the tier eviction. That goes for all that have
   the same tier, and it is what they go through the grid with.
3. The knee that loads are multiples of: the careful baseline at its best, on the engines, window and seeds on which
   all are judged. And the knee of vLLM as shipped, at its best, the same way.
   A steady workload takes the choices of the one that it is made of, and has a knee of its own.
4. The knee for every other kind of engine: on as many and for as long as there, but on light ones, which are cheap. (A
   knee on two engines and five minutes is not that on eight and thirty.) 3 and 4 are searched side by side.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import product
from typing import Final, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from replay.bench.memory.knees import knee_of, scale_at, wanted
from replay.bench.memory.plan import Plan, Stage, takes_point_of, tuned_systems
from replay.bench.memory.report import EngineModel, Knee, System
from replay.bench.memory.rounds import Runs
from replay.bench.memory.systems import CAREFUL, LRU, SHIPPED, SHIPPED_SEQS, SHIPPED_TOKENS
from replay.bench.memory.task import MemoryTask
from replay.bench.memory.workloads import WORKLOADS, Offer

K = TypeVar("K", bound=Hashable)
Point = tuple[int, int]
"""`max_num_batched_tokens` and `max_num_seqs`."""
SHIPPED_POINT: Final = (SHIPPED_TOKENS, SHIPPED_SEQS)


class Tuned(msgspec.Struct, kw_only=True):
    """What was found for one workload."""

    knee: Knee
    shipped_knee: Knee | None = None
    other_knees: dict[str, Knee] = msgspec.field(default_factory=dict)
    """By kind of engine."""
    eviction: str = LRU
    points: dict[str, Point] = msgspec.field(default_factory=dict)
    tried: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)
    """Goodput by system and point: what was chosen from."""


def tuned(plan: Plan, runs: Runs) -> dict[str, Tuned]:
    """All of it, by workload."""
    tuning = plan.tuning
    small = Stage(
        engine=EngineModel.LIGHT, engines=tuning.engines, seconds=tuning.seconds, workloads=plan.choosing, systems=(),
        loads=tuning.loads, seeds=tuning.seeds, shorter=tuning.longer,
    )  # fmt: skip
    guesses = {name: plan.guesses.get(name, WORKLOADS[name].guess) for name in plan.choosing}
    careful = with_eviction(plan.systems[CAREFUL], LRU)
    first = searched(
        runs, guesses, plan.knee_steps,
        lambda name, scale: tasks_of(plan, small, name, careful, SHIPPED_POINT, scale),
    )  # fmt: skip
    found = {name: Tuned(knee=knee) for name, knee in first.items()}
    _go_through_grid(plan, small, runs, found)
    for name in plan.taking:
        found[name] = replace(found[plan.chosen_on[name]], other_knees={}, tried={})
    _search_knees(plan, runs, found)
    return found


class _Search(NamedTuple):
    """For the knee of a system: the scale at which it begins, and the engines, window and seeds it runs on."""

    guess: float
    stage: Stage
    system: str = CAREFUL


def _search_knees(plan: Plan, runs: Runs, found: Mapping[str, Tuned]) -> None:
    """All knees that loads are multiples of, side by side, for no search needs what another one finds."""
    searches: dict[tuple[str, str], _Search] = {}
    for name in plan.choosing:
        guess = plan.large_guesses.get(name, found[name].knee.scale)
        searches[name, CAREFUL] = _Search(guess, plan.light)
        if plan.shipped_knee:
            searches[name, SHIPPED] = _Search(plan.shipped_guesses.get(name, guess), plan.light, SHIPPED)
    for name in plan.taking:
        guess = plan.large_guesses.get(name, WORKLOADS[name].guess)
        searches[name, CAREFUL] = _Search(guess, replace(plan.stage_of(name), engines=plan.forms_engines))
    for stage in plan.stages[1:]:
        if stage.engine is not EngineModel.LIGHT and runs.can(stage.engine):
            as_light = replace(stage, engine=EngineModel.LIGHT)
            searches |= {
                (name, stage.engine.value): _Search(found[name].knee.scale, as_light) for name in stage.workloads
            }

    def tasks(key: tuple[str, str], scale: float) -> list[MemoryTask]:
        name, search = key[0], searches[key]
        system = with_eviction(plan.systems[search.system], found[name].eviction)
        return tasks_of(plan, search.stage, name, system, point_of(system, found[name]), scale)

    guesses = {key: search.guess for key, search in searches.items()}
    for (name, of), knee in searched(runs, guesses, plan.knee_steps, tasks).items():
        if of == CAREFUL:
            found[name].knee = knee
        elif of == SHIPPED:
            found[name].shipped_knee = knee
        else:
            found[name].other_knees[of] = knee


def tasks_of(plan: Plan, stage: Stage, workload: str, system: System, point: Point, scale: float) -> list[MemoryTask]:
    """The runs of a system at a scale, one a seed; the first of them has series."""
    return [
        MemoryTask(
            offer=Offer(
                workload=workload, seed=seed, scale=scale, seconds=stage.seconds_of(workload), engines=stage.engines,
                trace=plan.traces.get(workload, ""),
            ),
            system=system, batch_tokens=point[0], seqs_max=point[1], engine=stage.engine,
            with_series=number == 0,
        )
        for number, seed in enumerate(stage.seeds)
    ]  # fmt: skip


def with_eviction(system: System, eviction: str) -> System:
    """The system with that eviction in its tiers, where they are vLLM's own and it does not say which."""
    is_open = system.dram_ppm and system.preset != "default" and not system.tier_eviction
    return replace(system, tier_eviction=eviction) if is_open else system


def point_of(system: System, chosen: Tuned) -> Point:
    """Where a system runs: what it says itself, else what was best for it or for the one that it takes it from."""
    tokens, seqs = chosen.points.get(takes_point_of(system), SHIPPED_POINT)
    return system.batch_tokens or tokens, system.seqs_max or seqs


def searched(
    runs: Runs, guesses: Mapping[K, float], steps: Sequence[int], tasks: Callable[[K, float], list[MemoryTask]]
) -> dict[K, Knee]:
    """Some knees, each searched from its guess, side by side. With `steps` only among those."""
    found: dict[K, dict[int, float]] = {key: {} for key in guesses}
    wave = [(key, step) for key in guesses for step in steps or wanted({})]
    while wave:
        goodputs = runs.goodputs([tasks(key, scale_at(guesses[key], step)) for key, step in wave])
        for (key, step), goodput in zip(wave, goodputs, strict=True):
            found[key][step] = goodput
        wave = [] if steps else [(key, step) for key in guesses for step in wanted(found[key])]
    return {key: knee_of(guess, found[key]) for key, guess in guesses.items()}


def knee_for(stage: Stage, chosen: Tuned) -> Knee:
    """The knee that the loads of a stage are multiples of."""
    return chosen.other_knees.get(stage.engine.value, chosen.knee)


def _go_through_grid(plan: Plan, small: Stage, runs: Runs, found: Mapping[str, Tuned]) -> None:
    """The careful baseline with each eviction, then all others with the one that was chosen."""
    _choose(plan, small, runs, found, [(name, CAREFUL, kind) for name in found for kind in plan.tuning.evictions])
    others = [name for name in tuned_systems(plan) if name != CAREFUL]
    _choose(plan, small, runs, found, [(name, other, one.eviction) for name, one in found.items() for other in others])


def _choose(
    plan: Plan, small: Stage, runs: Runs, found: Mapping[str, Tuned], tried: Sequence[tuple[str, str, str]]
) -> None:
    """The best point of the grid for each of these workloads and systems, and among the evictions given with them."""
    tuning = plan.tuning
    points = list(product(tuning.tokens, tuning.seqs))
    places = [(workload, name, kind, point) for workload, name, kind in tried for point in points]
    goodputs = runs.goodputs([
        [
            task for load in tuning.loads
            for task in tasks_of(
                plan, small, workload, with_eviction(plan.systems[name], kind), point, load * found[workload].knee.scale
            )
        ]
        for workload, name, kind, point in places
    ])  # fmt: skip
    best: dict[tuple[str, str], float] = {}
    for (workload, name, kind, point), goodput in zip(places, goodputs, strict=True):
        one = found[workload]
        label = f"{name} {kind}" if name == CAREFUL else name
        one.tried.setdefault(label, {})[f"{point[0]} x {point[1]}"] = goodput
        if goodput > best.get((workload, name), -1.0):
            best[workload, name], one.points[name] = goodput, point
            one.eviction = kind if name == CAREFUL else one.eviction
