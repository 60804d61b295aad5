"""The rate of a link, the word to stop, and when computing is better than waiting."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import NS_PER_MS, NS_PER_S, PPM
from kvstore.transfer.limits import LATE_PPM, Cancel, Link, MonotonicClock, give_up_ns
from tests.kvstore.transfer.clocks import FakeClock

RATE, BURST = 1_000_000, 50_000


def test_a_link_lets_a_burst_through_at_once_and_then_its_rate() -> None:
    clock = FakeClock()
    link = Link(RATE, burst_bytes=BURST, clock=clock)
    assert [link.take(25_000) for _ in range(4)] == [0, 0, 25 * NS_PER_MS, 50 * NS_PER_MS]
    assert link.queue_bytes() == 50_000
    clock.ns += 50 * NS_PER_MS
    assert (link.queue_bytes(), link.take(1_000)) == (0, NS_PER_MS)


def test_what_is_given_back_is_free_for_others() -> None:
    link = Link(RATE, burst_bytes=BURST, clock=FakeClock())
    link.take(BURST + 10_000)
    assert link.queue_bytes() == 10_000
    link.give_back(10_000)
    assert link.queue_bytes() == 0
    assert link.take(1) == 1_000


def test_no_rate_is_no_limit() -> None:
    link = Link(0, burst_bytes=1, clock=FakeClock())
    assert [link.take(1 << 40), link.take(1 << 40), link.queue_bytes()] == [0, 0, 0]
    link.give_back(1)


TAKES = st.lists(st.tuples(st.integers(0, 200 * NS_PER_MS), st.integers(1, 3 * BURST)), min_size=1, max_size=40)


@settings(deadline=None)
@given(TAKES)
def test_no_window_carries_more_than_its_time_and_one_burst(takes: list[tuple[int, int]]) -> None:
    clock = FakeClock()
    link = Link(RATE, burst_bytes=BURST, clock=clock)
    sent = []
    for pause_ns, bytes_ in takes:
        clock.ns += pause_ns
        sent.append((clock.ns + link.take(bytes_), bytes_))
    for first, (begin_ns, _) in enumerate(sent):
        carried = 0
        for go_ns, bytes_ in sent[first:]:
            carried += bytes_
            largest = max(bytes_ for _, bytes_ in takes)
            assert carried <= BURST + largest + (go_ns - begin_ns) * RATE // NS_PER_S + 1


@settings(deadline=None)
@given(TAKES)
def test_first_come_first_served(takes: list[tuple[int, int]]) -> None:
    clock = FakeClock()
    link = Link(RATE, burst_bytes=BURST, clock=clock)
    goes = []
    for pause_ns, bytes_ in takes:
        clock.ns += pause_ns
        goes.append(clock.ns + link.take(bytes_))
    assert goes == sorted(goes)


def test_the_word_to_stop_wakes_who_waits_and_who_comes_later() -> None:
    cancel, woken = Cancel(), threading.Event()
    with cancel.waking(woken.set):
        assert not woken.is_set()
        cancel.set()
        assert woken.is_set()
    woken.clear()
    cancel.set()
    assert not woken.is_set(), "who left is not woken"
    with cancel.waking(woken.set):
        assert woken.is_set()
    assert cancel.is_set()
    assert cancel.wait(60 * NS_PER_S), "at once"


def test_the_machines_clock_waits_and_stops_waiting() -> None:
    clock, cancel = MonotonicClock(), Cancel()
    start = clock.now_ns()
    clock.wait(NS_PER_MS, cancel)
    assert clock.now_ns() - start >= NS_PER_MS
    cancel.set()
    clock.wait(3600 * NS_PER_S, cancel)


def test_the_example_of_giving_up() -> None:
    assert give_up_ns([100] * 4) == (40, 140, 240, 340)
    assert give_up_ns([]) == ()


RECOMPUTE = st.lists(st.integers(1, 10**9), min_size=1, max_size=64)


@settings(deadline=None)
@given(RECOMPUTE, st.integers(0, PPM))
def test_who_gives_up_at_any_slice_and_computes_the_rest_is_in_time(recompute: list[int], late_ppm: int) -> None:
    latest = sum(recompute) + sum(recompute) * late_ppm // PPM
    for index, limit in enumerate(give_up_ns(recompute, late_ppm=late_ppm)):
        assert limit + sum(recompute[index:]) == latest


@settings(deadline=None)
@given(RECOMPUTE)
def test_later_slices_are_waited_for_longer(recompute: list[int]) -> None:
    limits = give_up_ns(recompute)
    assert list(limits) == sorted(limits)
    assert limits[0] == sum(recompute) * LATE_PPM // PPM


@pytest.mark.parametrize("rate", [-1])
def test_a_rate_is_not_negative(rate: int) -> None:
    with pytest.raises(AssertionError):
        Link(rate, burst_bytes=1, clock=FakeClock())
