"""Goals of the memory benchmark: computed from cells, with the bound that stops what is missed."""

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from replay.bench.memory.bounds import belady, described, lru, online
from replay.bench.memory.goals import NEVER, goals, over
from replay.bench.memory.report import Cell, EngineModel, Goal, Knee, WorkloadInfo
from replay.bench.memory.systems import CAREFUL, DRAM_PPM, OURS, OURS_UNLIMITED, RIVAL, SHIPPED, UNLIMITED
from replay.bench.memory.workloads import Offer

KNEE = Knee(scale=1.0, goodput_per_s=4.0, at_edge=False)
GOODPUT = {OURS: 5.6, CAREFUL: 4.0, RIVAL: 5.0, SHIPPED: 2.0, UNLIMITED: 5.0}


def info(name: str = "conversation", **changes: object) -> WorkloadInfo:
    made = WorkloadInfo(
        name=name, source="drawn", requests=100, seconds=60.0, engines=2, closed_loop=False, unique_kv_bytes=1,
        tokens=1_000_000, ideal_hit_share=0.9, knee=KNEE,
        hit_bounds={belady(DRAM_PPM): 0.6, lru(DRAM_PPM): 0.4, online(DRAM_PPM): 0.45},
    )  # fmt: skip
    return replace(made, **changes)


def cell(system: str, load: float, *, workload: str = "conversation", **changes: object) -> Cell:
    made = Cell(
        workload=workload, system=system, engine=EngineModel.LIGHT, load=load, runs=1, offered_per_s=6.0 * load,
        goodput_per_s=GOODPUT.get(system, 4.0), goodput_std=0.0, attainment=0.9, ttft_p50_ns=1, ttft_p99_ns=100,
        tpot_p50_ns=1, tpot_p99_ns=100, hit_share=0.5, worst_class_share=0.8, throughput_tokens_per_s=10.0,
        throughput_fluctuation=0.4, output_fluctuation=0.1, output_least=0.7, unbroken_share=1.0,
        occupancy_fluctuation=0.05, device_hours_per_million=0.02,
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
    assert goal.is_out_of_reach
    free = cell(OURS_UNLIMITED, 1.0, goodput_per_s=5.8)
    assert found([*made, free], "goodput / careful at 1").bound_by == "the offer", "which no policy is beyond"


def test_a_policy_with_unlimited_kv_stops_ours_and_nobody_else() -> None:
    """At load 1 six a second are offered, the careful baseline serves 4.5 and ours 5.6 of them."""
    made = [replace(one, goodput_per_s=4.5) if one.system == CAREFUL else one for one in cells()]
    goal = found([*made, cell(OURS_UNLIMITED, 1.0, goodput_per_s=5.8)], "goodput / careful at 1")
    assert (goal.bound, goal.bound_by) == (pytest.approx(5.8 / 4.5), "unlimited KV")
    assert (goal.is_bounded, goal.is_out_of_reach) == (True, False)


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
    assert (goal.value, goal.met, goal.bound) == (0.5, True, 0.5)
    assert goal.where == "at 0.8; gap to unlimited KV +0.000"
    assert not [one for one in goals(made, {"conversation": info()}) if "p99" in one.name]


def test_what_our_policy_is_below_is_no_bound_of_a_percentile() -> None:
    """With unlimited KV the careful policy may be slower than ours is without; then ours with unlimited KV tells."""
    about = info(shipped_knee=replace(KNEE, scale=0.8))
    slow = [replace(one, ttft_p99_ns=150) if one.system == UNLIMITED else one for one in cells()]
    goal = found(slow, "TTFT p99 / as_shipped", about)
    assert (goal.value, goal.met, goal.bound) == (1.0, False, None)
    assert goal.bound_by.startswith("compute")
    assert not goal.is_out_of_reach
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
    assert "tokens reused at 1" in names["coding"]
    assert names["conversation"] < names["mixed"]
    assert not [name for name in names["coding"] if name.startswith("goodput / careful at")]


STEADY_GOALS = {
    "coding_steady": [
        "throughput fluctuation at 1", "throughput, least window / mean at 1",
        "requests that were neither preempted nor out of memory at 1", "throughput / careful at 1",
    ],
    "mixed_steady": ["occupancy fluctuation at 1"],
}  # fmt: skip


@pytest.mark.parametrize("workload", STEADY_GOALS)
def test_what_fluctuates_is_asked_where_the_offer_does_not_and_nothing_else_is(workload: str) -> None:
    made = goals(cells(workload=workload), {workload: info(workload)})
    assert [goal.name for goal in made] == STEADY_GOALS[workload]
    assert all(goal.met for goal in made)
    both = [*cells(workload="coding"), *cells(workload="mixed")]
    others = goals(both, {"coding": info("coding"), "mixed": info("mixed")})
    assert not [goal for goal in others if "fluctuation" in goal.name]


@pytest.mark.parametrize(
    ("ours", "free", "met", "bounded"),
    [(0.2, 0.16, False, True), (0.2, 0.14, False, False), (0.2, 0.25, False, False), (0.15, 0.25, True, False)],
    ids=["nor is the offer", "memory stops it", "it is not memory", "met"],
)
def test_an_uneven_offer_is_uneven_with_unlimited_kv_too(ours: float, free: float, met: bool, bounded: bool) -> None:
    uneven = {OURS: ours, UNLIMITED: free}
    made = [replace(one, output_fluctuation=uneven.get(one.system, 0.3)) for one in cells(workload="coding_steady")]
    goal = found(made, "throughput fluctuation", info("coding_steady"))
    assert (goal.met, goal.is_bounded, goal.is_out_of_reach) == (met, bounded, False), "what was run is no arithmetic"
    assert f"careful 0.300, unlimited KV {free:.3f}" in goal.where
    assert "computed prompts 0.400" in goal.where
    assert goal.bound == (free if free <= ours else None)


def test_a_collapse_and_a_preemption_are_seen() -> None:
    broken = [
        replace(one, output_least=0.4, unbroken_share=0.99) if one.system == OURS else one
        for one in cells(workload="coding_steady")
    ]
    made = {goal.name: goal for goal in goals(broken, {"coding_steady": info("coding_steady")})}
    for name in STEADY_GOALS["coding_steady"][1:3]:
        assert made[name].met is False
        assert not made[name].is_bounded, "unlimited KV does not collapse"


@pytest.mark.parametrize(
    ("kind", "bound", "by"), [(0.45, 0.25, "no foresight"), (0.4, 1.0, "Belady"), (0.55, 0.75, "no foresight")]
)
def test_the_way_to_belady_is_held_against_the_best_kind_of_eviction_without_foresight(
    kind: float, bound: float, by: str
) -> None:
    """Belady has 0.6 and LRU 0.4; ours has 0.41: a twentieth of the way."""
    about = info(hit_bounds={belady(DRAM_PPM): 0.6, lru(DRAM_PPM): 0.4, online(DRAM_PPM): kind})
    made = [replace(one, hit_share=0.41) if one.system == OURS else one for one in cells()]
    goal = found(made, "gap from LRU's hits", about)
    assert goal.value == pytest.approx(0.05)
    assert (goal.bound, goal.bound_by.startswith(by)) == (pytest.approx(bound), True)
    assert goal.is_bounded is (bound < 0.5)
    assert not goal.is_out_of_reach, "another rule may do better than ours"


def test_cost_is_asked_at_one_load_and_with_each_at_its_own_best() -> None:
    """Ours needs the fewest device hours at 1.5, vLLM as shipped at 1."""
    hours = {(OURS, 1.0): 0.019, (OURS, 1.2): 0.017, (OURS, 1.5): 0.013, (SHIPPED, 1.0): 0.02, (SHIPPED, 1.2): 0.04}
    made = [
        replace(one, device_hours_per_million=hours.get((one.system, one.load), 0.5))
        for one in cells(workload="mixed")
    ]  # fmt: skip
    name = "device hours per SLO-met token / as_shipped"
    plain = info("mixed")
    device_hours = plain.engines * plain.seconds / 3_600
    about = replace(plain, tokens=round(device_hours / 0.018 * 1_000_000))
    at_knee = found(made, f"{name}, at 1", about)
    assert (at_knee.value, at_knee.bound) == (pytest.approx(0.95), pytest.approx(0.9, rel=1e-5))
    assert at_knee.is_out_of_reach, "if all were in time it would still be more than 0.7"
    assert found(made, f"{name}, at 1.2", about).value == pytest.approx(0.425)
    best = found(made, f"{name}, each at its own best load", about)
    assert (best.value, best.met, best.where) == (pytest.approx(0.65), True, "ours at 1.5, as_shipped at 1")
    assert best.bound == pytest.approx(0.9 / 1.5, rel=1e-5), "more is offered there"


@pytest.mark.parametrize("workload", ["conversation", "coding", "mixed", "coding_steady", "mixed_steady"])
def test_every_goal_that_is_missed_names_its_bound(workload: str) -> None:
    about = info(workload, shipped_knee=replace(KNEE, scale=0.8))
    poor = [
        replace(
            one, goodput_per_s=1.0 / one.load, worst_class_share=0.1, ttft_p99_ns=900, tpot_p99_ns=900, hit_share=0.1,
            output_fluctuation=0.9, output_least=0.1, unbroken_share=0.5, occupancy_fluctuation=0.9,
            throughput_tokens_per_s=1.0, device_hours_per_million=0.9,
        ) if one.system == OURS else one
        for one in [*cells(workload=workload), cell(OURS_UNLIMITED, 1.0, workload=workload)]
    ]  # fmt: skip
    missed = [goal for goal in goals(poor, {workload: about}) if goal.met is False]
    assert missed
    assert [goal.name for goal in missed if not goal.bound_by] == []


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
    for ppm in (50_000, 100_000):
        assert made.hit_bounds[lru(ppm)] <= made.hit_bounds[online(ppm)] <= made.hit_bounds[belady(ppm)]
    assert made.unique_kv_bytes > 0
