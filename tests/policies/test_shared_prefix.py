"""What prompts have in common is counted once, and nothing of it is left when they are gone."""

from hypothesis import given
from hypothesis import strategies as st

from events.base import SliceId
from policies import shared_prefix
from policies.shared_prefix import SharedPrefix

A, B, C = SliceId("a"), SliceId("b"), SliceId("c")


def test_a_slice_is_shared_once_for_each_holder_but_the_first() -> None:
    shared = SharedPrefix()
    shared_prefix.hold(shared, (A, B), slice_tokens=256)
    assert shared.tokens == 0
    shared_prefix.hold(shared, (A, C), slice_tokens=256)
    assert shared.tokens == 256
    shared_prefix.hold(shared, (A, B), slice_tokens=256)
    assert shared.tokens == 3 * 256
    shared_prefix.release(shared, (A, B))
    assert shared.tokens == 256


def test_who_calls_a_known_slice_larger_shares_no_more_than_is_held() -> None:
    shared = SharedPrefix()
    shared_prefix.hold(shared, (A,), slice_tokens=16)
    shared_prefix.hold(shared, (A,), slice_tokens=1_000_000)
    assert shared.tokens == 16


@given(st.lists(st.lists(st.sampled_from([A, B, C]), unique=True), max_size=12), st.randoms(use_true_random=False))
def test_the_books_are_the_sum_over_holders_less_what_is_held(prompts: list[list[SliceId]], rng: object) -> None:
    shared, running = SharedPrefix(), list[list[SliceId]]()
    for prompt in prompts:
        shared_prefix.hold(shared, prompt, slice_tokens=8)
        running.append(prompt)
    rng.shuffle(running)  # type: ignore[attr-defined]
    while True:
        counted, held = sum(map(len, running)), len({one for prompt in running for one in prompt})
        assert shared.tokens == 8 * (counted - held)
        if not running:
            break
        shared_prefix.release(shared, running.pop())
    assert shared == SharedPrefix()


def test_common_is_what_others_hold_too_as_far_as_they_begin_alike() -> None:
    shared = SharedPrefix()
    for slices in ((A, B, C), (A, B), (C,)):
        shared_prefix.hold(shared, slices, slice_tokens=8)
    assert shared_prefix.common_tokens(shared, (A, B)) == 16
    shared_prefix.release(shared, (A, B))
    assert shared_prefix.common_tokens(shared, (A, B, C)) == 0
    assert shared_prefix.common_tokens(shared, (SliceId("of one that is only promised"), A)) == 0
    assert shared_prefix.common_tokens(shared, ()) == 0
