"""Output length as a moving average per model and tenant, with the mean error as its width: the plain predictor.

    average += (tokens - average) / 16        error += (|tokens - average| - error) / 16

The upper bound is the average and so many mean errors as a normal distribution needs for the target. Lengths of
answers are not normal; that is why this is not the default, but a peer to measure the default against.
"""

from itertools import pairwise

import msgspec

from policies.predictors.base import Interval
from policies.predictors.output_question import Question

KEYS_MAX = 512
ANSWERS_MIN = 8
"""Fewer answers than this say nothing."""

_SHIFT = 8
_PART = 16
_ERRORS_PPM = (
    (500_000, 0), (600_000, 317_532), (700_000, 657_248), (800_000, 1_054_827), (900_000, 1_606_216),
    (950_000, 2_061_547), (990_000, 2_915_715), (1_000_000, 6_000_000),
)  # fmt: skip
"""Mean absolute errors (ppm of one) above the mean within which that part of a normal distribution lies."""


class Average(msgspec.Struct):
    """Fixed point: tokens times 256."""

    average: int = 0
    error: int = 0
    answers: int = 0


Averages = dict[str, Average]
"""By model and tenant, the one heard of last at the end."""


def observe(averages: Averages, key: str, tokens: int) -> None:
    """Take one finished answer in."""
    seen, one = tokens << _SHIFT, averages.pop(key, None)
    if one is None:
        one = Average(average=seen)
    averages[key] = one
    if len(averages) > KEYS_MAX:
        del averages[next(iter(averages))]
    one.answers = min(one.answers + 1, _PART)
    one.error += (abs(seen - one.average) - one.error) // one.answers
    one.average += (seen - one.average) // one.answers


def predict(averages: Averages, key: str, question: Question) -> Interval | None:
    """The average within its error; None while too little was seen or the answer is longer than that already."""
    one = averages.get(key)
    if one is None or one.answers < ANSWERS_MIN:
        return None
    wide = one.error * _errors_ppm(question.target_ppm) // 1_000_000
    low, expected, high = (max(value >> _SHIFT, question.so_far + 1) for value in (
        one.average - wide, one.average, one.average + wide + (1 << _SHIFT) - 1))  # fmt: skip
    return Interval(low, expected, high) if high > question.so_far + 1 else None


def _errors_ppm(target_ppm: int) -> int:
    """Linear between the points of the table; below a half it is the average itself."""
    for (left, errors_left), (right, errors_right) in pairwise(_ERRORS_PPM):
        if target_ppm <= right:
            into = max(target_ppm - left, 0)
            return errors_left + (errors_right - errors_left) * into // (right - left)
    return _ERRORS_PPM[-1][1]
