"""What the prompts that run on an engine have in common: an engine with a prefix cache holds it once.

Every resident is counted in the books with its whole prompt, as if it ran alone. What several of them begin with is
held once by the engine, so the books hold more than the engine does by (holders - 1) times each common slice. That much
more may be promised. Where an engine does not share after all, it reports more in use than it could, and the difference
is taken off the budget as if it were somebody else's (`policies.accounts.measure`).

Without it four turns of agents with a system prompt of 6K tokens count 18K tokens that nobody holds. On the mixed
workload (two engines of 98K tokens) that was worth 3 to 6 % of goodput.

When one of them ends, its whole prompt leaves the books, but not the engine: a predicted peak counts on until the last
of them what they have in common (`common_tokens`).

Example: a and b begin with slice s of 256 tokens. Each counts it; 256 tokens are shared. When a ends, none are.
"""

from collections.abc import Sequence

import msgspec

from events.base import SliceId


class Common(msgspec.Struct):
    """One slice: how many residents hold it, and its tokens as the first of them said."""

    holders: int
    tokens: int


class SharedPrefix(msgspec.Struct):
    """The slices of the residents, and the tokens that the books count more than once. Bounded by the residents and
    the slices of a prompt."""

    held: dict[SliceId, Common] = msgspec.field(default_factory=dict)
    tokens: int = 0


def hold(shared: SharedPrefix, slices: Sequence[SliceId], *, slice_tokens: int) -> None:
    """A resident with these slices came."""
    for slice_id in slices:
        common = shared.held.get(slice_id)
        if common is None:
            shared.held[slice_id] = Common(1, slice_tokens)
        else:
            common.holders += 1
            shared.tokens += common.tokens


def common_tokens(shared: SharedPrefix, slices: Sequence[SliceId]) -> int:
    """What of these slices, a resident's, others hold as well: the engine keeps it when that one ends. A slice is
    fingerprinted with all before it, so those that are common come first."""

    held = shared.held
    first = held.get(slices[0]) if slices else None
    if first is None or first.holders == 1:
        return 0
    low, high = 0, len(slices)
    while low < high:
        middle = (low + high) // 2
        common = held.get(slices[middle])
        if common is None or common.holders == 1:
            high = middle
        else:
            low = middle + 1
    return low * first.tokens


def release(shared: SharedPrefix, slices: Sequence[SliceId]) -> None:
    """A resident with these slices, which came before, went."""
    for slice_id in slices:
        common = shared.held[slice_id]
        common.holders -= 1
        if common.holders:
            shared.tokens -= common.tokens
        else:
            del shared.held[slice_id]
