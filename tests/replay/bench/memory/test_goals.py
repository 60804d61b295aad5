"""Goals of the memory benchmark: computed from cells, with the bound that stops what is missed."""

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from replay.bench.memory.bounds import belady, described, lru
from replay.bench.memory.goals import NEVER, goals, over
from replay.bench.memory.report import Cell, EngineModel, Goal, Knee, WorkloadInfo
from replay.bench.memory.systems import CAREFUL, DRAM_PPM, OURS, OURS_UNLIMITED, RIVAL, SHIPPED, UNLIMITED
from replay.bench.memory.workloads import Offer

KNEE = Knee(scale=1.0, goodput_per_s=4.0, at_edge=False)
GOODPUT = {OURS: 5.6, CAREFUL: 4.0, RIVAL: 5.0, SHIPPED: 2.0, UNLIMITED: 5.0}


def info(name: str = "conversation", **changes: object) -> WorkloadInfo:
    made = WorkloadInfo(
        name=name, source="drawn", requests=100, seconds=60.0, engines=2, closed_loop=False, unique_kv_bytes=1,
        ideal_hit_share=0.9, knee=KNEE, hit_bounds={belady(DRAM_PPM): 0.6, lru(DRAM_PPM): 0.4},
    )  # fmt: skip
    return replace(made, **changes)


def cell(system: str, load: float, *, workload: str = "conversation", **changes: object) -> Cell:
    made = Cell(
        workload=workload, system=system, engine=EngineModel.LIGHT, load=load, runs=1, offered_per_s=6.0 * load,
        goodput_per_s=GOODPUT.get(system, 4.0), goodput_std=0.0, attainment=0.9, ttft_p50_ns=1, ttft_p99_ns=100,
        tpot_p50_ns=1, tpot_p99_ns=100, hit_share=0.5, worst_class_share=0.8, throughput_tokens_per_s=10.0,
        throughput_fluctuation=0.1, occupancy_fluctuation=0.05, device_hours_per_million=0.02,
    )  # fmt: skip
    return replace(made, **changes)


def cells(*, workload: str = "conversation", loads: Iterable[float] = (0.8, 1.0, 1.2, 1.5)) -> list[Cell]:
    return [cell(system, load, workload=workload) for system in GOODPUT for load in loads]


def found(made: list[Cell], name: str, about: WorkloadInfo | None = None) -> Goal:
    about = about or info()
    return next(goal for goal in goals(made, {about.name: about}) if goal.name.startswith(name))


def test_ratios_are_taken_at_one_load_and_the_worst_load_says_where() -> None:
    made = [*cells(), cell(OURS, 0.9, goodput_per_s=3.0), cell(CAREFUL, 0.9)]
    assert found(made, "goodput / careful at 1").value == pytest.approx(1.4)
    worst = found(made, "goodput / careful, at every load")
    assert (worst.value, worst.where, worst.met) == (0.75, "at 0.9", False)
    assert found(made, "goodput / as_shipped, at loads from 1").value == pytest.approx(2.8)


def test_what_cannot_be_reached_says_what_stops_it() -> None:
    """At load 1 six a second are offered, and the careful baseline serves five of them."""
    made = [replace(one, goodput_per_s=5.0) if one.system == CAREFUL else one for one in cells()]
    goal = found(made, "goodput / careful at 1")
    assert not goal.met
    assert (goal.bound, goal.bound_by) == (pytest.approx(1.2), "the offer")
    free = [*made, cell(OURS_UNLIMITED, 1.0, goodput_per_s=5.8)]
    assert found(free, "goodput / careful at 1").bound_by == "unlimited KV"


def test_the_gap_to_unlimited_kv_is_closed_as_far_as_goodput_says_and_none_is_closed_by_nature() -> None:
    assert found(cells(), "gap to unlimited KV closed at 1, DRAM 10 %").value == pytest.approx(1.6)
    level = [replace(one, goodput_per_s=4.0) if one.system == UNLIMITED else one for one in cells()]
    goal = found(level, "gap to unlimited KV closed at 1, DRAM 10 %")
    assert goal.met
    assert "no gap" in goal.where
    names = [goal.name for goal in goals(cells(), {"conversation": info()})]
    assert not [name for name in names if "gap to unlimited" in name and "1.2" in name]


def test_the_gap_is_to_unlimited_kv_under_the_better_policy() -> None:
    """Ours has 5.6, the careful baseline 4; with unlimited KV ours would have 8, the baseline 5."""
    made = [*cells(), cell(OURS_UNLIMITED, 1.0, goodput_per_s=8.0)]
    goal = found(made, "gap to unlimited KV closed at 1, DRAM 10 %")
    assert goal.value == pytest.approx(0.4)
    assert OURS_UNLIMITED in goal.where


def test_of_a_handful_of_requests_no_goal_is_met_or_missed() -> None:
    few = info(requests=49)
    assert {goal.met for goal in goals(cells(), {few.name: few})} == {None}
    assert all("49 requests" in goal.where for goal in goals(cells(), {few.name: few}))


def test_a_number_to_look_at_is_no_goal_that_is_met() -> None:
    goal = found(
        [replace(one, flops_used=0.2, flops_bound=0.4) for one in cells(workload="mixed")], "model-FLOPs", info("mixed")
    )
    assert (goal.value, goal.bound, goal.met) == (0.2, 0.4, None)


def test_the_way_to_beladys_rule_begins_at_the_careful_baseline() -> None:
    made = [replace(one, hit_share=0.2) if one.system == CAREFUL else one for one in cells()]
    goal = found(made, "gap from the careful baseline's hits")
    assert goal.value == pytest.approx((0.5 - 0.2) / (0.6 - 0.2))
    assert "Belady 0.600" in goal.where


def test_the_way_to_beladys_rule_from_lru_comes_first() -> None:
    made = [replace(one, hit_share=0.2) if one.system == CAREFUL else one for one in cells()]
    names = [goal.name for goal in goals(made, {"conversation": info()}) if "to Belady" in goal.name]
    assert [name.startswith("gap from LRU's hits") for name in names] == [True, False]
    assert found(made, "gap from LRU's hits").value == pytest.approx((0.5 - 0.4) / (0.6 - 0.4))


def test_a_knee_that_may_lie_further_on_is_said_with_every_goal_that_speaks_of_it() -> None:
    edge = info(knee=replace(KNEE, at_edge=True))
    assert all("edge of what was tried" in goal.where for goal in goals(cells(), {edge.name: edge}))
    other = info(shipped_knee=replace(KNEE, scale=0.8, at_edge=True))
    said = {goal.name for goal in goals(cells(), {other.name: other}) if "edge of what was tried" in goal.where}
    assert said
    assert all("p99" in name for name in said)
    far = [replace(one, engine=EngineModel.VLLM_SCHEDULER) for one in cells()]
    there = info(other_knees={"vllm_scheduler": replace(KNEE, at_edge=True)})
    assert {
        goal.engine for goal in goals([*cells(), *far], {there.name: there}) if "edge of what was tried" in goal.where
    } == {EngineModel.VLLM_SCHEDULER}


def test_latencies_are_compared_at_the_knee_of_vllm_as_shipped() -> None:
    about = info(shipped_knee=replace(KNEE, scale=0.8))
    made = [replace(one, ttft_p99_ns=200) if one.system == SHIPPED else one for one in cells()]
    goal = found(made, "TTFT p99 / as_shipped", about)
    assert (goal.value, goal.met, goal.where, goal.bound) == (0.5, True, "at 0.8", 0.5)
    assert not [one for one in goals(made, {"conversation": info()}) if "p99" in one.name]


def test_what_our_policy_is_below_is_no_bound_of_a_percentile() -> None:
    """With unlimited KV the careful policy may be slower than ours is without; then ours with unlimited KV tells."""
    about = info(shipped_knee=replace(KNEE, scale=0.8))
    slow = [replace(one, ttft_p99_ns=150) if one.system == UNLIMITED else one for one in cells()]
    goal = found(slow, "TTFT p99 / as_shipped", about)
    assert (goal.value, goal.met, goal.bound, goal.bound_by) == (1.0, False, None, "")
    both = [*slow, cell(OURS_UNLIMITED, 0.8, ttft_p99_ns=90)]
    goal = found(both, "TTFT p99 / as_shipped", about)
    assert (goal.bound, goal.bound_by) == (0.9, "unlimited KV")


@pytest.mark.parametrize(
    ("ours", "theirs", "ratio"), [(1, 2, 0.5), (None, 2, NEVER), (1, None, 0.0), (None, None, None), (1, 0, None)]
)
def test_a_percentile_that_is_infinite_is_worse_than_any_other(
    ours: int | None, theirs: int | None, ratio: float | None
) -> None:
    assert over(ours, theirs) == ratio


def test_each_workload_has_the_goals_that_speak_of_it() -> None:
    names = {
        workload: {goal.name for goal in goals(cells(workload=workload), {workload: info(workload)})}
        for workload in ("conversation", "coding", "mixed")
    }
    assert "throughput fluctuation at 1" in names["coding"]
    assert "tokens reused at 1" in names["coding"]
    assert "occupancy fluctuation at 1" in names["mixed"]
    assert names["conversation"] < names["mixed"]
    assert not [name for name in names["coding"] if name.startswith("goodput / careful at")]


def test_loads_that_were_not_run_are_not_measured_and_other_engines_have_only_what_they_ran() -> None:
    few = cells(loads=(1.0,))
    assert found(few, "goodput / careful at 1.2").met is None
    far = [replace(one, engine=EngineModel.VLLM_SCHEDULER) for one in few]
    both = goals([*few, *far], {"conversation": info()})
    other = [goal for goal in both if goal.engine is EngineModel.VLLM_SCHEDULER]
    assert other
    assert all(goal.value is not None for goal in other)


def test_of_what_is_offered_the_bounds_are_in_order() -> None:
    """Belady's rule has no less than LRU, more memory no less than less, unlimited memory the most."""
    offer = Offer(workload="conversation", seed=1, scale=1.0, seconds=300, engines=1)
    made = described(offer, KNEE, None, (50_000, 100_000))
    small, large = made.hit_bounds[belady(50_000)], made.hit_bounds[belady(100_000)]
    assert made.hit_bounds[lru(50_000)] <= small <= large <= made.ideal_hit_share
    assert made.hit_bounds[lru(100_000)] <= large
    assert made.unique_kv_bytes > 0
