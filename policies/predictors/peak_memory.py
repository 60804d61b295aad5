"""How much KV a running set will hold at its worst moment: not what it holds now, nor all of it at full length.

Running requests grow by one token a step until they end, then all of theirs is free. So the sum can only peak at the
moment before one ends: then those that remain at least as long are still there, each grown by that many tokens.
Sorted by what remains, longest first, that is one pass:

    peak = max over i of (sum of held of the first i) + i * remaining_i

Example: held 10 and 10, remaining 5 and 1. At the first end 10+1 + 10+1 = 22; at the second 10+5 = 15. Peak 22, where
reserving both at full length says 26.

This is the rule of LightLLM's past-future scheduler (ASPLOS 2025).
"""

from collections.abc import Iterable

Grows = tuple[int, int]
"""One running request: tokens that are still to come, and tokens that it holds. A bare pair: many are made."""


def peak_tokens(running: Iterable[Grows], *, waste: int = 0) -> int:
    """The most tokens that the set will hold at one time, in whatever order it is given; each with `waste` more."""
    held = peak = 0
    for count, (remaining, held_by_one) in enumerate(sorted(running, reverse=True), start=1):
        held += held_by_one
        then = held + count * (remaining + waste)
        if then > peak:
            peak = then
    return peak


def peak_blocks(running: Iterable[Grows], *, block_tokens: int) -> int:
    """The same in blocks of `block_tokens`; never less than the truth, because each request may leave a part of its
    last block empty."""
    return peak_tokens(running, waste=block_tokens - 1) // block_tokens
