"""Cells: what the runs of all seeds come to together."""

import pytest
from msgspec.structs import replace

from events.base import NS_PER_S
from replay.bench.memory.compare import compare
from replay.bench.memory.report import Cell, RunResult
from replay.bench.memory.summary import CLASS_REQUESTS_MIN, cells
from replay.bench.memory.systems import OURS
from replay.score import Part, Scores
from tests.replay.bench.memory.drawn_report import drawn_report

HOUR_NS = 3_600 * NS_PER_S
SMALL = drawn_report(1, workloads=("mixed",), systems=(OURS,), loads=(1.0,), seeds=(1, 2))


def cell(*scores: Scores) -> Cell:
    made: list[RunResult] = [replace(SMALL.runs[0], seed=seed, scores=one) for seed, one in enumerate(scores)]
    [found] = cells(made)
    return found


def test_a_run_that_served_nobody_costs_as_much_as_any_other() -> None:
    served = Scores(requests=1, device_ns=HOUR_NS, slo_tokens=1_000_000, device_hours_per_million=1.0)
    nobody = Scores(requests=1, device_ns=HOUR_NS)
    assert cell(served, served).device_hours_per_million == pytest.approx(1.0)
    assert cell(served, nobody).device_hours_per_million == pytest.approx(2.0)
    assert cell(nobody, nobody).device_hours_per_million is None
    assert cell(Scores(requests=1, slo_tokens=1)).device_hours_per_million is None, "nobody knows of how many devices"


def test_a_class_of_a_few_requests_is_no_difference_between_two_reports() -> None:
    """The worst class is the same quantity in a cell and between reports."""
    few, many = CLASS_REQUESTS_MIN - 1, 100 * CLASS_REQUESTS_MIN
    all_of_it = Part(requests=many, slo_met=many, slo_attainment=1.0)
    known, unlucky = (
        Scores(
            requests=many + few, slo_met=many + met, slo_attainment=(many + met) / (many + few),
            prompts={"<4K": all_of_it, ">=32K": Part(requests=few, slo_met=met, slo_attainment=met / few)},
        )
        for met in (few, 0)
    )  # fmt: skip
    before, now = (
        replace(SMALL, runs=tuple(replace(run, scores=scores) for run in SMALL.runs)) for scores in (known, unlucky)
    )  # fmt: skip
    assert [one.metric for one in compare(before, now).counted() if one.metric == "worst_class_share"] == []
    assert cell(unlucky).worst_class_share == pytest.approx((many + few) / many)
