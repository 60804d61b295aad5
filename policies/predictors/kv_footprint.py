"""How many new bytes of KV a request will hold at its end: its prompt without the cached part, and its answer.

    blocks = blocks of (prompt + output) - full blocks of the cached part        bytes = blocks * bytes per block

A cached block is shared by reference, so it costs nothing new; one that is cached in part is computed anew.

Example: blocks of 16 tokens and 2 MiB, a prompt of 1,000 with 512 cached, an answer of 100 to 300 tokens: 69 - 32 = 37
blocks (74 MiB) to 82 - 32 = 50 blocks (100 MiB).
"""

from policies.predictors.base import Interval


def footprint_bytes(
    output: Interval, *, prompt_tokens: int, cached_tokens: int, block_tokens: int, block_bytes: int
) -> Interval:
    """New bytes of KV at the end, for each length that the answer may have."""
    shared = cached_tokens // block_tokens
    low, expected, high = (
        max(-(-(prompt_tokens + tokens) // block_tokens) - shared, 0) * block_bytes for tokens in output
    )  # fmt: skip
    return Interval(low, expected, high)
