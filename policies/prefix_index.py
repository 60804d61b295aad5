"""What an engine's prefix cache probably holds: the slices of prompts that were sent there, oldest use forgotten first.

It works with any engine, because it only knows what was sent. It holds as many tokens as the engine's KV does.
Slices are put in from the last to the first, so a slice is always at least as recent as those that follow it in a
prompt: what is forgotten is always the end of a chain, and the longest match can be found by bisection.
"""

from collections.abc import Sequence

import msgspec

from events.base import SliceId

ENTRIES_MAX = 65_536
"""Slices held for one engine, however few tokens each of them has."""


class PrefixIndex(msgspec.Struct):
    """Slices and their tokens, least recently used first."""

    tokens_of: dict[SliceId, int] = msgspec.field(default_factory=dict)
    tokens: int = 0


def matched(index: PrefixIndex, slices: Sequence[SliceId]) -> int:
    """How many of a prompt's leading slices are held."""
    held = index.tokens_of
    if not slices or slices[0] not in held:
        return 0
    low, high = 1, len(slices)
    while low < high:
        middle = (low + high + 1) // 2
        if slices[middle - 1] in held:
            low = middle
        else:
            high = middle - 1
    return low


def touch(index: PrefixIndex, slices: Sequence[SliceId], *, slice_tokens: int, tokens_max: int) -> None:
    """A prompt with these slices was sent there. Keeps at most `tokens_max` tokens, and ENTRIES_MAX slices."""
    held, tokens = index.tokens_of, index.tokens
    for slice_id in reversed(slices):
        tokens += slice_tokens - held.pop(slice_id, 0)
        held[slice_id] = slice_tokens
    while tokens > tokens_max or len(held) > ENTRIES_MAX:
        tokens -= held.pop(next(iter(held)))
    index.tokens = tokens


def clear(index: PrefixIndex) -> None:
    """The engine's cache is void."""
    index.tokens_of.clear()
    index.tokens = 0
