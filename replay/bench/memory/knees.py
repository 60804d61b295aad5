"""The knee of a system on a workload: the scale at which it has its peak goodput.

Scales are steps of 10 % around a guess. First every second step is tried, from around the guess to where goodput
falls on both sides of the peak; then the two steps next to the peak. A peak at the last step that is allowed is
`at_edge`.
"""

from collections.abc import Mapping
from typing import Final

from replay.bench.memory.report import Knee

STEP: Final = 1.1
STEPS_MAX: Final = 24
"""Steps from the guess that are tried at most, in each direction."""
FIRST: Final = (-2, 0, 2)
COARSE: Final = 2


def scale_at(guess: float, step: int) -> float:
    """The scale so many steps from the guess; rounded, so that it is the same number wherever it is computed."""
    return round(guess * STEP**step, 4)


def wanted(found: Mapping[int, float]) -> tuple[int, ...]:
    """The steps to try next, given the goodput at those that were tried; none when the peak is known."""
    if not found:
        return FIRST
    coarse = peak({step: goodput for step, goodput in found.items() if step % COARSE == 0})
    beside = _missing(found, coarse, COARSE)
    return beside or _missing(found, peak(found), 1)


def peak(found: Mapping[int, float]) -> int:
    """The step with the most goodput; of equals the lower one."""
    return max(found, key=lambda step: (found[step], -step))


def knee_of(guess: float, found: Mapping[int, float]) -> Knee:
    """What the steps that were tried say."""
    best, tried = peak(found), sorted(found)
    return Knee(
        scale=scale_at(guess, best), goodput_per_s=found[best], at_edge=best in (tried[0], tried[-1]),
        scales=tuple(scale_at(guess, step) for step in tried), goodputs=tuple(found[step] for step in tried),
    )  # fmt: skip


def _missing(found: Mapping[int, float], step: int, by: int) -> tuple[int, ...]:
    return tuple(one for one in (step - by, step + by) if one not in found and abs(one) <= STEPS_MAX)
