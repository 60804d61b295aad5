"""How long an answer will be: a quantile of what this tenant's answers from this model have been of late.

Lengths fall into buckets that grow with the length (8 per doubling, so a bucket is at most an eighth wide). Every
answer weighs LENGTH_WEIGHT; when the whole weighs LENGTHS_MAX answers all is halved, so the old fades. As tokens
arrive the question becomes "given that it is longer than so far". Too few answers yet: the client's own cap.

Example: of 100 answers 80 had at most 200 tokens. The 80 % quantile is about 207 (the top of the bucket of 200).

The idea of admitting by the history of output lengths is LightLLM's past-future scheduler (ASPLOS 2025).
"""

from bisect import bisect_left
from itertools import accumulate, chain
from operator import sub

import msgspec

from events.base import PPM

LENGTH_WEIGHT = 64
LENGTHS_MAX = 2_048
LENGTHS_MIN = 8
"""Fewer answers than this say nothing."""
KEYS_MAX = 512
"""Keys kept; the one that was silent longest goes first."""

_EXACT = 16
_PER_DOUBLING = 8
_BUCKETS = _EXACT + 17 * _PER_DOUBLING


class Lengths(msgspec.Struct):
    """One key's decayed histogram: by bucket, the weight of the answers that fell into it or one before."""

    weights: list[int] = msgspec.field(default_factory=lambda: [0] * _BUCKETS)


Histograms = dict[str, Lengths]
"""By key, the one heard of last at the end."""


def key_of(model: str, tenant: str) -> str:
    """What answers are grouped by. Neither name can hold a line break that would confuse two keys."""
    return f"{model}\n{tenant}"


def bucket_of(tokens: int) -> int:
    """The bucket of a length."""
    if tokens < _EXACT:
        return max(tokens, 0)
    shift = tokens.bit_length() - 4
    return min(_EXACT + (shift - 1) * _PER_DOUBLING + (tokens >> shift) - _PER_DOUBLING, _BUCKETS - 1)


def bucket_top(bucket: int) -> int:
    """The longest length in a bucket."""
    if bucket < _EXACT:
        return bucket
    shift, place = divmod(bucket - _EXACT, _PER_DOUBLING)
    return ((place + _PER_DOUBLING + 1) << (shift + 1)) - 1


def observe(histograms: Histograms, key: str, tokens: int) -> None:
    """Take one finished answer in."""
    lengths = histograms.pop(key, None) or Lengths()
    histograms[key] = lengths
    if len(histograms) > KEYS_MAX:
        del histograms[next(iter(histograms))]
    weights, bucket = lengths.weights, bucket_of(tokens)
    weights[bucket:] = [weight + LENGTH_WEIGHT for weight in weights[bucket:]]
    if weights[-1] >= LENGTHS_MAX * LENGTH_WEIGHT:
        by_bucket = map(sub, weights, chain((0,), weights))
        lengths.weights = list(accumulate(weight >> 1 for weight in by_bucket))


def predict(
    histograms: Histograms, key: str, *, quantile_ppm: int, tokens_max: int, default: int, so_far: int = 0
) -> int:
    """The length that `quantile_ppm` of the answers longer than `so_far` end within.

    More than `so_far` always, at most `tokens_max` where that is given (0 = not) and not yet reached. Where nothing
    is known it is `tokens_max`, or `default`, or twice `so_far`.
    """  # fmt: skip
    known = _quantile(histograms.get(key), quantile_ppm, so_far)
    length = known or tokens_max or max(default, 2 * so_far)
    if tokens_max:
        length = min(length, tokens_max)
    return max(length, so_far + 1)


def _quantile(lengths: Lengths | None, quantile_ppm: int, so_far: int) -> int:
    """0 = not known."""
    if lengths is None or lengths.weights[-1] < LENGTHS_MIN * LENGTH_WEIGHT:
        return 0
    weights = lengths.weights
    start = bucket_of(so_far) + 1 if so_far else 0
    shorter = weights[start - 1] if start else 0
    longer = weights[-1] - shorter
    if longer <= 0:
        return 0
    return bucket_top(bisect_left(weights, shorter - (-longer * quantile_ppm // PPM)))
