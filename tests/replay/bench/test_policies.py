"""The comparison: where the knee is, which chunk budget the rival gets, and that nothing depends on how it is run."""

import msgspec
import pytest

from policies.catalog import PRESETS
from replay.bench.offered import BATCH_TOKENS_SHIPPED, SWEEPS, Extent, Workload
from replay.bench.policies import (
    BASELINE,
    DEFAULT,
    RIVAL,
    SEEDS,
    TUNING_SEEDS,
    Cell,
    Plan,
    Report,
    Swept,
    beside,
    best_chunk,
    chunk_for,
    compare,
    knee_of,
    runs_of,
    summed,
    variants,
)
from replay.score import Part, Scores

TINY = Plan(
    presets=(DEFAULT, BASELINE),
    workloads=(Workload.MIXED,),
    loads=(1.0, 1.5),
    seeds=(1, 2),
    chunks=(1_024, 2_048),
    sweeps={**SWEEPS, Workload.MIXED: (0.4, 0.8)},
    extent=Extent(window_s=10, mixed_s=20),
)


def swept(scale: float, goodput: float) -> Swept:
    return Swept(scale=scale, offered_per_s=scale, goodput_per_s=goodput)


@pytest.mark.parametrize(
    ("goodputs", "scale", "at_edge"),
    [
        ((1.0, 3.0, 2.0), 2.0, False),
        ((3.0, 3.0, 3.0), 1.0, True),
        ((1.0, 2.0, 3.0), 3.0, True),
        ((1.0, 2.0, 2.0), 2.0, False),
    ],
)
def test_the_knee_is_the_lowest_scale_of_the_most_goodput(
    goodputs: tuple[float, ...], scale: float, at_edge: bool
) -> None:
    knee = knee_of([swept(number, goodput) for number, goodput in enumerate(goodputs, start=1)])
    assert (knee.scale, knee.goodput_per_s, knee.at_edge) == (scale, max(goodputs), at_edge)


def test_the_figures_of_a_cell_are_over_all_seeds() -> None:
    part = Part(requests=4, slo_met=1, slo_attainment=0.25)
    runs = [
        Scores(requests=10, slo_met=8, goodput_per_s=2.0, offered_per_s=3.0, preemptions=1, rejected={"rejected_x": 2},
               tenants={"a": part}, kinds={"llm": part}, fairness_jain=1.0),
        Scores(requests=30, slo_met=12, goodput_per_s=4.0, offered_per_s=5.0, rejected={"rejected_x": 1},
               tenants={"a": Part(requests=12, slo_met=11, slo_attainment=11 / 12)}, fairness_jain=0.5),
    ]  # fmt: skip
    cell = summed("default", 1.2, 1.8, 1_024, runs)
    assert (cell.goodput_per_s, cell.goodput_min, cell.goodput_max, cell.offered_per_s) == (3.0, 2.0, 4.0, 4.0)
    assert cell.goodput_std == pytest.approx(2**0.5)
    assert cell.attainment == 0.5
    assert cell.tenants == {"a": Part(requests=16, slo_met=12, slo_attainment=0.75)}
    assert (cell.attainment_llm, cell.attainment_embedding) == (0.25, None)
    assert (cell.rejected, cell.preemptions, cell.jain) == ({"rejected_x": 3}, 1, 0.75)


def test_a_cell_is_held_against_the_baseline_and_the_rival() -> None:
    own, baseline, rival = (summed(name, 1.0, 1.0, 1_024, [Scores(goodput_per_s=goodput)])
                            for name, goodput in ((DEFAULT, 3.0), (BASELINE, 2.0), (RIVAL, 0.0)))  # fmt: skip
    held = beside(own, baseline, rival)
    assert (held.ratio_baseline, held.ratio_rival) == (1.5, None)
    assert beside(own, None, own).ratio_baseline is None


def test_the_rival_gets_the_chunk_budget_with_the_most_goodput_under_load() -> None:
    def cells(calm: float, loaded: float) -> list[Cell]:
        return [summed(RIVAL, load, load, 0, [Scores(goodput_per_s=goodput)])
                for load, goodput in ((0.5, calm), (1.2, loaded))]  # fmt: skip

    chosen, means = best_chunk({512: cells(9.0, 1.0), 1_024: cells(1.0, 2.0), 2_048: cells(9.0, 1.5)})
    assert chosen == 1_024
    assert means == {512: 1.0, 1_024: 2.0, 2_048: 1.5}


def test_what_decides_nothing_runs_engines_as_shipped() -> None:
    assert chunk_for(PRESETS[BASELINE], 512) == BATCH_TOKENS_SHIPPED
    assert chunk_for(PRESETS[RIVAL], 512) == 512
    assert chunk_for(PRESETS[DEFAULT], 512) == 512


def test_defaults_are_not_judged_by_the_seeds_that_chose_them() -> None:
    assert not set(SEEDS) & set(TUNING_SEEDS)


def test_every_preset_is_compared() -> None:
    assert set(variants()) >= set(PRESETS)


@pytest.fixture(scope="module")
def one_by_one() -> Report:
    return compare(TINY)


def test_a_comparison_has_a_cell_for_each_variant_and_load(one_by_one: Report) -> None:
    [found] = one_by_one.found
    assert found.knee.scale in (0.4, 0.8)
    assert [(cell.variant, cell.load) for cell in found.cells] == [
        (name, load) for name in (DEFAULT, BASELINE, RIVAL) for load in TINY.loads
    ]
    assert {cell.batch_tokens for cell in found.cells if cell.variant != BASELINE} == {found.batch_tokens}
    assert all(cell.offered_per_s > 0 and cell.ratio_baseline for cell in found.cells)
    assert one_by_one.runs == runs_of(TINY)


def test_how_many_run_at_a_time_changes_nothing(one_by_one: Report) -> None:
    done: list[int] = []
    side_by_side = compare(msgspec.structs.replace(TINY, jobs=2), on_progress=done.append)
    assert side_by_side.found == one_by_one.found
    assert done == list(range(1, runs_of(TINY) + 1))
