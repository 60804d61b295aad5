"""Admission: who goes first of those that wait."""

from typing import Any

import pytest

from events.decisions import (
    DeferReason,
    RejectReason,
    WakeAsked,
)
from events.engine import Health
from tests.policies.house import admitted, deferred, full, house, rejected
from tests.policies.words import (
    MS,
    S,
    aborted,
    arrived,
    embedding,
    engine,
    expired,
    finished,
    first_token,
    health,
    settings,
    tick,
)
from tests.spec import START_NS, at, said


def test_a_small_one_may_pass_a_large_one_that_waits_but_only_so_often() -> None:
    spec = full(settings(passes_max=2))
    spec.when(arrived("c", 50, out=10)).then(admitted("c")).when(finished("c")).then_nothing()
    spec.when(arrived("d", 50, out=10)).then(admitted("d")).when(finished("d")).then_nothing()
    spec.when(arrived("e", 50, out=10)).then(deferred("e", DeferReason.BEHIND_OTHERS), said(WakeAsked))
    spec.when(finished("a")).then(admitted("b"), admitted("e"))


def test_deferred_requests_go_in_order_of_arrival() -> None:
    spec = full(settings(passes_max=0), arrived("c", 100, slack=10 * S), arrived("d", 100, slack=10 * S))
    spec.when(finished("a")).then(admitted("b"), admitted("c"), admitted("d"))


def test_the_work_of_those_who_wait_counts_for_who_comes_later() -> None:
    spec = full(settings(passes_max=0))
    spec.when(arrived("c", 100, slack=69 * MS)).then(rejected("c", RejectReason.SLO_INFEASIBLE))
    spec.when(arrived("d", 100, slack=70 * MS)).then(deferred("d", DeferReason.BEHIND_OTHERS), said(WakeAsked))


def test_the_number_of_those_who_wait_is_bounded() -> None:
    spec = full(settings(passes_max=0, queue_max=1))
    spec.when(arrived("c", 100)).then(rejected("c", RejectReason.QUEUE_FULL, retry_after_ns=S))


def test_one_whose_latest_start_has_passed_is_refused() -> None:
    spec = house(arrived("b", 500, slack=S), decoding=arrived("a", 500, out=400))
    spec.when(at(940 * MS, tick(2))).then_nothing()
    spec.when(at(950 * MS, tick(3))).then(rejected("b", RejectReason.DEADLINE_PASSED, retry_after_ns=S))


def test_a_wake_is_asked_for_only_if_no_tick_comes_before() -> None:
    spec = house(decoding=arrived("a", 500, out=400))
    spec.when(arrived("b", 500, slack=2 * S)).then(deferred("b", DeferReason.KV_BUDGET))
    spec.when(at(1 * S, tick(2))).then(said(WakeAsked, at_ns=START_NS + 1_950 * MS))
    spec.when(at(1 * S, tick(3))).then_nothing()


def test_several_deadlines_share_the_wake_that_comes_first() -> None:
    spec = house(
        tick(), settings(passes_max=0), arrived("a", 500, out=400), first_token("a"), arrived("b", 500, slack=500 * MS)
    )
    spec.when(arrived("c", 500, slack=600 * MS)).then(deferred("c", DeferReason.BEHIND_OTHERS))


@pytest.mark.parametrize("end", [expired("b"), aborted("b")], ids=["expired", "aborted"])
def test_one_that_ends_while_it_waits_makes_room_for_those_behind(end: Any) -> None:
    spec = full(settings(passes_max=0), arrived("c", 100, slack=10 * S))
    spec.when(end).then(admitted("c"))


def test_requests_that_wait_for_an_engine_that_left_are_refused() -> None:
    full().when(health("e1", Health.LOST)).then(rejected("b", RejectReason.NO_ENGINE))


def test_an_llm_line_does_not_hold_up_embeddings() -> None:
    spec = house(
        settings(passes_max=0), arrived("b", 490, out=10, slack=10 * S),
        engines=(engine("e1", embedding=True),), decoding=arrived("a", 500, out=100),
    )  # fmt: skip
    spec.when(embedding("v", 100)).then(admitted("v", kv_cache_tokens=100, output_tokens_predicted=0))


def test_an_embedding_holds_its_workspace_until_it_ends() -> None:
    spec = house(embedding("v", 4_000, inputs=100), engines=(engine("e1", llm=False, embedding=True),))
    assert spec.state.accounts["e1"].load.blocks_held == 14
    spec.after(finished("v"))
    assert spec.state.accounts["e1"].load.blocks_held == 0
