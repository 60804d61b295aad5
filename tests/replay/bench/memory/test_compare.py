"""Two reports held against each other: what counts as a difference, and what is noise."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from replay.bench.memory.compare import (
    MARGIN,
    MARGIN_FEW,
    SEEDS_MIN,
    T_95,
    Difference,
    Verdict,
    compare,
    noise_of,
    t_95,
)
from replay.bench.memory.report import Report, RunResult
from replay.bench.memory.systems import CAREFUL, OURS
from tests.replay.bench.memory.drawn_report import drawn_report

SMALL = {"workloads": ("mixed",), "systems": (OURS, CAREFUL), "loads": (1.0, 1.2)}


def small(seed: int = 1, **named: object) -> Report:
    return drawn_report(seed, **{**SMALL, **named})  # type: ignore[arg-type]


def goodput(report: Report, system: str, times: float) -> Report:
    """The report with the goodput of a system so many times as much, in every run."""

    def changed(run: RunResult) -> RunResult:
        if run.system != system:
            return run
        scores = replace(run.scores, goodput_per_s=run.scores.goodput_per_s * times)
        return replace(run, scores=scores)

    return replace(report, runs=tuple(changed(run) for run in report.runs))


def of(found: tuple[Difference, ...], metric: str) -> list[Difference]:
    return [one for one in found if one.metric == metric]


def test_a_report_does_not_differ_from_itself() -> None:
    found = compare(small(), small())
    assert found.counted() == found.only_first == found.only_second == ()
    assert {one.verdict for one in found.differences} == {Verdict.SAME}
    assert found.few_seeds == 0


def test_another_draw_of_the_same_is_noise() -> None:
    # Both sides draw their runs anew around the same means: one in twenty is left by chance, or a few more.
    found = compare(small(1), small(2))
    assert len(found.counted()) <= len(found.differences) // 8


@pytest.mark.parametrize(("times", "verdict"), [(1.5, Verdict.BETTER), (0.5, Verdict.WORSE), (1.004, Verdict.SAME)])
def test_more_goodput_is_better_and_a_few_thousandths_are_nothing(times: float, verdict: Verdict) -> None:
    before = small()
    found = compare(before, goodput(before, OURS, times))
    assert {one.verdict for one in of(found.differences, "goodput_per_s") if one.place.system == OURS} == {verdict}
    assert {one.place.system for one in found.counted()} <= {OURS}


def test_less_latency_is_better_and_an_answer_is_better_than_none() -> None:
    before, worse = small(worth={CAREFUL: 0.95}), small(worth={CAREFUL: 0.5})
    found = compare(before, worse)
    late = [one for one in of(found.differences, "ttft_p99_ns") if one.place == of(found.differences, "jain")[2].place]
    [at_knee] = late
    assert at_knee.place.system == CAREFUL
    assert (at_knee.first is not None, at_knee.second) == (True, None)
    assert at_knee.verdict is Verdict.WORSE
    assert {one.verdict for one in of(compare(worse, before).counted(), "ttft_p99_ns")} == {Verdict.BETTER}


def test_with_one_seed_nothing_is_known_of_noise_and_the_margin_is_wider() -> None:
    before = small(seeds=(1,))
    found = compare(before, goodput(before, OURS, 1 + MARGIN_FEW * 0.9))
    assert found.few_seeds == len(before.cells)
    assert found.counted() == ()
    assert {one.noise for one in found.differences} == {None}
    assert compare(before, goodput(before, OURS, 1 + MARGIN_FEW * 1.1)).counted() != ()


def test_the_spread_over_seeds_is_what_a_difference_has_to_exceed() -> None:
    before = small()
    runs = [run for run in before.runs if run.system == OURS]
    # One seed goes far up, the others do not move: a mean that rose, and nothing that can be relied on.
    lucky = tuple(
        replace(run, scores=replace(run.scores, goodput_per_s=run.scores.goodput_per_s * 1.3))
        if run.system == OURS and run.seed == 1 else run
        for run in before.runs
    )  # fmt: skip
    found = compare(before, replace(before, runs=lucky))
    [first, *_] = of(found.differences, "goodput_per_s")
    assert first.place.system == runs[0].system
    assert first.share is not None
    assert first.share > MARGIN
    assert first.verdict is Verdict.SAME


def test_cells_of_one_side_alone_are_named() -> None:
    found = compare(small(), small(systems=(OURS,), loads=(1.0, 1.5)))
    assert {(place.system, place.load) for place in found.only_first} == {(OURS, 1.2), (CAREFUL, 1.0), (CAREFUL, 1.2)}
    assert {(place.system, place.load) for place in found.only_second} == {(OURS, 1.5)}


def test_cells_that_were_offered_something_else_are_counted() -> None:
    before = small()
    assert compare(before, before).other_offers == 0
    assert compare(before, small(2)).other_offers == 0
    runs = tuple(
        replace(run, scores=replace(run.scores, offered_per_s=run.scores.offered_per_s * 1.02))
        if run.load == 1.2 else run
        for run in before.runs
    )  # fmt: skip
    assert compare(before, replace(before, runs=runs)).other_offers == 2


def test_one_name_with_another_window_or_source_is_another_workload() -> None:
    before = small(1)
    assert compare(before, small(2)).unlike == ()
    first, *rest = before.workloads
    for other in (replace(first, seconds=first.seconds + 1), replace(first, source="drawn"), replace(first, engines=9)):
        (said,) = compare(before, replace(before, workloads=(other, *rest))).unlike
        assert said.startswith(f"{first.name}: ")


def test_other_seeds_pool_their_spread_and_the_same_seeds_are_paired() -> None:
    first = {1: 10.0, 2: 20.0, 3: 30.0}
    paired = noise_of(first, {seed: value + 1 for seed, value in first.items()})
    pooled = noise_of(first, {seed + 10: value + 1 for seed, value in first.items()})
    assert paired == 0.0
    # The spread of both is 10; t for four degrees of freedom times 10 x sqrt(2/3).
    assert pooled == pytest.approx(2.776 * 10 * (2 / 3) ** 0.5)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8), st.floats(0.01, 100))
@settings(max_examples=60)
def test_noise_is_never_below_zero_and_scales_with_what_is_measured(values: list[float], times: float) -> None:
    first = dict(enumerate(values))
    second = {seed: value * 1.5 + seed for seed, value in first.items()}
    noise = noise_of(first, second)
    if len(values) < SEEDS_MIN:
        assert noise is None
        return
    assert noise is not None
    assert noise >= 0
    scaled = noise_of(*({seed: value * times for seed, value in one.items()} for one in (first, second)))
    assert scaled == pytest.approx(noise * times, rel=1e-6, abs=1e-6)


def test_the_more_is_known_the_less_is_needed() -> None:
    assert list(T_95) == sorted(T_95, reverse=True)
    assert t_95(1) == 12.706
    assert t_95(500) == T_95[-1]
