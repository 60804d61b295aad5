"""Naming the KV of a prompt: 8K tokens, in slices of 256 as the gateway does it, and in blocks of 16 beside it."""

import time
from functools import partial

from kvstore.fingerprint import fingerprints
from tests.bench.place import Place
from tests.bench.rounds import Figures, Row, interleave, measured, percentile

TOKENS = 8_192
PER_ROUND = 300
GOAL_US = 65


async def measure(place: Place) -> list[Row]:
    """Microseconds per prompt."""
    ways = {str(slice_tokens): partial(_prompts, slice_tokens) for slice_tokens in (256, 16)}
    values = await interleave(ways, rounds=place.rounds)
    return [
        measured("fingerprints of 8K tokens, slices of 256", "us", values["256"]["p50"], at_most=GOAL_US),
        measured("fingerprints of 8K tokens, blocks of 16", "us", values["16"]["p50"]),
    ]


async def _prompts(slice_tokens: int) -> Figures:
    tokens = [number * 7_919 % 128_000 for number in range(TOKENS)]
    waits = []
    for _ in range(PER_ROUND):
        start = time.perf_counter()
        fingerprints(tokens, key=b"bench", slice_tokens=slice_tokens)
        waits.append(time.perf_counter() - start)
    return {"p50": percentile(waits, 50) * 1e6}
