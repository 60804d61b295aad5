"""A report against a baseline: calibrations that drifted, and wins that were lost."""

import msgspec
import pytest
from msgspec.structs import replace

from replay.bench.memory.regression import DRIFT_MAX, Kind, NotComparable, regressions, trimmed, unmeasured
from replay.bench.memory.report import Goal, Report
from replay.bench.memory.systems import CAREFUL, OURS, RIVAL
from tests.replay.bench.memory.drawn_report import calibration, drawn_report

SYSTEMS = (OURS, CAREFUL, RIVAL)


def report(seed: int = 1, **named: object) -> Report:
    return drawn_report(seed, workloads=("mixed",), systems=SYSTEMS, loads=(1.0, 1.2, 1.5), **named)  # type: ignore[arg-type]


def calibrated(off: float) -> Report:
    return replace(report(), calibrations=(calibration(off=off),))


def test_nothing_is_worse_than_in_the_same_report() -> None:
    assert regressions(report(), report()) == []
    assert regressions(trimmed(report(with_series=True)), report(with_series=True)) == []


def test_a_baseline_keeps_neither_series_nor_clock() -> None:
    whole, kept = report(with_series=True), trimmed(report(with_series=True))
    assert len(msgspec.json.encode(kept)) < len(msgspec.json.encode(whole)) / 2
    assert all(run.series == () and run.wall_s == 0 for run in kept.runs)
    assert (kept.made_at, kept.seconds, kept.cells) == ("", 0.0, whole.cells)


@pytest.mark.parametrize(
    ("before", "now", "drifts"),
    [
        (0.04, 0.04 + DRIFT_MAX * 0.9, False),
        (0.04, 0.04 + DRIFT_MAX * 1.1, True),  # Still within its limit, and another model than it was.
        (0.04, 0.04 - DRIFT_MAX * 1.1, True),
        (0.095, 0.105, True),  # Moved by little, and not within its limit any more.
        (0.105, 0.11, False),  # It was not within it before.
    ],
)
def test_a_calibration_drifts(before: float, now: float, drifts: bool) -> None:
    found = regressions(calibrated(before), calibrated(now))
    assert {one.kind for one in found} == ({Kind.DRIFT} if drifts else set())
    assert regressions(calibrated(before), calibrated(now), kinds=(Kind.LOST_WIN,)) == []


def test_a_calibration_that_is_not_made_any_more_has_drifted() -> None:
    [found] = regressions(report(), replace(report(), calibrations=()))
    assert (found.kind, found.now) == (Kind.DRIFT, "not measured any more")
    [one] = report().calibrations
    fewer = replace(report(), calibrations=(replace(one, checked=one.checked[1:]),))
    [found] = regressions(report(), fewer)
    assert found.what.endswith(one.checked[0].name)


def goal(value: float | None, *, at_most: bool = False) -> Report:
    one = Goal(workload="mixed", name="a goal", limit=1.0, value=value, at_most=at_most)
    return replace(report(), goals=(one,))


@pytest.mark.parametrize(
    ("before", "now", "at_most", "lost"),
    [
        (1.2, 1.1, False, False),
        (1.2, 0.99, False, True),
        (1.2, None, False, True),
        (0.9, 0.8, False, False),  # It was no win.
        (0.9, 1.1, True, True),
        (0.9, 0.95, True, False),
    ],
)
def test_a_goal_that_was_met_and_is_not_is_a_lost_win(
    before: float, now: float | None, at_most: bool, lost: bool
) -> None:
    found = regressions(goal(before, at_most=at_most), goal(now, at_most=at_most))
    assert [one.kind for one in found] == ([Kind.LOST_WIN] if lost else [])
    assert regressions(goal(before, at_most=at_most), goal(now, at_most=at_most), kinds=(Kind.DRIFT,)) == []


def without_goals(one: Report) -> Report:
    return replace(one, goals=())


def test_a_ratio_that_fell_beyond_noise_is_a_lost_win_and_one_that_rose_is_none() -> None:
    good, bad = without_goals(report(worth={OURS: 0.99})), without_goals(report(worth={OURS: 0.8}))
    lost = regressions(good, bad)
    assert {one.kind for one in lost} == {Kind.LOST_WIN}
    # Against both of the others, at each of the three loads.
    assert len(lost) == 6
    assert regressions(bad, good) == []


def test_a_baseline_that_became_better_takes_the_win_as_well() -> None:
    before = without_goals(report(worth={CAREFUL: 0.5}))
    lost = regressions(before, without_goals(report(worth={CAREFUL: 0.9})))
    assert [one.what for one in lost if CAREFUL not in one.what] == []
    assert len(lost) == 3


def test_another_draw_of_the_same_loses_nothing() -> None:
    assert regressions(without_goals(report(1)), without_goals(report(2))) == []


def test_a_ratio_that_is_not_measured_any_more_is_said() -> None:
    gone = drawn_report(workloads=("mixed",), systems=(OURS, CAREFUL), loads=(1.0, 1.2, 1.5))
    lost = regressions(without_goals(report()), without_goals(gone))
    assert {(RIVAL in one.what, one.now) for one in lost} == {(True, "not measured any more")}


def test_of_a_narrowed_run_only_what_it_measured_can_be_lost() -> None:
    before = without_goals(report(worth={OURS: 0.99}))
    few = without_goals(
        drawn_report(workloads=("mixed",), systems=(OURS, CAREFUL), loads=(1.0, 1.2), worth={OURS: 0.8})
    )
    lost = regressions(before, few, narrowed=True)
    assert len(lost) == 2
    assert all(CAREFUL in one.what for one in lost)
    rest = unmeasured(before, few)
    assert len(rest) == 4
    assert any(RIVAL in what for what in rest)
    assert len(regressions(before, few)) == 6


def test_a_load_that_no_plan_has_is_not_looked_for_again() -> None:
    before = without_goals(report())
    moved = tuple(replace(cell, load=0.873) if cell.load == 1.2 else cell for cell in before.cells)
    runs = tuple(replace(run, load=0.873) if run.load == 1.2 else run for run in before.runs)
    elsewhere = replace(before, loads=(1.0, 1.5), cells=moved, runs=runs)
    assert regressions(elsewhere, replace(before, loads=(1.0, 1.5))) == []
    assert regressions(replace(elsewhere, loads=(1.0, 0.873, 1.5)), before) != []


@pytest.mark.parametrize("changes", [{"stopped_early": True}, {"suite": "another"}])
def test_what_cannot_be_held_against_each_other_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(NotComparable):
        regressions(report(), replace(report(), **changes))
