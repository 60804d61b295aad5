"""KV footprint: new blocks only, and never fewer than the tokens need."""

from hypothesis import given, strategies

from policies.predictors.base import Interval
from policies.predictors.kv_footprint import footprint_bytes

MB = 1 << 20
AMOUNT = strategies.integers(0, 50_000)


def test_the_example_of_the_rule() -> None:
    got = footprint_bytes(
        Interval(100, 200, 300), prompt_tokens=1_000, cached_tokens=512, block_tokens=16, block_bytes=2 * MB
    )
    assert got == (74 * MB, 86 * MB, 100 * MB)


@given(AMOUNT, AMOUNT, strategies.lists(AMOUNT, min_size=3, max_size=3), strategies.integers(1, 512))
def test_it_is_ordered_and_holds_all_new_tokens_with_less_than_two_blocks_to_spare(
    prompt: int, cached: int, lengths: list[int], block_tokens: int
) -> None:
    cached = min(cached, prompt)
    output = Interval(*sorted(lengths))
    got = footprint_bytes(output, prompt_tokens=prompt, cached_tokens=cached, block_tokens=block_tokens, block_bytes=1)
    assert list(got) == sorted(got)
    for length, blocks in zip(output, got, strict=True):
        new_tokens = prompt - cached + length
        assert new_tokens <= blocks * block_tokens < new_tokens + 2 * block_tokens
