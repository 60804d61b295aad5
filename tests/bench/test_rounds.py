"""The benchmark's own arithmetic: what it compares with what, and when it says met."""

import pytest

from tests.bench.rounds import Figures, compared, interleave, measured, percentile


async def test_ways_take_turns_round_by_round() -> None:
    order = []

    async def way(name: str) -> Figures:
        order.append(name)
        return {"n": float(len(order))}

    values = await interleave({"a": lambda: way("a"), "b": lambda: way("b")}, rounds=3)
    assert order == ["a", "b"] * 3
    assert values == {"a": {"n": [1.0, 3.0, 5.0]}, "b": {"n": [2.0, 4.0, 6.0]}}


def test_a_ratio_is_taken_within_each_round_so_that_what_drifts_in_both_falls_out() -> None:
    row = compared("loop", "us", [150, 1_500, 15], [100, 1_000, 10], at_most=1.5)
    assert (row.ratio, row.ours, row.floor, row.met) == (1.5, 150, 100, True)


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compared("loop", "us", [1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("bound", "goal", "met"),
    [
        ({"at_most": 3.0}, "<= 3", True),
        ({"at_most": 1.9}, "<= 1.9", False),
        ({"at_least": 2.0}, ">= 2", True),
        ({"at_least": 100_000.0}, ">= 100,000", False),
        ({}, "", None),
    ],
)
def test_a_goal_bounds_the_median(bound: dict[str, float], goal: str, met: bool | None) -> None:
    row = measured("replay", "/s", [1.0, 2.0, 900.0], **bound)
    assert (row.ours, row.goal, row.met) == (2.0, goal, met)


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 51), (99, 100), (100, 100)])
def test_a_percentile_is_one_of_the_values(percent: int, value: int) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == value
