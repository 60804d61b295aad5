"""Honest comparison on a noisy machine: the ways take turns, and medians and ratios within a round count."""

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

ROUNDS = 7

Figures = dict[str, float]
"""What one round of one way gave, by name."""
Values = dict[str, list[float]]
"""The same over all rounds."""
Way = Callable[[], Awaitable[Figures]]


class Row(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of the report: medians over the rounds. `ratio` is the median of the ratios round by round; `goal` is
    what it (or, without a floor, `ours`) is held against."""

    what: str
    unit: str
    ours: float
    floor: float | None = None
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None


async def interleave(ways: Mapping[str, Way], *, rounds: int) -> dict[str, Values]:
    """Run every way once a round, in turn: way -> figure -> one value a round."""
    out: dict[str, Values] = {name: {} for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            for figure, value in (await way()).items():
                out[name].setdefault(figure, []).append(value)
    return out


def compared(
    what: str, unit: str, ours: Sequence[float], floor: Sequence[float], *,
    at_most: float | None = None, at_least: float | None = None,
) -> Row:  # fmt: skip
    """Ours beside the floor; the goal bounds their ratio. What drifts in both falls out of it."""
    ratio = statistics.median(a / b for a, b in zip(ours, floor, strict=True))
    row = Row(what=what, unit=unit, ours=statistics.median(ours), floor=statistics.median(floor), ratio=ratio)
    return _judged(row, ratio, "x", at_most=at_most, at_least=at_least)


def measured(
    what: str, unit: str, ours: Sequence[float], *, at_most: float | None = None, at_least: float | None = None
) -> Row:
    """Ours alone; the goal bounds it."""
    median = statistics.median(ours)
    return _judged(Row(what=what, unit=unit, ours=median), median, "", at_most=at_most, at_least=at_least)


def _judged(row: Row, value: float, suffix: str, *, at_most: float | None, at_least: float | None) -> Row:
    if at_most is not None:
        row.goal, row.met = f"<= {at_most:,g}{suffix}", value <= at_most
    elif at_least is not None:
        row.goal, row.met = f">= {at_least:,g}{suffix}", value >= at_least
    return row


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
