"""Lengths of answers as a decayed histogram: what was seen of late, as a distribution that can be asked.

Lengths fall into buckets that grow with the length (8 per doubling, so a bucket is at most an eighth wide). Every
answer weighs LENGTH_WEIGHT; when the whole weighs LENGTHS_MAX answers all is halved, so the old fades.

A histogram of few answers leans on a coarser one (its parent): the parent's distribution counts like PARENT_ANSWERS
answers of its own. That is back-off without a threshold: with no answers of its own it says what the parent says, with
hundreds it says what it saw (a Dirichlet prior; Gelman et al., "Bayesian Data Analysis", chapter 5). The mixture is
kept in ppm and made anew after every thirty-second part of new answers, so that asking is one binary search.
"""

from bisect import bisect_left
from itertools import accumulate

import msgspec

from events.base import PPM

LENGTH_WEIGHT = 64
LENGTHS_MAX = 2_048
TOKENS_MAX = 1 << 20
"""No answer is longer, as far as anybody predicts."""
PARENT_ANSWERS = 12
"""More blurs what answers of one sort have in common, fewer makes too much of a few answers. On public traces the loss
of the upper bound changes by less than 5 % from 8 to 24 (synthetic agent sessions: 12 %)."""

PER_DOUBLING = 8
"""Buckets per doubling of the length."""

_EXACT = 16
_BUCKETS = _EXACT + 17 * PER_DOUBLING
_FRESH_PART = 32


class Lengths(msgspec.Struct):
    """The weight of the answers in each bucket, their sum, and of both the shape: cumulative, in ppm, with the
    parent's mixed in. `since` is the weight that is not in the shape yet."""

    weights: list[int] = msgspec.field(default_factory=lambda: [0] * _BUCKETS)
    total: int = 0
    since: int = 0
    shape_ppm: list[int] = msgspec.field(default_factory=list)


def bucket_of(tokens: int) -> int:
    """The bucket of a length."""
    if tokens < _EXACT:
        return max(tokens, 0)
    shift = tokens.bit_length() - 4
    return min(_EXACT + (shift - 1) * PER_DOUBLING + (tokens >> shift) - PER_DOUBLING, _BUCKETS - 1)


def bucket_top(bucket: int) -> int:
    """The longest length in a bucket."""
    if bucket < _EXACT:
        return bucket
    shift, place = divmod(bucket - _EXACT, PER_DOUBLING)
    return ((place + PER_DOUBLING + 1) << (shift + 1)) - 1


_TOPS = tuple(bucket_top(bucket) for bucket in range(_BUCKETS))


def add(lengths: Lengths, tokens: int, parent: Lengths | None) -> None:
    """Take one answer in. `parent` is the coarser histogram that it leans on; it has the answer already."""
    lengths.weights[bucket_of(tokens)] += LENGTH_WEIGHT
    lengths.total += LENGTH_WEIGHT
    lengths.since += LENGTH_WEIGHT
    if lengths.total >= LENGTHS_MAX * LENGTH_WEIGHT:
        lengths.weights = [weight >> 1 for weight in lengths.weights]
        lengths.total = sum(lengths.weights)
    if lengths.since * _FRESH_PART >= lengths.total:
        lengths.since = 0
        lengths.shape_ppm = _shape_ppm(lengths, parent)


def _shape_ppm(lengths: Lengths, parent: Lengths | None) -> list[int]:
    own = list(accumulate(lengths.weights))
    last = bisect_left(own, lengths.total)
    if parent is None:
        shape = [weight * PPM // lengths.total for weight in own[:last]]
    else:
        leans = PARENT_ANSWERS * LENGTH_WEIGHT
        whole, last = lengths.total + leans, max(last, bisect_left(parent.shape_ppm, PPM))
        pairs = zip(own[:last], parent.shape_ppm[:last], strict=True)
        shape = [(weight * PPM + leans * ppm) // whole for weight, ppm in pairs]
    return shape + [PPM] * (_BUCKETS - last)  # Nothing was longer.


def quantile(lengths: Lengths, ppm: int, *, so_far: int = 0) -> int:
    """The length that `ppm` of the answers longer than `so_far` end within, at least `so_far` + 1; within a bucket they
    are taken to be spread evenly. 0 = none that long was seen."""
    shape = lengths.shape_ppm
    first = bucket_of(so_far) + 1 if so_far else 0
    shorter = shape[first - 1] if first else 0
    longer = PPM - shorter
    if longer <= 0:
        return 0
    want = shorter + max(-(-longer * ppm // PPM), 1)
    bucket = bisect_left(shape, want, first)
    below, bottom = (shape[bucket - 1], _TOPS[bucket - 1]) if bucket else (0, 0)
    length = bottom - (bottom - _TOPS[bucket]) * (want - below) // (shape[bucket] - below)
    return length if length > so_far else so_far + 1
