"""Pool time in one process: between ticks it runs on; what ticks say is what holds."""

import time

import pytest

from events.base import NS_PER_S, TICK_MAX_NS
from services.runtime.pool_clock import PoolClock

SPEED = 4
START_NS = 1_000 * NS_PER_S


class Machine:
    """This machine's monotonic clock, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._mono_ns = 5_000
        monkeypatch.setattr(time, "monotonic_ns", lambda: self._mono_ns)

    def passes(self, seconds: float) -> None:
        self._mono_ns += int(seconds * NS_PER_S)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def clock(machine: Machine) -> PoolClock:
    return PoolClock(speed=SPEED, start_ns=START_NS)


def test_between_ticks_it_runs_at_the_pools_speed(clock: PoolClock, machine: Machine) -> None:
    assert clock.now_ns() == START_NS
    machine.passes(0.5)
    assert clock.now_ns() == START_NS + 2 * NS_PER_S
    assert clock.wall_s(2 * NS_PER_S) == 0.5


def test_a_tick_that_comes_late_does_not_turn_it_back(clock: PoolClock, machine: Machine) -> None:
    machine.passes(0.5)
    shown_ns = clock.now_ns()
    clock.follow(shown_ns - NS_PER_S)
    assert clock.now_ns() == shown_ns
    machine.passes(0.5)
    assert clock.now_ns() == shown_ns - NS_PER_S + 2 * NS_PER_S


def test_without_ticks_it_stands_where_the_next_one_will_be(clock: PoolClock, machine: Machine) -> None:
    clock.follow(START_NS)
    machine.passes(600)
    assert clock.now_ns() == START_NS + TICK_MAX_NS
    clock.follow(START_NS + TICK_MAX_NS)
    assert clock.now_ns() == START_NS + TICK_MAX_NS
    machine.passes(0.25)
    assert clock.now_ns() == START_NS + TICK_MAX_NS + NS_PER_S


def test_a_pool_far_behind_the_wall_is_believed(clock: PoolClock) -> None:
    assert clock.now_ns() == START_NS
    clock.follow(START_NS - 600 * NS_PER_S)
    assert clock.now_ns() == START_NS - 600 * NS_PER_S


def test_steady_time_neither_jumps_nor_stands_still(clock: PoolClock, machine: Machine) -> None:
    before_ns = clock.steady_ns()
    for tick_ns in (START_NS + 900 * NS_PER_S, START_NS, 0):
        clock.follow(tick_ns)
        machine.passes(1)
    assert clock.steady_ns() == before_ns + 3 * SPEED * NS_PER_S
