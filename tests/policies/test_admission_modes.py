"""Admission: observing, and what is said twice or of nobody."""

from typing import Any

import pytest

from events.base import EngineId, HolderId
from events.decisions import (
    RejectReason,
    Would,
)
from events.engine import EngineRemoved, Health
from events.request import HolderStopped
from tests.policies.house import admitted, full, house, rejected
from tests.policies.words import (
    MS,
    S,
    aborted,
    arrived,
    beat,
    expired,
    finished,
    first_token,
    health,
    measured,
    settings,
    tick,
)
from tests.spec import at


def test_observe_admits_at_once_and_says_what_would_have_been() -> None:
    spec = house(settings(mode="observe"))
    spec.when(arrived("a", 500, out=400)).then(admitted("a", would=Would.ADMIT, reason=""))
    spec.when(arrived("b", 500, out=400)).then(admitted("b", would=Would.DEFER, reason="kv_budget"))
    spec.when(arrived("c", 500, slack=1)).then(admitted("c", would=Would.REJECT, reason="rejected_slo_infeasible"))
    spec.when(arrived("d", 5_000)).then(rejected("d", RejectReason.TOO_LONG))
    spec.when(arrived("e", model="x")).then(rejected("e", RejectReason.NO_ENGINE))


def test_those_who_wait_go_at_once_when_the_mode_changes_to_observe() -> None:
    full(settings(mode="observe")).when(at(10 * MS, tick(9))).then(admitted("b", would=Would.DEFER))


def test_what_keeps_out_of_the_way_goes_as_well_when_the_mode_changes_to_observe() -> None:
    long = arrived("c", 400, out=100, slack=20 * S)
    spec = full(settings(strategy="slo_aware", long_prefill_ns=1), long, settings(mode="observe"))
    spec.when(at(10 * MS, tick(9))).then(admitted("b"), admitted("c"))


def test_nobody_is_refused_for_being_late_once_the_mode_is_observe() -> None:
    spec = full(*(event for n in range(1, 10) for event in (at(n * S, beat()), at(n * S, tick(n)))))
    spec.after(settings(mode="observe"))
    spec.when(at(10 * S, tick(10))).then(admitted("b", would=Would.REJECT))


def test_with_deferral_off_nothing_waits_behind_those_who_wait_already() -> None:
    spec = full(settings(deferral="off", strategy="slo_aware", passes_max=0))
    spec.when(arrived("c", 100, slack=11 * S)).then(admitted("c"))


@pytest.mark.parametrize("before", [(arrived("a", 100),), (arrived("a", 500, out=500), arrived("b", 500))])
def test_an_arrival_said_twice_has_no_effect(before: tuple[Any, ...]) -> None:
    spec = house(*before)
    spec.when(before[-1]).then_nothing()


@pytest.mark.parametrize(
    "word",
    [first_token("x"), finished("x"), aborted("x"), expired("x"), beat(x=3), measured("e9"), health("e9", Health.LOST),
     EngineRemoved(engine_id=EngineId("e9")), HolderStopped(holder=HolderId("nobody"))],
    ids=lambda event: type(event).__name__,
)  # fmt: skip
def test_words_about_what_nobody_knows_have_no_effect(word: Any) -> None:
    house().when(word).then_nothing()


def test_progress_that_comes_late_takes_nothing_back() -> None:
    spec = house(arrived("a", 100), first_token("a"), beat(a=50), beat(a=20))
    assert spec.state.accounts["e1"].load.decode_context == 150
    spec.after(first_token("a"))
    assert spec.state.accounts["e1"].load.decode_context == 150


def test_what_ended_is_forgotten() -> None:
    spec = house()
    empty = spec.state.accounts["e1"].load
    spec.after(arrived("a", 100), first_token("a"), finished("a"), arrived("b", 100), aborted("b"))
    assert spec.state.accounts["e1"].load == empty
    assert (spec.state.running, spec.state.accounts["e1"].residents, spec.state.fresh) == ({}, {}, None)
