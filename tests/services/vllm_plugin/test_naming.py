"""Keys of vLLM and names of the log: one to one for what tiers hold, and bounded for the rest."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events.base import SliceId
from services.vllm_plugin.naming import Naming, made_up

A, B = b"a" * 36, b"b" * 36
ONE, TWO = SliceId("1" * 32), SliceId("2" * 32)


def test_key_that_nobody_named_has_a_name_that_says_so() -> None:
    naming = Naming()
    assert naming.name(A) == made_up(A)
    assert naming.key(made_up(A)) == A
    assert made_up(A).startswith("k")
    assert len(made_up(A)) == 32
    assert made_up(A) != made_up(B)


def test_true_name_replaces_the_made_up_one() -> None:
    naming = Naming()
    assert naming.name(A) == made_up(A)
    assert naming.learn(A, ONE) == made_up(A)
    assert naming.learn(A, ONE) is None
    assert naming.names([A, B]) == (ONE, made_up(B))
    assert (naming.key(ONE), naming.key(made_up(A))) == (A, None)


def test_name_of_a_slice_that_is_there_is_not_given_to_another() -> None:
    naming = Naming()
    naming.learn(A, ONE)
    naming.hold(A)
    assert naming.learn(B, ONE) is None
    assert naming.name(B) == made_up(B)
    assert naming.key(ONE) == A
    naming.release(A)
    naming.learn(B, ONE)
    assert naming.key(ONE) == B


def test_name_that_another_thread_heard_waits_while_a_tier_holds_the_slice() -> None:
    naming = Naming()
    assert naming.hold(A) == made_up(A)
    naming.hear(A, ONE)
    naming.hear(B, TWO)

    assert naming.names([A, B]) == (made_up(A), TWO), "what was told of a slice is told under that name to its end"
    assert naming.key(made_up(A)) == A
    assert naming.heard() == [(A, ONE)]
    assert naming.heard() == []


def test_name_that_was_heard_of_a_slice_that_left_is_no_longer_told() -> None:
    naming = Naming()
    naming.hold(A)
    naming.hear(A, ONE)
    naming.release(A)
    assert naming.heard() == []


def test_what_is_held_keeps_its_name_and_the_rest_is_bounded() -> None:
    naming = Naming(names_max=2)
    naming.learn(A, ONE)
    naming.hold(A)
    for number in range(10):
        naming.name(bytes([number]) * 36)
    assert naming.key(ONE) == A
    assert naming.key(made_up(bytes([0]) * 36)) is None
    assert naming.key(made_up(bytes([9]) * 36)) is not None
    naming.release(A)
    for number in range(10, 13):
        naming.name(bytes([number]) * 36)
    assert naming.key(ONE) is None


def test_what_was_not_held_is_not_released() -> None:
    with pytest.raises(KeyError):
        Naming().release(A)


@given(
    st.lists(
        st.tuples(st.sampled_from(["learn", "name", "hold", "release"]), st.integers(0, 4), st.integers(0, 4)),
        max_size=60,
    )
)
@example([("learn", 2, 2), ("learn", 0, 2), ("hold", 2, 0)])
def test_no_two_slices_that_are_held_have_one_name(steps: list[tuple[str, int, int]]) -> None:
    naming = Naming(names_max=3)
    held: list[int] = []
    for what, number, other in steps:
        key = bytes([number]) * 36
        match what:
            case "learn":
                naming.learn(key, SliceId(f"{other:032x}"))
            case "name":
                naming.name(key)
            case "hold":
                naming.hold(key)
                held.append(number)
            case _ if number in held:
                held.remove(number)
                naming.release(key)
        names = {number: naming.name(bytes([number]) * 36) for number in held}
        assert len(set(names.values())) == len(names)
        assert all(naming.key(name) == bytes([number]) * 36 for number, name in names.items())
