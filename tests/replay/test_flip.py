"""The nearest flip: the smallest change, to the nearest representable value."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import PPM
from events.control import Ticked
from policies.levers import Lever
from replay.flip import nearest


def lever(value: Any = 100, *, low: int = 0, high: int = 1_000, name: str = "x", picks: tuple[Any, ...] = ()) -> Lever:
    return Lever("setting", "actor", name, value, lambda _value: (None, Ticked(n=1)), low=low, high=high, picks=picks)


def when(condition: Callable[[Any], bool]) -> Callable[[Lever, Any], bool]:
    return lambda _lever, value: condition(value)


@pytest.mark.parametrize(
    ("value", "condition", "to", "before"),
    [
        (100, lambda v: v >= 130, 130, 129),
        (100, lambda v: v <= 97, 97, 98),
        (100, lambda v: v in range(90, 96) or v > 300, 95, 96),
        (100, lambda v: v == 1_000, 1_000, 999),
        (100, lambda v: v == 0, 0, 1),
        (0, lambda v: v >= 700, 700, 699),
        (0, lambda v: v > 0, 1, 0),
        (1_000, lambda v: v < 1_000, 999, 1_000),
    ],
)
def test_the_nearest_value_that_flips_is_found(value: int, condition: Any, to: int, before: int) -> None:
    flip = nearest([lever(value)], when(condition))
    assert flip is not None
    assert (flip.to, flip.before) == (to, before)
    assert flip.relative_ppm == abs(to - value) * PPM // (value or 1)


def test_there_is_none_in_bounds() -> None:
    assert nearest([lever(), lever("a", picks=("a", "b"))], when(lambda _value: False)) is None
    assert nearest([lever(high=120, low=90)], when(lambda v: v > 120 or v < 90)) is None
    assert nearest([], when(lambda _value: True)) is None


def test_of_two_levers_the_smaller_change_wins_and_of_equal_ones_the_first() -> None:
    def flips(one: Lever, value: Any) -> bool:
        return bool({"a": value >= 150, "b": value >= 2_400, "c": value >= 1_200}[one.name])

    levers = [lever(100, name="a"), lever(2_000, high=9_000, name="b"), lever(1_000, high=9_000, name="c")]
    flip = nearest(levers, flips)
    assert flip is not None
    assert (flip.name, flip.to) == ("b", 2_400)


def test_another_pick_counts_as_a_whole() -> None:
    mode = lever("enforce", name="mode", picks=("enforce", "observe"))
    small = nearest([mode, lever()], lambda one, value: one.name == "mode" or value > 180)
    large = nearest([mode, lever()], lambda one, value: one.name == "mode" or value > 280)
    assert small is not None
    assert large is not None
    assert (small.name, small.to) == ("x", 181)
    assert (large.name, large.to, large.before, large.relative_ppm) == ("mode", "observe", "enforce", PPM)


@settings(max_examples=300)
@given(
    value=st.integers(0, 10**12), low=st.integers(0, 10**6), high=st.integers(0, 10**13),
    border=st.integers(0, 10**13), above=st.booleans(),
)  # fmt: skip
def test_one_step_nearer_never_flips(value: int, low: int, high: int, border: int, above: bool) -> None:
    low, high = min(low, value), max(high, value)

    def condition(tried: int) -> bool:
        assert low <= tried <= high, "nothing is tried out of bounds"
        return tried >= border if above else tried <= border

    flip = nearest([lever(value, low=low, high=high)], when(condition)) if not condition(value) else None
    if condition(value):
        return
    if flip is None:
        assert border > high if above else border < low
        return
    assert abs(flip.to - flip.before) == 1
    assert condition(flip.to)
    assert not condition(flip.before)
    assert flip.to == border
