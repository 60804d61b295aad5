"""How long, how many, how far apart: distributions of whole numbers, drawn exactly.

Written in YAML in one of four ways:

    message_tokens: 200                                  # always this
    message_tokens: {between: [20, 300]}                 # evenly, both ends included
    message_tokens: {parts: [[8, 20, 300], [2, 300, 2500]]}   # a part by weight, then evenly from it
    message_tokens: {quantiles: {0: 5, 50: 356, 99: 1500, 100: 2000}}   # percent -> value, straight lines between

Only integers are drawn and no logarithm is taken, so a seed gives the same numbers on every machine.
"""

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import msgspec

from events.base import PPM

PPM_PER_PERCENT = PPM // 100
VALUE_MAX = 10_000_000_000
QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
"""Percentages at which a distribution is fitted."""


class Lengths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One distribution: exactly one of the three is given. `quantiles` go from 0 to 100 percent and never fall."""

    between: tuple[int, int] | None = None
    parts: tuple[tuple[int, int, int], ...] = ()
    quantiles: dict[float, int] = {}

    def __post_init__(self) -> None:
        given = [self.between is not None, bool(self.parts), bool(self.quantiles)]
        if sum(given) != 1:
            raise ValueError("give a number, or one of between, parts, quantiles")
        if self.quantiles:
            _check_quantiles(self.quantiles)
        for weight, least, most in self._weighted():
            if weight < 0 or not 0 <= least <= most <= VALUE_MAX:
                raise ValueError(f"{[weight, least, most]} is no part: weight and 0 <= least <= most <= {VALUE_MAX}")
        if self.parts and not sum(weight for weight, _, _ in self.parts):
            raise ValueError("one part at least has a weight")

    def draw(self, rng: Random) -> int:
        """One value."""
        if not self.quantiles:
            weighted = self._weighted()
            _, least, most = rng.choices(weighted, [weight for weight, _, _ in weighted])[0]
            return rng.randint(least, most)
        at = rng.randrange(PPM)
        points = self._points()
        (left, low), (right, high) = next(pair for pair in pairwise(points) if at < pair[1][0])
        return low + (high - low) * (at - left) // (right - left)

    def mean(self) -> float:
        """The mean of what is drawn."""
        if self.quantiles:
            return (
                sum((low + high) / 2 * (right - left) for (left, low), (right, high) in pairwise(self._points())) / PPM
            )
        weighted = self._weighted()
        return sum(weight * (least + most) / 2 for weight, least, most in weighted) / sum(w for w, _, _ in weighted)

    def most(self) -> int:
        """The most that is ever drawn."""
        if self.quantiles:
            return self._points()[-1][1]
        return max(most for _, _, most in self._weighted())

    def _weighted(self) -> Sequence[tuple[int, int, int]]:
        return self.parts if self.between is None else ((1, *self.between),)

    def _points(self) -> list[tuple[int, int]]:
        return [(round(percent * PPM_PER_PERCENT), value) for percent, value in sorted(self.quantiles.items())]


def always(value: int) -> Lengths:
    """The distribution of one value."""
    return Lengths(between=(value, value))


def fitted(values: Sequence[int], percents: Sequence[float] = QUANTILES) -> Lengths:
    """The quantiles of what was seen (nearest rank), as a distribution."""
    ranked = sorted(values)
    if ranked[0] == ranked[-1]:
        return always(ranked[0])
    last = len(ranked) - 1
    return Lengths(quantiles={percent: ranked[round(last * percent / 100)] for percent in percents})


def _check_quantiles(quantiles: dict[float, int]) -> None:
    points = sorted(quantiles.items())
    if (points[0][0], points[-1][0]) != (0, 100):
        raise ValueError("quantiles go from 0 to 100")
    if any(low > high for (_, low), (_, high) in pairwise(points)):
        raise ValueError("quantiles never fall")
    if points[0][1] < 0 or points[-1][1] > VALUE_MAX:
        raise ValueError(f"quantiles are from 0 to {VALUE_MAX}")
