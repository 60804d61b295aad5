"""A whole suite, tiny: every run once, choices before results, and a report of whatever was done."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from events.base import NS_PER_S
from replay.bench.memory.knees import scale_at
from replay.bench.memory.plan import SMOKE, SUITES, Plan, Stage, Tuning, hours, phases, runs_of, takes_point_of
from replay.bench.memory.report import EngineModel, RunResult
from replay.bench.memory.rounds import Players, Runs
from replay.bench.memory.store import Store, digest_of
from replay.bench.memory.suite import run_suite, speed
from replay.bench.memory.systems import ARC, CAREFUL, LRU, OURS, OURS_UNLIMITED, RIVAL, SHIPPED, SYSTEMS, UNLIMITED
from replay.bench.memory.task import MemoryTask, play
from replay.bench.memory.workloads import Offer

TINY = Plan(
    suite="tiny",
    stages=(
        Stage(
            engine=EngineModel.LIGHT, engines=1, seconds=30, workloads=("mixed",), loads=(1.0, 1.5), seeds=(1, 2),
            systems=(SHIPPED, CAREFUL, RIVAL, OURS, UNLIMITED), only_at={UNLIMITED: (1.0,)},
        ),
        Stage(
            engine=EngineModel.VLLM_SCHEDULER, engines=1, seconds=30, workloads=("mixed",), loads=(1.0,), seeds=(1,),
            systems=(OURS,),
        ),
    ),
    tuning=Tuning(tokens=(512, 2_048), seqs=(256,), engines=1, seconds=30, loads=(1.2,), seeds=(11,)),
    knee_steps=(-2, 2),
)  # fmt: skip


class Played:
    """Runs tasks here, and remembers them; from the `stop_at`-th on it is as if somebody pressed Ctrl-C."""

    def __init__(self, play: Callable[[MemoryTask], RunResult], stop_at: int | None = None) -> None:
        self.tasks: list[MemoryTask] = []
        self._play, self._stop_at = play, stop_at

    def __call__(self, tasks: Sequence[MemoryTask], on_done: Callable[[int, RunResult], None]) -> list[RunResult]:
        found = []
        for number, task in enumerate(tasks):
            if len(self.tasks) == self._stop_at:
                raise KeyboardInterrupt
            self.tasks.append(task)
            found.append(self._play(task))
            on_done(number, found[-1])
        return found

    def players(self) -> Players:
        return {EngineModel.LIGHT: self}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests of this module keep their runs: each is done once."""
    return tmp_path_factory.mktemp("kept")


def runs(store: Store, played: Played) -> Runs:
    return Runs(store, played.players(), lambda _done: None)


def test_a_suite_runs_every_system_at_every_load_and_leaves_out_what_nobody_can_run(kept: Path) -> None:
    played = Played(play)
    report = run_suite(TINY, runs(Store(kept), played), version="0")
    places = {(cell.system, cell.load, cell.runs) for cell in report.cells if cell.load in (1.0, 1.5)}
    full = {(name, load, 2) for name in (SHIPPED, CAREFUL, RIVAL, OURS) for load in (1.0, 1.5)}
    assert places == full | {(UNLIMITED, 1.0, 2)}
    assert {cell.engine for cell in report.cells} == {EngineModel.LIGHT}
    assert len({task.digest() for task in played.tasks}) == len(played.tasks)
    assert not report.stopped_early
    info = report.workloads[0]
    assert info.knee is not None
    assert {run.scale for run in report.runs if run.load == 1.0} == {info.knee.scale}
    assert all(run.scores.window_ns == 30 * NS_PER_S for run in report.runs)
    assert all(run.digest for run in report.runs)
    assert any(run.series for run in report.runs)


def test_what_was_done_is_not_done_again_and_gives_the_same_report(kept: Path) -> None:
    first = run_suite(TINY, runs(Store(kept), Played(play)), version="0")
    idle = Played(play)
    again = run_suite(TINY, runs(Store(kept), idle), version="0")
    assert idle.tasks == []
    assert again.cells == first.cells
    assert again.goals == first.goals


def test_one_that_is_stopped_reports_what_was_done(kept: Path) -> None:
    """The store knows all but our own runs at the higher load: those it is stopped at."""
    store = Store(kept)
    run_suite(TINY, runs(store, Played(play)), version="0")
    more = replace(TINY, stages=(replace(TINY.stages[0], loads=(1.0, 1.5, 3.0)),))
    report = run_suite(more, runs(store, Played(play, stop_at=1)), version="0")
    assert report.stopped_early
    assert {cell.load for cell in report.cells if cell.system == OURS} >= {1.0, 1.5}
    assert sum(run.load == 3.0 for run in report.runs) == 1


def test_one_that_is_stopped_before_anything_is_known_is_an_empty_report() -> None:
    report = run_suite(TINY, runs(Store(None), Played(play, stop_at=0)), version="0")
    assert report.stopped_early
    assert (report.runs, report.cells, report.goals) == ((), (), ())


def test_baselines_run_at_their_best_point_and_ours_at_the_rivals(kept: Path) -> None:
    report = run_suite(TINY, runs(Store(kept), Played(play)), version="0")
    points = {run.system: (run.batch_tokens, run.seqs_max) for run in report.runs}
    assert points[OURS] == points[RIVAL]
    assert points[UNLIMITED] == points[CAREFUL]
    assert set(points.values()) <= {(512, 256), (2_048, 256)}


def test_who_takes_whose_point() -> None:
    taken = {name: takes_point_of(system) for name, system in SYSTEMS.items()}
    assert taken[OURS] == taken["tidegate_dram5"] == taken["tidegate_unlimited_kv"] == RIVAL
    assert taken[CAREFUL] == taken["careful_dram5"] == taken[UNLIMITED] == CAREFUL
    assert taken[RIVAL] == taken["honest_rival_dram5"] == RIVAL
    assert taken[SHIPPED] == SHIPPED


def test_the_careful_baseline_is_tried_with_either_eviction() -> None:
    played = Played(play)
    plan = replace(TINY, tuning=replace(TINY.tuning, tokens=(2_048,)), shipped_knee=False)
    run_suite(plan, runs(Store(None), played), version="0")
    tried = {task.system.tier_eviction for task in played.tasks if task.system.name == CAREFUL}
    assert tried == {LRU, ARC}
    assert {task.system.tier_eviction for task in played.tasks if task.system.name == OURS} == {""}


def test_who_has_the_careful_baselines_tier_is_tuned_with_the_eviction_that_it_chose() -> None:
    """Here arc is better for the careful baseline."""

    def arc_wins(task: MemoryTask) -> RunResult:
        result = play(task)
        if task.system.tier_eviction == ARC:
            return replace(result, scores=replace(result.scores, goodput_per_s=result.scores.goodput_per_s + 1.0))
        return result

    played = Played(arc_wins)
    plan = replace(TINY, stages=TINY.stages[:1], shipped_knee=False)
    run_suite(plan, runs(Store(None), played), version="0")
    assert {task.system.tier_eviction for task in played.tasks if task.system.name == RIVAL} == {ARC}


def test_a_result_is_found_by_its_task_and_by_nothing_else(tmp_path: Path) -> None:
    offer = Offer(workload="mixed", seed=1, scale=0.3, seconds=30, engines=1)
    task = MemoryTask(offer=offer, system=SYSTEMS[SHIPPED], batch_tokens=2_048, seqs_max=256)
    result = play(task)
    Store(tmp_path).put(task, result)
    assert Store(tmp_path).get(task) == result
    other = replace(task, offer=replace(offer, seed=2))
    assert Store(tmp_path).get(other) is None
    assert Store(None).get(task) is None
    for file in (tmp_path / "runs").iterdir():
        file.write_bytes(b"{")
    assert Store(tmp_path).get(task) is None


def test_a_result_is_void_when_its_trace_or_its_engines_release_changes(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 3_000 * n, "input_length": 600, "output_length": 5, "hash_ids": [n, 99]} for n in range(20)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    offer = Offer(workload="conversation", seed=1, scale=1.0, seconds=30, engines=1, trace=str(trace))
    task = MemoryTask(offer=offer, system=SYSTEMS[SHIPPED], batch_tokens=2_048, seqs_max=256)
    one, other = ({EngineModel.LIGHT: release} for release in ("0.32.0", "0.32.1"))
    Store(tmp_path, one).put(task, play(task))
    assert Store(tmp_path, one).get(task) is not None
    assert Store(tmp_path, other).get(task) is None
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    digest_of.cache_clear()
    assert Store(tmp_path, one).get(task) is None


def test_standard_has_the_bound_of_our_policy_where_goals_ask_for_it_and_a_fair_grid() -> None:
    plan = SUITES["standard"]
    assert {1.0, 1.2} <= set(plan.light.loads_of(OURS_UNLIMITED))
    assert plan.tuning.loads == (1.0, 1.2)
    assert plan.light.loads_of(OURS) == plan.light.loads_of(RIVAL) == plan.light.loads_of(CAREFUL) == plan.light.loads
    assert plan.light.loads_of(SHIPPED) == (1.0, 1.2, 1.5)


def test_the_search_on_many_engines_begins_where_the_plan_says() -> None:
    played = Played(play)
    plan = replace(TINY, stages=TINY.stages[:1], shipped_knee=False, knee_steps=(0,), large_guesses={"mixed": 0.123})
    report = run_suite(plan, runs(Store(None), played), version="0")
    assert report.workloads[0].knee is not None
    assert report.workloads[0].knee.scale == 0.123


def test_the_search_for_the_knee_as_shipped_begins_where_the_plan_says_and_its_runs_are_those_of_the_results() -> None:
    played = Played(play)
    plan = replace(
        TINY, stages=TINY.stages[:1], knee_steps=(0,), large_guesses={"mixed": 0.31}, shipped_guesses={"mixed": 0.123}
    )
    report = run_suite(plan, runs(Store(None), played), version="0")
    assert report.workloads[0].shipped_knee is not None
    assert report.workloads[0].shipped_knee.scale == 0.123
    assert {run.scale for run in report.runs if run.load == 0.397} == {0.123}, "not 0.397 x 0.31"
    names = [task.system.name for task in played.tasks if task.offer.scale == 0.123]
    assert sorted(names) == sorted([SHIPPED, CAREFUL, OURS, UNLIMITED] * 2), "two seeds, each run once"


def test_a_steady_workload_takes_the_choices_of_the_one_it_is_made_of_and_has_a_knee_of_its_own() -> None:
    steady = replace(TINY.stages[0], workloads=("mixed_steady",), systems=(CAREFUL, OURS), loads=(1.0,), seeds=(1,))
    first = replace(TINY.stages[0], seconds=10, loads=(1.0,), systems=(CAREFUL,), seeds=(1,))
    plan = replace(
        TINY, stages=(first, replace(steady, seconds=10, engines=2)), shipped_knee=False, forms_engines=1,
        large_guesses={"mixed": 0.3, "mixed_steady": 0.2}, tuning=replace(TINY.tuning, seconds=10),
    )  # fmt: skip
    assert (plan.choosing, plan.taking) == (("mixed",), ("mixed_steady",))
    played = Played(play)
    report = run_suite(plan, runs(Store(None), played), version="0")
    scales = {task.offer.engines: task.offer.scale for task in played.tasks if task.offer.workload == "mixed_steady"}
    assert scales.keys() == {1, 2}, "its knee is looked for on fewer engines, and nothing else is"
    knees = {info.name: info.knee for info in report.workloads}
    assert knees["mixed_steady"] is not None
    assert knees["mixed_steady"].scales == (scale_at(0.2, -2), scale_at(0.2, 2))
    points = {run.workload: (run.batch_tokens, run.seqs_max) for run in report.runs if run.system == CAREFUL}
    assert points["mixed"] == points["mixed_steady"]
    assert {task.offer.workload for task in played.tasks if task.offer.seed == 11} == {"mixed"}


def test_where_what_it_is_made_of_is_not_run_a_steady_workload_makes_choices_of_its_own() -> None:
    alone = replace(TINY, stages=(replace(TINY.stages[0], workloads=("mixed_steady",)),))
    assert (alone.choosing, alone.taking) == (("mixed_steady",), ())
    standard = SUITES["standard"]
    assert [standard.is_for(stage, "coding_steady") for stage in standard.stages] == [False, True, False, False]
    assert [standard.is_for(stage, "coding") for stage in standard.stages] == [True, False, False, True]
    assert SMOKE.is_for(SMOKE.light, "coding_steady")


def test_estimates_count_every_stage_and_what_has_no_speed_is_not_run() -> None:
    for plan in SUITES.values():
        assert runs_of(plan) == sum(phase.runs for phase in phases(plan)) > 0
    both = hours(SUITES["standard"], {EngineModel.LIGHT: 100.0, EngineModel.VLLM_SCHEDULER: 10.0}, 2)
    assert hours(SUITES["standard"], {EngineModel.LIGHT: 100.0}, 2) < both < 2 * both
    assert both == pytest.approx(
        2 * hours(SUITES["standard"], {EngineModel.LIGHT: 200.0, EngineModel.VLLM_SCHEDULER: 20.0}, 2)
    )
    assert speed(SMOKE, EngineModel.LIGHT, Played(play)) > 0
