"""A report against an older one that is kept as a baseline: what was reached and is not any more.

- Drift: a calibration that was within its limits and is not any more, whose model says something else than it did by
  more than `DRIFT_MAX` of what was measured, or that is not there any more.
- A lost win: a goal that was met and is not, or that is not measured any more; or a ratio of our goodput to another
  system's that fell by more than noise and margin (`replay.bench.memory.compare`), or is not there any more.

What a report that was stopped early has not measured is not lost: it is refused, as is one of another suite. Of a run
that was narrowed on purpose only what it measured is held against the baseline; `unmeasured` says what was not.
"""

from collections.abc import Collection, Sequence
from enum import StrEnum
from statistics import fmean
from typing import Final

import msgspec

from replay.bench.memory.compare import margin_of, noise_of, place_of, runs_of
from replay.bench.memory.goals import NEVER
from replay.bench.memory.report import Calibration, Cell, Checked, Goal, Report
from replay.bench.memory.systems import OURS

DRIFT_MAX: Final = 0.02
"""How far, as a share of what was measured, a model may move without being looked at: for better or for worse."""

UNMEASURED: Final = "not measured any more"


class Kind(StrEnum):
    """What a run can fail on."""

    DRIFT = "drift"
    LOST_WIN = "lost-win"


class Regression(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is worse than in the baseline, in words."""

    kind: Kind
    what: str
    before: str
    now: str


class NotComparable(Exception):
    """Two reports that cannot be held against each other; the text says why."""

    exit_code = 2


def regressions(
    baseline: Report, now: Report, *, kinds: Collection[Kind] = tuple(Kind), narrowed: bool = False
) -> list[Regression]:
    """What is worse, of these kinds; of a run that was `narrowed` only wins that it measured can be lost. Raises
    NotComparable."""
    check_baseline(baseline, now.suite)
    if now.stopped_early:
        raise NotComparable("the report was stopped early: run it to its end")
    found: list[Regression] = []
    if Kind.DRIFT in kinds:
        found += _drifts(baseline.calibrations, now.calibrations)
    if Kind.LOST_WIN in kinds:
        found += [one for one in _lost_wins(baseline, now) if not (narrowed and one.now == UNMEASURED)]
    return found


def unmeasured(baseline: Report, now: Report) -> list[str]:
    """Wins of the baseline that the other report says nothing about."""
    return [one.what for one in _lost_wins(baseline, now) if one.now == UNMEASURED]


def _lost_wins(baseline: Report, now: Report) -> list[Regression]:
    return [*_lost_goals(baseline.goals, now.goals), *_fallen_ratios(baseline, now)]


def check_baseline(baseline: Report, suite: str) -> None:
    """Raises NotComparable where a run of that suite cannot be held against it."""
    if baseline.stopped_early:
        raise NotComparable("the baseline was stopped early: run it to its end")
    if suite != baseline.suite:
        raise NotComparable(f"suite {suite!r} cannot be held against a baseline of suite {baseline.suite!r}")


def trimmed(report: Report) -> Report:
    """The part of a report that a baseline needs: without quantities over time, and without what differs from one
    machine to the next."""
    runs = tuple(msgspec.structs.replace(run, series=(), wall_s=0.0) for run in report.runs)
    return msgspec.structs.replace(report, runs=runs, made_at="", seconds=0.0)


def _drifts(before: Sequence[Calibration], now: Sequence[Calibration]) -> list[Regression]:
    known = {(one.model, one.against): one for one in now}
    found = []
    for old in before:
        what = f"{old.model} against {old.against}"
        new = known.get((old.model, old.against))
        if new is None:
            found.append(_drift(what, "calibrated" if old.calibrated else "uncalibrated", UNMEASURED))
        else:
            found += _moved(what, old, new)
    return found


def _moved(what: str, old: Calibration, new: Calibration) -> list[Regression]:
    known = {one.name: one for one in new.checked}
    found = []
    for before in old.checked:
        name, after = f"{what}: {before.name}", known.get(before.name)
        if after is None:
            found.append(_drift(name, _off(before), UNMEASURED))
        elif before.off <= before.off_max and after.off > after.off_max:
            found.append(_drift(name, _off(before), f"{_off(after)}, beyond {after.off_max:.1%}"))
        elif abs(_ratio(after) - _ratio(before)) > DRIFT_MAX:
            found.append(_drift(name, _off(before), f"{_off(after)}: moved by more than {DRIFT_MAX:.0%}"))
    return found


def _ratio(one: Checked) -> float:
    return one.modelled / one.measured if one.measured else 1.0


def _off(one: Checked) -> str:
    return f"{_ratio(one) - 1:+.1%} off"


def _drift(what: str, before: str, now: str) -> Regression:
    return Regression(kind=Kind.DRIFT, what=what, before=before, now=now)


def _lost(what: str, before: str, now: str) -> Regression:
    return Regression(kind=Kind.LOST_WIN, what=what, before=before, now=now)


def _lost_goals(before: Sequence[Goal], now: Sequence[Goal]) -> list[Regression]:
    known = {(one.workload, one.name, one.engine): one for one in now}
    found = []
    for old in before:
        new = known.get((old.workload, old.name, old.engine))
        if old.met and (new is None or not new.met):
            said = UNMEASURED if new is None or new.value is None else f"{_value(new)}, not met"
            limit = f"{'<=' if old.at_most else '>='} {old.limit:g}"
            found.append(_lost(f"{old.workload}: {old.name} ({limit})", f"{_value(old)}, met", said))
    return found


def _value(goal: Goal) -> str:
    return "infinite" if goal.value is not None and goal.value >= NEVER else f"{goal.value:.3f}"


def _fallen_ratios(baseline: Report, now: Report) -> list[Regression]:
    known = {place_of(cell): cell for cell in now.cells}
    found = []
    # Other loads than those of the plan, such as another system's knee, are elsewhere in each report.
    for old in [cell for cell in baseline.cells if cell.system == OURS and cell.load in baseline.loads]:
        place = place_of(old)
        for other in old.ratios:
            what = f"{old.workload}: goodput against {other} at load {old.load:g} ({old.engine.value})"
            before, new = _by_seed(baseline, old, other), known.get(place)
            after = _by_seed(now, new, other) if new is not None else {}
            if before and not after:
                found.append(_lost(what, f"{fmean(before.values()):.3f}", UNMEASURED))
            elif before and _fell(before, after):
                found.append(_lost(what, f"{fmean(before.values()):.3f}", f"{fmean(after.values()):.3f}"))
    return found


def _fell(before: dict[int, float], now: dict[int, float]) -> bool:
    noise, mean = noise_of(before, now), fmean(before.values())
    return mean - fmean(now.values()) > max(noise or 0.0, margin_of(noise) * mean)


def _by_seed(report: Report, own: Cell, other: str) -> dict[int, float]:
    """Our goodput as a multiple of another system's, on the same seeds; without those where the other has none."""
    beside = next(
        (
            cell for cell in report.cells
            if (cell.workload, cell.system, cell.engine, cell.load) == (own.workload, other, own.engine, own.load)
        ),
        None,
    )  # fmt: skip
    if beside is None:
        return {}
    theirs = {run.seed: run.scores.goodput_per_s for run in runs_of(report, beside)}
    return {
        run.seed: run.scores.goodput_per_s / theirs[run.seed]
        for run in runs_of(report, own)
        if theirs.get(run.seed)
    }  # fmt: skip
