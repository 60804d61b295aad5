"""Embedding load: waves are followed, constant load converges, intervals are ordered and hold what they promise."""

from collections.abc import Iterable

import pytest
from hypothesis import given, strategies

from policies.predictors.embedding_load import STEPS_MAX, EmbeddingLoad, forecast, observe

MB = 1 << 20


def seen(amounts: Iterable[int]) -> EmbeddingLoad:
    load = EmbeddingLoad()
    for amount in amounts:
        observe(load, amount)
    return load


def test_before_anything_was_seen_nothing_is_expected() -> None:
    assert forecast(EmbeddingLoad(), 5) == (0, 0, 0)


def test_one_observation_is_the_forecast() -> None:
    assert forecast(seen([7 * MB]), 3) == (7 * MB, 7 * MB, 7 * MB)


@given(strategies.integers(0, 1 << 40), strategies.integers(0, 1 << 40), strategies.integers(1, STEPS_MAX))
def test_under_constant_load_it_converges_to_it(first: int, amount: int, steps: int) -> None:
    got = forecast(seen([first, *[amount] * 2_000]), steps)
    assert got.low <= amount <= got.high
    assert got.high - got.low <= max(amount, first) // 1_000 + 64, "and the interval closes"


def test_a_rising_wave_is_seen_coming_and_fades_out() -> None:
    load = seen(range(0, 60 * MB, MB))
    one, eight, far = (forecast(load, steps).expected for steps in (1, 8, STEPS_MAX))
    assert one == pytest.approx(60 * MB, rel=0.01)
    assert one + 2 * MB < eight < one + 7 * MB
    assert far < one + 9 * MB, "it does not rise for ever"


def test_a_falling_wave_does_not_go_below_nothing() -> None:
    got = forecast(seen(range(60 * MB, -MB, -MB)), 40)
    assert got.low == 0
    assert got.expected >= 0


@given(strategies.lists(strategies.integers(-MB, 1 << 45), max_size=60), strategies.integers(1, STEPS_MAX - 1))
def test_the_interval_is_ordered_and_does_not_get_narrower_further_ahead(amounts: list[int], steps: int) -> None:
    load = seen(amounts)
    near, far = forecast(load, steps), forecast(load, steps + 1)
    for got in (near, far):
        assert 0 <= got.low <= got.expected <= got.high
        assert all(type(value) is int for value in got)
    if near.low and far.low:
        assert far.high - far.low >= near.high - near.low - 2, "but for rounding"


@pytest.mark.parametrize("steps", [-1, 0, STEPS_MAX + 1, 10**9])
def test_steps_out_of_range_are_cut(steps: int) -> None:
    load = seen([MB, 2 * MB, 4 * MB])
    assert forecast(load, steps) == forecast(load, min(max(steps, 1), STEPS_MAX))


@pytest.mark.parametrize("seed", range(4))
def test_nine_in_ten_fall_into_the_interval_one_step_ahead(seed: int) -> None:
    # Sums of uniform draws from a fixed generator: near enough to normal errors around a constant.
    draw, load, inside, asked = seed * 2 + 1, EmbeddingLoad(), 0, 0
    for number in range(2_000):
        amount = 100 * MB
        for _ in range(12):
            draw = (draw * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % (1 << 64)
            amount += ((draw >> 40) % MB) - MB // 2
        if number > 100:
            got = forecast(load, 1)
            asked, inside = asked + 1, inside + (got.low <= amount <= got.high)
        observe(load, amount)
    assert 0.85 < inside / asked < 0.95
