"""The strategy at work in admission: who goes first, who is set aside, who keeps to the lane, who catches up."""

from typing import Any

import pytest

from events.base import PPM
from events.decisions import DeferReason, RejectReason, WakeAsked
from policies.admission_settings import Strategy
from tests.policies.house import BOTH, admitted, deferred, house, rejected
from tests.policies.words import MS, S, arrived, embedding, engine, finished, first_token, settings, tick
from tests.spec import Spec, at, said

SLO_AWARE: dict[str, Any] = {"strategy": "slo_aware", "backlog_max_ns": 10 * MS}


def busy(*more: Any, **changes: Any) -> Spec:
    """`a` is in prefill for 100 ms, so whoever comes now waits."""
    spec = house(settings(**(SLO_AWARE | changes)), engines=(engine("e1", blocks=1_000),))
    return spec.after(arrived("a", 1_000, out=1), *more)


def when_a_is_done(spec: Spec) -> Spec:
    return spec.when(at(100 * MS, first_token("a")))


def test_the_earliest_deadline_goes_first() -> None:
    spec = busy(arrived("b", 100, out=1, slack=900 * MS), arrived("c", 100, out=1, slack=300 * MS))
    when_a_is_done(spec).then(admitted("c"), said(WakeAsked))


def test_the_highest_priority_goes_first() -> None:
    spec = busy(
        arrived("b", 100, out=1, slack=300 * MS), arrived("c", 100, out=1, slack=900 * MS, priority=1),
        strategy="priority",
    )  # fmt: skip
    when_a_is_done(spec).then(admitted("c"), said(WakeAsked))


def test_a_strategy_that_is_set_while_they_wait_orders_them_anew() -> None:
    spec = busy(arrived("b", 100, out=1, slack=900 * MS), arrived("c", 100, out=1, slack=300 * MS), strategy="fifo")
    when_a_is_done(spec.after(settings(strategy="slo_aware"))).then(admitted("c"), said(WakeAsked))


def test_when_not_all_can_be_in_time_the_longest_is_set_aside_and_refused_at_its_latest_start() -> None:
    spec = busy(arrived("long", 1_500, out=1, slack=400 * MS))
    short = [arrived(f"s{n}", 800, out=1, slack=350 * MS) for n in range(2)]
    spec.after(*short)
    when_a_is_done(spec).then(admitted("s0"), said(WakeAsked))
    spec.when(at(180 * MS, first_token("s0"))).then(admitted("s1"), said(WakeAsked))
    spec.when(at(260 * MS, tick(3))).then(rejected("long", RejectReason.DEADLINE_PASSED))


def test_one_that_comes_and_would_make_two_shorter_ones_late_is_set_aside_at_once() -> None:
    spec = busy(arrived("s0", 800, out=1, slack=350 * MS), arrived("s1", 800, out=1, slack=350 * MS))
    when_a_is_done(spec).then(admitted("s0"), said(WakeAsked))
    spec.when(at(110 * MS, arrived("x", 1_500, out=1, now=110 * MS, slack=400 * MS)))
    assert spec.decisions, "a word comes at once"
    spec.when(at(180 * MS, first_token("s0"))).then(admitted("s1"), said(WakeAsked))


def test_long_prefills_keep_to_their_lane_until_one_is_nearly_over() -> None:
    lane = settings(**SLO_AWARE | {"long_prefill_ns": 100 * MS, "long_lane_ppm": 500_000})
    spec = house(lane, engines=BOTH)
    spec.when(arrived("a", 900, out=1)).then(admitted("a"))
    spec.after(finished("a"))
    spec = house(lane, engines=(engine("e1", blocks=1_000), engine("e2", blocks=1_000)))
    spec.when(arrived("a", 1_000, out=1)).then(admitted("a"))
    spec.when(arrived("b", 1_000, out=1)).then(deferred("b", DeferReason.SET_ASIDE), said(WakeAsked))
    spec.when(arrived("c", 100, out=1)).then(admitted("c", "e2"))
    spec.after(at(10 * MS, first_token("c", "e2")))
    spec.when(at(100 * MS, first_token("a"))).then(admitted("b"))


def test_the_lane_is_wide_while_nearly_all_are_served_and_narrow_under_pressure() -> None:
    lane = settings(**SLO_AWARE | {"long_prefill_ns": 100 * MS, "long_lane_ppm": 1, "long_lane_calm_ppm": PPM})
    pool = (engine("e1", blocks=1_000), engine("e2", blocks=1_000))
    calm = house(lane, engines=pool).after(arrived("a", 1_000, out=1))
    calm.when(arrived("b", 1_000, out=1)).then(admitted("b", "e2"))

    pressed = house(lane, engines=pool).after(arrived("x", 900, out=1, slack=20 * MS))
    pressed.when(arrived("a", 1_000, out=1)).then(admitted("a"))
    pressed.when(arrived("b", 1_000, out=1)).then(deferred("b", DeferReason.SET_ASIDE), said(WakeAsked))


@pytest.mark.parametrize("changes", [{"long_prefill_ns": 0}, {"strategy": "fifo"}], ids=["no lane", "fifo"])
def test_without_a_lane_nobody_waits_for_it(changes: dict[str, Any]) -> None:
    lane = settings(**SLO_AWARE | {"long_prefill_ns": 100 * MS, "long_lane_ppm": 500_000} | changes)
    spec = house(lane, engines=(engine("e1", blocks=1_000), engine("e2", blocks=1_000)))
    spec.after(arrived("a", 1_000, out=1)).when(arrived("b", 1_000, out=1)).then(admitted("b", "e2"))


def test_a_tenant_that_lags_behind_comes_first_and_is_not_passed() -> None:
    spec = house(settings(**SLO_AWARE, fairness_ppm=800_000), engines=(engine("e1", blocks=1_000),))
    for n in range(20):
        spec.after(arrived(f"x{n}", 10, out=1, tenant="x"), first_token(f"x{n}"), finished(f"x{n}"))
        spec.after(arrived(f"y{n}", 900, out=1, tenant="y", slack=20 * MS))
    spec.after(arrived("a", 1_000, out=1, tenant="x"))
    spec.after(arrived("b", 100, out=1, tenant="x", slack=300 * MS), arrived("c", 100, out=1, tenant="y", slack=S))
    spec.when(at(100 * MS, first_token("a"))).then(admitted("c"), said(WakeAsked))


def test_kinds_take_turns_by_urgency_under_hybrid() -> None:
    spec = house(
        settings(**SLO_AWARE | {"strategy": Strategy.HYBRID.value}),
        engines=(engine("e1", blocks=1_000, embedding=True),),
    )
    spec.after(
        arrived("a", 1_000, out=1), embedding("v", 100, slack=900 * MS), arrived("b", 100, out=1, slack=300 * MS)
    )
    spec.when(at(100 * MS, first_token("a"))).then(admitted("v"), said(WakeAsked))
