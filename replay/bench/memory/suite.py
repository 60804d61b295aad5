"""A suite of the memory benchmark, from its plan to its report: choices first, then every system at every load.

It can be stopped at any moment: what was done is in the store, and makes up the report.
"""

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from msgspec.structs import replace

from replay.bench.memory.bounds import described
from replay.bench.memory.goals import goals, load_of
from replay.bench.memory.plan import KNEE_LOAD, Plan, Stage
from replay.bench.memory.report import EngineModel, Report, RunResult, System, WorkloadInfo
from replay.bench.memory.rounds import Runs
from replay.bench.memory.summary import cells
from replay.bench.memory.systems import (
    CAREFUL,
    DRAM_PPM,
    DRAM_SMALL_PPM,
    OURS,
    OURS_UNLIMITED,
    SHIPPED,
    SHIPPED_SEQS,
    SHIPPED_TOKENS,
    UNLIMITED,
)
from replay.bench.memory.task import MemoryTask
from replay.bench.memory.tuning import Tuned, knee_for, point_of, tasks_of, tuned, with_eviction
from replay.bench.memory.workloads import WORKLOADS, Offer
from replay.bench.runs import Player
from replay.code_version import code_version

SPEED_SECONDS, SPEED_ENGINES = 60, 2
"""What the speed is measured on."""
SERIES_LOADS = (1.0, 1.2)
"""Loads at which a report has quantities over time, of the first seed."""
AT_SHIPPED_KNEE = (SHIPPED, CAREFUL, OURS, UNLIMITED, OURS_UNLIMITED)
"""Systems that are compared at the knee of vLLM as shipped, too."""

Labelled = tuple[MemoryTask, float]
"""A run, and the load that its scale is."""


def run_suite(plan: Plan, runs: Runs, *, version: str) -> Report:
    """Run it all, as far as there is somewhere to run it. On KeyboardInterrupt the report has what was done until
    then. Raises KeyError for names that are not there, TraceError for a bad trace, ValueError for bad settings."""
    began, found, stopped = time.monotonic(), dict[str, Tuned](), False
    try:
        found = tuned(plan, runs)
        runs.all([
            task for stage in plan.stages if runs.can(stage.engine) for task, _ in stage_tasks(plan, stage, found)
        ])  # fmt: skip
    except KeyboardInterrupt:
        stopped = True
    results = [] if not found else [
        _labelled(result, load)
        for stage in plan.stages
        for task, load in stage_tasks(plan, stage, found)
        if (result := runs.kept(task)) is not None
    ]  # fmt: skip
    infos = {name: _described(plan, name, one) for name, one in found.items()}
    summed = cells(results)
    return Report(
        suite=plan.suite, made_at=datetime.now(UTC).isoformat(timespec="seconds"), version=version,
        code_version=code_version(), seeds=plan.light.seeds, loads=plan.light.loads, systems=_systems(plan, results),
        workloads=tuple(infos.values()), runs=tuple(results), cells=summed, goals=goals(summed, infos),
        seconds=time.monotonic() - began, stopped_early=stopped,
    )  # fmt: skip


def speed(plan: Plan, engine: EngineModel, play_all: Player[MemoryTask, RunResult]) -> float:
    """Virtual engine seconds per second on such engines, of the careful baseline and of our policy together, near the
    knee of the first workload; what makes such engines ready is not counted."""
    workload = plan.workloads[0]
    offer = Offer(
        workload=workload, seed=plan.light.seeds[0], scale=WORKLOADS[workload].guess, seconds=SPEED_SECONDS,
        engines=SPEED_ENGINES, trace=plan.traces.get(workload, ""),
    )  # fmt: skip
    tasks = [
        MemoryTask(
            offer=offer, system=plan.systems[name], batch_tokens=SHIPPED_TOKENS, seqs_max=SHIPPED_SEQS, engine=engine
        )
        for name in (CAREFUL, OURS, CAREFUL, OURS)
    ]  # fmt: skip
    warm = play_all(tasks, lambda _number, _result: None)[2:]
    return len(warm) * SPEED_SECONDS * SPEED_ENGINES / max(0.001, sum(run.wall_s for run in warm))


def stage_tasks(plan: Plan, stage: Stage, found: Mapping[str, Tuned]) -> Iterator[Labelled]:
    """The runs of a stage."""
    for workload in stage.workloads:
        one = found[workload]
        for name in stage.systems:
            system = with_eviction(plan.systems[name], one.eviction)
            for load, scale in _scales(plan, stage, name, one).items():
                for task in tasks_of(plan, stage, workload, system, point_of(system, one), scale):
                    yield task, load


def _scales(plan: Plan, stage: Stage, name: str, one: Tuned) -> dict[float, float]:
    """The scale of each load at which a system runs, in order. That of a knee is the one at which it was found, so
    that the search's own runs count."""
    knee = knee_for(stage, one).scale
    scales = {load: round(load * knee, 6) for load in stage.loads_of(name)}
    if stage is plan.light and one.shipped_knee is not None and name in AT_SHIPPED_KNEE:
        scales.setdefault(load_of(one.shipped_knee.scale, knee), one.shipped_knee.scale)
    return dict(sorted(scales.items()))


def _labelled(result: RunResult, load: float) -> RunResult:
    return replace(result, load=load, series=result.series if load in SERIES_LOADS else ())


def _described(plan: Plan, workload: str, one: Tuned) -> WorkloadInfo:
    stage = plan.stage_of(workload)
    offer = Offer(
        workload=workload, seed=stage.seeds[0], scale=round(KNEE_LOAD * one.knee.scale, 6),
        seconds=stage.seconds_of(workload), engines=stage.engines, trace=plan.traces.get(workload, ""),
    )  # fmt: skip
    tiers_ppm = () if workload in plan.taking else (DRAM_PPM, DRAM_SMALL_PPM)
    info = described(offer, one.knee, one.shipped_knee, tiers_ppm)
    return replace(info, other_knees=one.other_knees)


def _systems(plan: Plan, results: list[RunResult]) -> tuple[System, ...]:
    return tuple(plan.systems[name] for name in dict.fromkeys(result.system for result in results))
