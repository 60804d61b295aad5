"""The prefix index: the longest match by bisection is the true one, and what it holds is bounded."""

from hypothesis import given, strategies

from events.base import SliceId
from policies.prefix_index import PrefixIndex, clear, matched, touch

CHAINS = strategies.lists(strategies.lists(strategies.integers(0, 2), min_size=1, max_size=6), max_size=25)


def chained(steps: list[int]) -> list[SliceId]:
    """Slices named by all that stands before them, as fingerprints are."""
    return [SliceId("/".join(map(str, steps[: n + 1]))) for n in range(len(steps))]


@given(CHAINS, strategies.lists(strategies.integers(0, 2), max_size=6))
def test_the_match_is_the_longest_run_of_leading_slices_that_are_held(
    chains: list[list[int]], asked: list[int]
) -> None:
    index = PrefixIndex()
    for chain in chains:
        touch(index, chained(chain), slice_tokens=10, tokens_max=80)
        assert index.tokens == 10 * len(index.tokens_of) <= 80
    slices = chained(asked)
    length = 0
    while length < len(slices) and slices[length] in index.tokens_of:
        length += 1
    assert matched(index, slices) == length
    assert not any(slice_id in index.tokens_of for slice_id in slices[length:]), "no child outlives its parent"


def test_the_end_of_the_chain_that_was_used_longest_ago_goes_first() -> None:
    index = PrefixIndex()
    for chain in ([1, 1], [2], [1]):
        touch(index, chained(chain), slice_tokens=10, tokens_max=20)
    assert list(index.tokens_of) == ["2", "1"]


def test_slices_of_another_size_are_counted_by_their_own() -> None:
    index = PrefixIndex()
    touch(index, chained([1]), slice_tokens=10, tokens_max=100)
    touch(index, chained([1]), slice_tokens=30, tokens_max=100)
    assert index.tokens == 30


def test_a_void_cache_holds_nothing() -> None:
    index = PrefixIndex()
    touch(index, chained([1, 2]), slice_tokens=10, tokens_max=100)
    clear(index)
    assert (matched(index, chained([1, 2])), index.tokens) == (0, 0)
