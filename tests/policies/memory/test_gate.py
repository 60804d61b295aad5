"""Fetch or recompute."""

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from events.base import NS_PER_S, PPM
from policies.memory.gate import ASSUMED_BYTES_PER_S, fetch_ns, worth_fetching

MIB = 1 << 20


@pytest.mark.parametrize(
    ("bytes_", "queue", "speed", "latency", "takes"),
    [
        (0, 10**9, 10**9, 5, 0),
        (10**9, 0, 10**9, 0, NS_PER_S),
        (10**9, 10**9, 10**9, 0, 2 * NS_PER_S),
        (10**9, 0, 10**9, 7, NS_PER_S + 7),
        (1, 0, 3 * NS_PER_S, 0, 1),
        (ASSUMED_BYTES_PER_S, 0, 0, 0, NS_PER_S),
    ],
    ids=["nothing", "alone", "behind others", "latency", "rounded up", "not measured yet"],
)
def test_fetching_takes_queue_bytes_and_latency(bytes_: int, queue: int, speed: int, latency: int, takes: int) -> None:
    assert fetch_ns(bytes_, queue, speed, latency) == takes


@pytest.mark.parametrize(
    ("fetch", "recompute", "margin", "worth"),
    [
        (100, 120, 200_000, True),
        (101, 120, 200_000, False),
        (100, 100, 0, True),
        (0, 0, 0, False),
        (5, 0, 0, False),
        (0, 1, 200_000, True),
    ],
    ids=["just", "just not", "as quick, no margin", "nothing to save", "costs nothing", "is there"],
)
def test_a_fetch_has_to_be_quicker_by_the_margin(fetch: int, recompute: int, margin: int, worth: bool) -> None:
    assert worth_fetching(fetch, recompute, margin_ppm=margin) is worth


def test_the_example_of_the_page() -> None:
    alone, behind = (fetch_ns(1024 * MIB, queue * MIB, 5 * 10**9) for queue in (512, 2048))
    assert worth_fetching(alone, 400 * 10**6, margin_ppm=200_000)
    assert not worth_fetching(behind, 400 * 10**6, margin_ppm=200_000)


AMOUNT = st.integers(0, 1 << 45)


@drawn(AMOUNT, AMOUNT, st.integers(0, 1 << 40), AMOUNT, st.integers(0, 10 * PPM))
def test_more_to_fetch_or_a_longer_queue_never_makes_it_worth_more(
    bytes_: int, queue: int, speed: int, recompute: int, margin: int
) -> None:
    now = fetch_ns(bytes_, queue, speed)
    for later in (fetch_ns(bytes_ + 1, queue, speed), fetch_ns(bytes_, queue + 1, speed)):
        assert later >= now
        if worth_fetching(later, recompute, margin_ppm=margin):
            assert worth_fetching(now, recompute, margin_ppm=margin)
