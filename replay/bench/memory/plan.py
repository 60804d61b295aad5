"""What a suite of the memory benchmark runs, and about how long that takes.

- smoke: is everything in its place? A look at three workloads on two engines, in less than a minute.
- standard: the workloads and systems that the goals speak of, 30 virtual minutes on 8 light engines (those with the
  most requests a second less: `synthetic` and `mixed` 10), steady workloads at their knee, and 5 virtual minutes on 2
  engines with vLLM's scheduler. One seed a load, a smaller grid, and systems only at loads where a goal needs them:
  less than half an hour on two quiet cores.
- full: all systems, workloads and judging seeds. Hours.

Choices (the point of the grid, lru or arc) are made with tuning seeds, results are those of judging seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from replay.bench.memory.report import EngineModel, System
from replay.bench.memory.systems import (
    ARC,
    CAREFUL,
    GRID_SEQS,
    GRID_TOKENS,
    LRU,
    OURS,
    OURS_UNLIMITED,
    RIVAL,
    SHIPPED,
    SMALL,
    SYSTEMS,
    UNLIMITED,
)
from replay.bench.policies import LOADS, SEEDS, TUNING_SEEDS

KNEE_LOAD: Final = 1.0
MAIN: Final = (SHIPPED, CAREFUL, RIVAL, OURS, UNLIMITED)
TWINS: Final = (CAREFUL + SMALL, OURS + SMALL)
"""Those with the smaller tier, which are held against the bound."""
STEADY: Final = (CAREFUL, OURS, UNLIMITED)
"""Those that are compared where the offer does not change: what the bound has of unevenness, the offer has."""
STEADY_ENGINES: Final = 16
"""Of `coding_steady` some ten requests decode at a time on 8 engines, and their number alone fluctuates by 0.15 with
unlimited KV: twice the engines make the offer even enough to see what a server adds."""
STEADY_FORMS: Final = {"coding_steady": "coding", "mixed_steady": "mixed"}
"""Steady workloads, and those that they are made of."""
UP_TO_KNEE: Final = tuple(load for load in LOADS if load <= KNEE_LOAD)
FROM_KNEE: Final = tuple(load for load in LOADS if load >= KNEE_LOAD)


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Engines of one kind, so many, for so many virtual seconds, and what runs on them. `only_at` are systems
    that run at some of the loads only, `shorter` are workloads that run for other virtual seconds (fewer where there
    are many requests a second, more where there are too few to say anything)."""

    engine: EngineModel
    engines: int
    seconds: int
    workloads: tuple[str, ...]
    systems: tuple[str, ...]
    loads: tuple[float, ...]
    seeds: tuple[int, ...]
    only_at: Mapping[str, tuple[float, ...]] = msgspec.field(default_factory=dict)
    shorter: Mapping[str, int] = msgspec.field(default_factory=dict)

    def seconds_of(self, workload: str) -> int:
        """How long a workload runs."""
        return self.shorter.get(workload, self.seconds)

    def loads_of(self, system: str) -> tuple[float, ...]:
        """The loads at which a system runs."""
        some = self.only_at.get(system, self.loads)
        return tuple(load for load in self.loads if load in some)


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """The grid that baselines get the best of, and how it is gone through: on light engines, so many, for so many
    virtual seconds (`longer` where sessions need longer until as many are open as there will be), at these loads of a
    knee that is looked for the same way."""

    tokens: tuple[int, ...] = GRID_TOKENS
    seqs: tuple[int, ...] = GRID_SEQS
    evictions: tuple[str, ...] = (LRU, ARC)
    engines: int = 4
    seconds: int = 300
    longer: Mapping[str, int] = msgspec.field(default_factory=lambda: {"coding": 1_800})
    loads: tuple[float, ...] = (1.0, 1.2)
    seeds: tuple[int, ...] = TUNING_SEEDS[:1]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `systems` by name are all that stages speak of; `traces` by workload ("" = drawn)."""

    suite: str
    stages: tuple[Stage, ...]
    tuning: Tuning = Tuning()
    systems: Mapping[str, System] = msgspec.field(default_factory=lambda: dict(SYSTEMS))
    traces: Mapping[str, str] = msgspec.field(default_factory=dict)
    guesses: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Where the search for a knee begins, by workload, where that is not the workload's own guess."""
    large_guesses: Mapping[str, float] = msgspec.field(default_factory=dict)
    """The same for the engines and the window of the first stage, where that is not the knee of the short one: more
    engines bear more each, and every step of the search costs the more there."""
    shipped_guesses: Mapping[str, float] = msgspec.field(default_factory=dict)
    """The same for the knee of vLLM as shipped, where its search begins elsewhere."""
    knee_steps: tuple[int, ...] = ()
    """Only these steps of the search for a knee (none = as far as it goes): a look, not a result."""
    forms: Mapping[str, str] = msgspec.field(default_factory=lambda: dict(STEADY_FORMS))
    """Workloads that run at the points of the grid, and with lru or arc, that were chosen on another one, by name,
    where that is in the plan. Their knees are their own, looked for on `forms_engines`."""
    forms_engines: int = 4
    shipped_knee: bool = True
    """Whether the knee of vLLM as shipped is looked for too: the load at which percentiles are compared with it."""

    @property
    def workloads(self) -> tuple[str, ...]:
        """All of them, in order, once each."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.workloads))

    @property
    def chosen_on(self) -> dict[str, str]:
        """The workload whose choices each takes: most their own."""
        names = self.workloads
        return {name: other if (other := self.forms.get(name, name)) in names else name for name in names}

    @property
    def choosing(self) -> tuple[str, ...]:
        """The workloads that choices are made on."""
        return tuple(dict.fromkeys(self.chosen_on.values()))

    @property
    def taking(self) -> tuple[str, ...]:
        """Those that take the choices of another one."""
        return tuple(name for name, other in self.chosen_on.items() if name != other)

    def is_for(self, stage: Stage, workload: str) -> bool:
        """Whether a workload that is asked for belongs on this stage: steady ones on the stage that is theirs, where
        there is one, and the others on the others."""
        steady = [one for one in self.stages if set(one.workloads) <= self.forms.keys()]
        if stage in steady:
            return workload in stage.workloads
        return all(workload not in one.workloads for one in steady)

    def stage_of(self, workload: str) -> Stage:
        """The stage whose knee the loads of a workload are multiples of: the first that has it."""
        return next(stage for stage in self.stages if workload in stage.workloads)

    @property
    def light(self) -> Stage:
        """The first stage: the one whose knee all loads are multiples of."""
        return self.stages[0]


_WORKLOADS: Final = ("conversation", "synthetic", "coding", "mixed")

SMOKE: Final = Plan(
    suite="smoke",
    stages=(
        Stage(
            engine=EngineModel.LIGHT, engines=2, seconds=90, workloads=("conversation", "coding_small", "mixed"),
            systems=MAIN, loads=(1.0, 1.2), seeds=SEEDS[:1], shorter={"coding_small": 240},
        ),
    ),
    tuning=Tuning(tokens=(1_024, 2_048), seqs=(256,), evictions=(LRU,), engines=2, seconds=60, loads=(1.2,)),
    knee_steps=(-2, 0, 2), shipped_knee=False, guesses={"mixed": 1.8, "coding_small": 6.0},
)  # fmt: skip
STANDARD: Final = Plan(
    suite="standard",
    stages=(
        Stage(
            engine=EngineModel.LIGHT, engines=8, seconds=1_800, workloads=_WORKLOADS,
            systems=(*MAIN, OURS_UNLIMITED, *TWINS), shorter={"synthetic": 600, "mixed": 600},
            only_at={
                **dict.fromkeys(TWINS, (KNEE_LOAD,)), SHIPPED: FROM_KNEE, UNLIMITED: UP_TO_KNEE,
                OURS_UNLIMITED: (KNEE_LOAD, 1.2),
            },
            loads=LOADS, seeds=SEEDS[:1],
        ),
        Stage(
            engine=EngineModel.LIGHT, engines=STEADY_ENGINES, seconds=1_800, workloads=("coding_steady",),
            systems=STEADY, loads=(KNEE_LOAD,), seeds=SEEDS[:1],
        ),
        Stage(
            engine=EngineModel.LIGHT, engines=8, seconds=480, workloads=("mixed_steady",), systems=STEADY,
            loads=(KNEE_LOAD,), seeds=SEEDS[:1],
        ),
        Stage(
            engine=EngineModel.VLLM_SCHEDULER, engines=2, seconds=300, workloads=("conversation", "mixed"),
            systems=(SHIPPED, CAREFUL, RIVAL, OURS), only_at={SHIPPED: (1.2,)}, loads=(1.0, 1.2), seeds=SEEDS[:1],
        ),
    ),
    tuning=Tuning(tokens=(1_024, 2_048, 8_192), seqs=(64, 256), engines=2),
    large_guesses={
        "conversation": 1.452, "synthetic": 3.7, "coding": 0.65, "mixed": 0.9, "coding_steady": 1.35,
        "mixed_steady": 0.83,
    },
    shipped_guesses={"conversation": 1.32, "synthetic": 2.0886, "coding": 0.5372, "mixed": 0.7438},
)  # fmt: skip
FULL: Final = Plan(
    suite="full",
    stages=(
        Stage(
            engine=EngineModel.LIGHT, engines=8, seconds=1_800, workloads=(*_WORKLOADS, "conversation_embedding"),
            systems=(*(name for name in SYSTEMS if name not in ("careful_lru", "careful_arc")),), loads=LOADS,
            seeds=SEEDS,
        ),
        Stage(
            engine=EngineModel.LIGHT, engines=STEADY_ENGINES, seconds=1_800, workloads=tuple(STEADY_FORMS),
            systems=(*STEADY, SHIPPED, RIVAL, OURS_UNLIMITED), loads=FROM_KNEE, seeds=SEEDS[:3],
        ),
        Stage(
            engine=EngineModel.VLLM_SCHEDULER, engines=2, seconds=300, workloads=_WORKLOADS,
            systems=(*MAIN, OURS_UNLIMITED), loads=LOADS, seeds=SEEDS[:3],
        ),
    ),
    tuning=Tuning(seeds=TUNING_SEEDS, engines=8, seconds=600),
)  # fmt: skip
SUITES: Final = {plan.suite: plan for plan in (SMOKE, STANDARD, FULL)}


KNEE_RUNS: Final = 6
"""Runs of a search for a knee, about: three, perhaps one more to see it fall, two beside the peak."""


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """About how much a part of a suite is: its runs, and the virtual seconds of all their engines together, each run
    counted with its load (at 1.5 times the load there is 1.5 times as much to do)."""

    name: str
    engine: EngineModel
    runs: int
    engine_seconds: float


def phases(plan: Plan) -> list[Phase]:
    """The parts of a suite, in the order in which they run."""
    tuning, first, names = plan.tuning, plan.light, plan.choosing
    steps = len(plan.knee_steps) or KNEE_RUNS
    points = len(tuning.tokens) * len(tuning.seqs)
    kinds = len(tuned_systems(plan)) + len(tuning.evictions) - 1  # The careful baseline is tried with each.
    short = len(tuning.seeds) * len(names)
    small = tuning.engines * sum(tuning.longer.get(name, tuning.seconds) for name in names) // len(names)
    large = first.engines * sum(map(first.seconds_of, names)) // len(names)
    searches = (2 if plan.shipped_knee else 1) * steps * len(names) * len(first.seeds)
    return [
        _phase("knee, short", EngineModel.LIGHT, short * steps, (KNEE_LOAD,), small),
        _phase("grid", EngineModel.LIGHT, short * points * kinds, tuning.loads, small),
        _phase("knees", EngineModel.LIGHT, searches, (KNEE_LOAD,), large),
        *(
            _phase(
                f"knee of {name}", EngineModel.LIGHT, steps * len(plan.stage_of(name).seeds), (KNEE_LOAD,),
                plan.forms_engines * plan.stage_of(name).seconds_of(name),
            )
            for name in plan.taking
        ),
        *(_stage_phase(stage) for stage in plan.stages),
    ]  # fmt: skip


def runs_of(plan: Plan) -> int:
    """About how many runs a plan is: how many a search for a knee takes is known when it is over."""
    return sum(phase.runs for phase in phases(plan))


def hours(plan: Plan, speeds: Mapping[EngineModel, float], jobs: int) -> float:
    """About how long a plan takes: `speeds` are virtual engine seconds per second, of one job, by kind of engine. What
    has no speed is not run."""
    work = [(phase.engine_seconds, speeds.get(phase.engine)) for phase in phases(plan)]
    return sum(amount / speed for amount, speed in work if speed) / jobs / 3_600


def tuned_systems(plan: Plan) -> tuple[str, ...]:
    """The baselines of a plan that are looked for the best point of the grid for. Twins, bounds and our own policy take
    the point of another."""
    named = dict.fromkeys(name for stage in plan.stages for name in stage.systems)
    return tuple(
        dict.fromkeys((CAREFUL, RIVAL, *(name for name in named if takes_point_of(plan.systems[name]) == name)))
    )


def takes_point_of(system: System) -> str:
    """Whose point of the grid a system runs at: a twin at that of its original, a bound of the careful baseline at that
    of the careful baseline, and all that is ours at the honest rival's."""
    if system.preset == "default":
        return RIVAL
    if system.preset == SYSTEMS[CAREFUL].preset and (system.dram_ppm or system.unlimited_kv):
        return CAREFUL
    return system.name.removesuffix(SMALL)


def _phase(name: str, engine: EngineModel, each: int, loads: Sequence[float], seconds: int) -> Phase:
    return Phase(name=name, engine=engine, runs=each * len(loads), engine_seconds=each * sum(loads) * seconds)


def _stage_phase(stage: Stage) -> Phase:
    loads = [load for system in stage.systems for load in stage.loads_of(system)]
    each = len(stage.workloads) * len(stage.seeds)
    seconds = stage.engines * sum(map(stage.seconds_of, stage.workloads)) // len(stage.workloads)
    return _phase(f"{stage.engine.value} engines", stage.engine, each, loads, seconds)
