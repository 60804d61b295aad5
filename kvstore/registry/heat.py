"""How hot a slice is: its hits, each halved with every half-life since.

Kept as a logarithm that only grows with use, so nothing has to be written again because time passes, and comparing two
of them compares their heat at any time (forward decay: Cormode et al., ICDE 2009).
"""

import struct
from math import log2
from typing import Final

from events.base import NS_PER_S

HALF_LIFE_NS: Final = 600 * NS_PER_S
_SCORE: Final = struct.Struct("<d")


def hit(score: float | None, at_ns: int) -> float:
    """The score after one more hit at that time; None: it had none."""
    new = at_ns / HALF_LIFE_NS
    if score is None:
        return new
    high, low = max(score, new), min(score, new)
    return high + log2(1.0 + 2.0 ** (low - high))


def heat_at(score: float, now_ns: int) -> float:
    """The heat at a time that is not before its last hit."""
    return float(2.0 ** min(score - now_ns / HALF_LIFE_NS, 1_000.0))


def pack_score(score: float) -> bytes:
    """A score as it is kept."""
    return _SCORE.pack(score)


def unpack_score(packed: bytes) -> float:
    """A score, read."""
    score: float = _SCORE.unpack(packed)[0]
    return score
