"""Whether a predictor keeps its word: how often the truth was within its upper bound, how far off it is in the middle,
and when to say so.

Of the last answers (each fades by a five-hundred-and-twelfth part with every later one) it keeps the coverage of the
upper bound, and the bias of the middle: what was seen above what was expected, in ppm of what was expected. The alarm
goes on when the coverage is ALARM_PPM below the target, and off again when half of that is made up, so that one answer
more or less does not ring it twice.
"""

import msgspec

from events.base import PPM
from events.decisions import MiscoverageNoticed
from policies.predictors.output_question import Foretold

FADE = 512
ANSWERS_MIN = 128
"""Fewer answers than this ring no alarm."""
ALARM_PPM = 60_000

_SHIFT = 8


class Calibration(msgspec.Struct):
    """Of one predictor. Decayed sums, fixed point: a count times 256. `noticed`: the alarm was said, and not yet
    cleared. `failures` counts requests for which it raised or answered nonsense, and another one had to answer."""

    target_ppm: int = 0
    answers: int = 0
    within: int = 0
    expected: int = 0
    seen: int = 0
    noticed: bool = False
    failures: int = 0


def take_in(calibration: Calibration, foretold: Foretold, tokens: int) -> None:
    """One finished answer of it. Under a new target what was within the old one counts no more."""
    if calibration.target_ppm != foretold.target_ppm:
        calibration.target_ppm = foretold.target_ppm
        calibration.answers = calibration.within = 0
    calibration.answers += (1 << _SHIFT) - calibration.answers // FADE
    calibration.within += ((1 << _SHIFT) if tokens <= foretold.high else 0) - calibration.within // FADE
    calibration.expected += (foretold.expected << _SHIFT) - calibration.expected // FADE
    calibration.seen += (tokens << _SHIFT) - calibration.seen // FADE


def answers(calibration: Calibration) -> int:
    """How many late answers there are, faded."""
    return calibration.answers >> _SHIFT


def coverage_ppm(calibration: Calibration) -> int:
    """The part of the late answers that ended within the upper bound; 1,000,000 before the first."""
    return calibration.within * PPM // calibration.answers if calibration.answers else PPM


def bias_ppm(calibration: Calibration) -> int:
    """By how much answers are longer than expected (below 0: shorter), in ppm of what was expected."""
    return (calibration.seen - calibration.expected) * PPM // calibration.expected if calibration.expected else 0


def alarm(predictor: str, calibration: Calibration) -> MiscoverageNoticed | None:
    """What is to be said now; None while nothing changed. Saying it is to be followed by `told`."""
    coverage, late = coverage_ppm(calibration), answers(calibration)
    bound = calibration.target_ppm - (ALARM_PPM // 2 if calibration.noticed else ALARM_PPM)
    short = coverage < bound and (late >= ANSWERS_MIN or calibration.noticed)
    if short == calibration.noticed:
        return None
    return MiscoverageNoticed(
        predictor=predictor, coverage_ppm=coverage, target_ppm=calibration.target_ppm, requests=late,
        cleared=not short,
    )  # fmt: skip


def told(calibration: Calibration, event: MiscoverageNoticed) -> None:
    """The alarm stands in the log."""
    calibration.noticed = not event.cleared
