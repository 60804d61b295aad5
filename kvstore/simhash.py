"""A hint at which prompts are alike: a 64-bit SimHash over runs of tokens.

Prompts that share most of their runs of `SHINGLE_TOKENS` tokens differ in few bits, wherever the runs stand. It says
what might be worth prefetching and where a request might be routed; it NEVER substitutes KV: keys and values depend on
every token before them, so KV is served on an exact match of fingerprints alone (`kvstore.fingerprint`).

Keyed by cache domain like the fingerprints: prompts of different domains are not compared, and none can be guessed.

Source: Charikar, "Similarity Estimation Techniques from Rounding Algorithms" (STOC 2002); shingles: Broder (1997).
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

SIMHASH_BITS: Final = 64
SHINGLE_TOKENS: Final = 4
TOKENS_MAX: Final = 2_048
"""What comes later in a prompt is not looked at: a hint has to be cheap."""
_LANE_BITS: Final = TOKENS_MAX.bit_length()
_LANES: Final = tuple(sum((byte >> bit & 1) << bit * _LANE_BITS for bit in range(8)) for byte in range(256))
"""Each byte with its bits far enough apart to count TOKENS_MAX of them."""


def simhash(tokens: Sequence[int], *, key: bytes) -> int:
    """64 bits; each is the majority over all runs of tokens. 0 for a prompt shorter than a run."""
    step = 4
    packed = array("I", tokens[:TOKENS_MAX]).tobytes()
    runs = {packed[start : start + SHINGLE_TOKENS * step] for start in range(0, len(packed) - 12, step)}
    counts = [0] * (SIMHASH_BITS // 8)
    for run in runs:
        for place, byte in enumerate(blake2b(run, digest_size=8, key=key).digest()):
            counts[place] += _LANES[byte]
    lane = (1 << _LANE_BITS) - 1
    bits = (2 * (counts[bit // 8] >> bit % 8 * _LANE_BITS & lane) > len(runs) for bit in range(SIMHASH_BITS))
    return sum(one << bit for bit, one in enumerate(bits))


def likeness_ppm(one: int, two: int) -> int:
    """Equal bits: 1,000,000 for the same runs, about 500,000 for prompts with nothing in common."""
    return (SIMHASH_BITS - (one ^ two).bit_count()) * 1_000_000 // SIMHASH_BITS
