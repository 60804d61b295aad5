"""The nearest flip of a decision: the smallest change of one setting or one input that would have changed it.

Every lever is tried outward from its value in both directions, at distances that double, all levers in step: the first
distance at which anything flips is the nearest one known, and there bisection finds the exact place: `to` flips,
`before` (one representable step nearer) does not. So the nearest is found on curves that flip back, too, unless the
flip lies wholly between two distances tried.

The size of a change is relative to the value (to 1 where that is 0); picking another from a list counts as a whole.
Equal sizes: the lever that was named first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import msgspec

from events.base import PPM
from policies.levers import Lever
from replay.outcome import Word

FINENESS = 256
"""The first distance is this part of the value; each further one is twice the one before."""
WHOLE = FINENESS.bit_length() - 1
"""The round in which the distance is the whole value: picks are tried then."""
ROUNDS_MAX = 64

Flips = Callable[[Lever, Any], bool]
"""Whether the outcome is another one with this value."""


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """With `to` in place of `value` the outcome is another (`outcome`); with `before` it is still the same.
    `relative_ppm` is the size of the change."""

    kind: str
    of: str
    name: str
    value: Any
    to: Any
    before: Any
    relative_ppm: int
    outcome: tuple[Word, ...] = ()


@dataclass(slots=True)
class _Way:
    """One lever in one direction. `reach` is the farthest distance tried that flips nothing; `span` the last one."""

    lever: Lever
    sign: int
    span: int
    reach: int = 0

    def distance(self, number: int) -> int:
        """How far to go in a round; 0 where that is no further than before."""
        distance = min(((abs(self.lever.value) or 1) << number) // FINENESS, self.span)
        return distance if distance > self.reach else 0

    def at(self, distance: int) -> int:
        value: int = self.lever.value + self.sign * distance
        return value

    def flip(self, flips: Flips, distance: int) -> Flip:
        """The exact place between `reach` (does not flip) and `distance` (does)."""
        low, high = self.reach, distance
        while high - low > 1:
            middle = (low + high) // 2
            if flips(self.lever, self.at(middle)):
                high = middle
            else:
                low = middle
        lever = self.lever
        return Flip(
            kind=lever.kind, of=lever.of, name=lever.name, value=lever.value, to=self.at(high), before=self.at(low),
            relative_ppm=high * PPM // (abs(lever.value) or 1),
        )  # fmt: skip


def nearest(levers: Sequence[Lever], flips: Flips) -> Flip | None:
    """The smallest change of one lever that flips; None when none does within its bounds."""
    numbers, picks = [one for one in levers if not one.picks], [one for one in levers if one.picks]
    ways = [
        _Way(lever, sign, span) for lever in numbers
        for sign, span in ((1, lever.high - lever.value), (-1, lever.value - lever.low)) if span > 0
    ]  # fmt: skip
    for number in range(ROUNDS_MAX):
        found: list[Flip] = []
        for way in ways:
            distance = way.distance(number)
            if distance and flips(way.lever, way.at(distance)):
                found.append(way.flip(flips, distance))
            else:
                way.reach = max(way.reach, distance)
        if number == WHOLE:
            found += [other for lever in picks if (other := _picked(lever, flips)) is not None]
        if found:
            return min(found, key=size)
        ways = [way for way in ways if way.reach < way.span]
        if not ways and number >= WHOLE:
            break
    return None


def size(flip: Flip) -> Fraction:
    """How big the change is: relative to the value, and for picks a whole."""
    if not isinstance(flip.to, int):
        return Fraction(1)
    return Fraction(abs(flip.to - flip.value), abs(flip.value) or 1)


def _picked(lever: Lever, flips: Flips) -> Flip | None:
    for value in lever.picks:
        if value != lever.value and flips(lever, value):
            return Flip(
                kind=lever.kind, of=lever.of, name=lever.name, value=lever.value, to=value, before=lever.value,
                relative_ppm=PPM,
            )  # fmt: skip
    return None
