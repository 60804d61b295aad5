"""Two reports held against each other: what differs by more than the seeds do among themselves.

Cells are matched by workload, system, engine and load. Of each quantity the means over seeds are compared. A difference
counts when it is beyond both

- its noise: Student's t at 95 % times the standard error of the difference. Where both sides have the same seeds, the
  differences are taken seed by seed (the same arrivals met both sides); else the spread within the sides is pooled. At
  least `SEEDS_MIN` seeds a side are needed for that: with fewer nothing is known of the noise, and
- a margin: `MARGIN` of the first side, or `MARGIN_FEW` where the noise is not known. It keeps a thousandth from being
  news because a simulation repeats itself exactly.

A percentile that is infinite on one side alone counts by itself. Hundreds of quantities are compared: of those that did
not change, one in twenty may be beyond its noise by chance.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from math import sqrt
from statistics import fmean, stdev, variance
from typing import Final

import msgspec

from replay.bench.memory.report import Cell, EngineModel, Report, RunResult
from replay.bench.memory.summary import worst_class
from replay.score import Scores

SEEDS_MIN: Final = 3
MARGIN: Final = 0.01
MARGIN_FEW: Final = 0.05
T_95: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom; from the last on it is taken as it is there."""


class Verdict(StrEnum):
    """What a difference says of the second side."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A quantity of a run that is compared. None of a percentile is infinite, of another that there is none."""

    name: str
    unit: str
    of: Callable[[Scores], float | None]
    more_is_better: bool = True
    is_percentile: bool = False


def _percentile(name: str) -> Metric:
    return Metric(
        name=name, unit="ns", of=lambda scores: getattr(scores, name), more_is_better=False, is_percentile=True
    )


METRICS: Final = (
    Metric(name="goodput_per_s", unit="/s", of=lambda scores: scores.goodput_per_s),
    Metric(name="attainment", unit="", of=lambda scores: scores.slo_attainment),
    *(_percentile(name) for name in ("ttft_p50_ns", "ttft_p99_ns", "tpot_p50_ns", "tpot_p99_ns")),
    Metric(name="hit_share", unit="", of=lambda scores: scores.hit_share),
    Metric(name="throughput_tokens_per_s", unit="/s", of=lambda scores: scores.tokens_per_s),
    Metric(name="worst_class_share", unit="", of=lambda scores: worst_class([scores])[0]),
    Metric(name="jain", unit="", of=lambda scores: scores.fairness_jain),
    Metric(
        name="device_hours_per_million", unit="h", of=lambda scores: scores.device_hours_per_million,
        more_is_better=False,
    ),
)  # fmt: skip


class Place(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Where a cell stands."""

    workload: str
    system: str
    engine: EngineModel
    load: float


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity of one cell on both sides, None = infinite. `noise` is what chance alone explains, None where too
    few seeds tell; `needed` is what the difference has to exceed."""

    place: Place
    metric: str
    first: float | None
    second: float | None
    seeds: tuple[int, int]
    noise: float | None
    needed: float
    verdict: Verdict

    @property
    def share(self) -> float | None:
        """The difference as a share of the first side."""
        if self.first is None or self.second is None or not self.first:
            return None
        return self.second / self.first - 1


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All differences of what both reports have, and what only one of them has. `few_seeds`: cells whose noise is not
    known. `other_offers`: cells that were offered more or fewer requests a second, since a load is a multiple of each
    report's own knee. `unlike`: workloads that have another source, window or number of engines in the second report:
    of one name, and nothing that can be compared."""

    differences: tuple[Difference, ...]
    only_first: tuple[Place, ...]
    only_second: tuple[Place, ...]
    few_seeds: int
    other_offers: int
    unlike: tuple[str, ...] = ()

    def counted(self, *verdicts: Verdict) -> tuple[Difference, ...]:
        """The differences with one of these verdicts; without any: all that count."""
        wanted = verdicts or (Verdict.BETTER, Verdict.WORSE)
        return tuple(one for one in self.differences if one.verdict in wanted)


def compare(first: Report, second: Report) -> Comparison:
    """The second report held against the first."""
    here, there = _by_place(first), _by_place(second)
    both = [place for place in here if place in there]
    return Comparison(
        differences=tuple(
            found
            for place in both
            for metric in METRICS
            if (found := _difference(place, metric, here[place], there[place])) is not None
        ),
        only_first=tuple(place for place in here if place not in there),
        only_second=tuple(place for place in there if place not in here),
        few_seeds=sum(min(len(here[place]), len(there[place])) < SEEDS_MIN for place in both),
        other_offers=sum(_is_other_offer(here[place], there[place]) for place in both),
        unlike=_unlike(first, second),
    )


def place_of(cell: Cell) -> Place:
    """Where a cell stands."""
    return Place(workload=cell.workload, system=cell.system, engine=cell.engine, load=cell.load)


def runs_of(report: Report, cell: Cell) -> list[RunResult]:
    """The runs that a cell is made of, in the order of their seeds."""
    found = [
        run for run in report.runs
        if (run.workload, run.system, run.engine, run.load) == (cell.workload, cell.system, cell.engine, cell.load)
    ]  # fmt: skip
    return sorted(found, key=lambda run: run.seed)


def noise_of(first: dict[int, float], second: dict[int, float]) -> float | None:
    """How far apart the means of two sets of values, by seed, may lie by chance; None: too few to say."""
    if min(len(first), len(second)) < SEEDS_MIN:
        return None
    if first.keys() == second.keys():
        error = stdev(second[seed] - first[seed] for seed in first) / sqrt(len(first))
        return t_95(len(first) - 1) * error
    freedom = len(first) + len(second) - 2
    spread = (len(first) - 1) * variance(first.values()) + (len(second) - 1) * variance(second.values())
    return t_95(freedom) * sqrt(spread / freedom * (1 / len(first) + 1 / len(second)))


def t_95(freedom: int) -> float:
    """Student's t, two-sided 95 %."""
    return T_95[min(freedom, len(T_95)) - 1]


def margin_of(noise: float | None) -> float:
    """The share of the first side that a difference has to exceed in any case."""
    return MARGIN_FEW if noise is None else MARGIN


def _by_place(report: Report) -> dict[Place, list[RunResult]]:
    return {place_of(cell): runs_of(report, cell) for cell in report.cells}


def _unlike(first: Report, second: Report) -> tuple[str, ...]:
    said = [
        {one.name: f"{one.source}, {one.seconds:g} s on {one.engines} engines" for one in report.workloads}
        for report in (first, second)
    ]
    return tuple(
        f"{name}: {before} in the first, {after} in the second"
        for name, before in said[0].items() if before != (after := said[1].get(name, before))
    )  # fmt: skip


def _is_other_offer(first: Sequence[RunResult], second: Sequence[RunResult]) -> bool:
    if not first or not second:
        return False
    before, after = (fmean(run.scores.offered_per_s for run in runs) for runs in (first, second))
    return abs(after - before) > MARGIN * before


def _difference(
    place: Place, metric: Metric, first: Sequence[RunResult], second: Sequence[RunResult]
) -> Difference | None:  # fmt: skip
    """None: one of the sides does not have that quantity."""
    here, there = ({run.seed: metric.of(run.scores) for run in runs} for runs in (first, second))
    known = {seed: value for seed, value in here.items() if value is not None}
    other = {seed: value for seed, value in there.items() if value is not None}
    is_whole = (bool(here) and len(known) == len(here), bool(there) and len(other) == len(there))
    if not here or not there or (not all(is_whole) and not metric.is_percentile):
        return None
    noise = noise_of(known, other) if all(is_whole) else None
    mean, after = (fmean(one.values()) if whole else None for one, whole in zip((known, other), is_whole, strict=True))
    needed = max(noise or 0.0, margin_of(noise) * abs(mean or 0.0))
    return Difference(
        place=place, metric=metric.name, first=mean, second=after, seeds=(len(here), len(there)), noise=noise,
        needed=needed, verdict=_verdict(mean, after, needed, more_is_better=metric.more_is_better),
    )  # fmt: skip


def _verdict(first: float | None, second: float | None, needed: float, *, more_is_better: bool) -> Verdict:
    if first is None or second is None:
        if first is second:
            return Verdict.SAME
        return Verdict.BETTER if first is None else Verdict.WORSE  # A finite percentile is better than none.
    if abs(second - first) <= needed:
        return Verdict.SAME
    return Verdict.BETTER if (second > first) is more_is_better else Verdict.WORSE
