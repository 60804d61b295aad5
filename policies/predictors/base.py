"""What every predictor answers: an interval in whole numbers."""

from typing import NamedTuple


class Interval(NamedTuple):
    """What is predicted: probably at least `low` and at most `high`, and about `expected`; always in that order."""

    low: int
    expected: int
    high: int
