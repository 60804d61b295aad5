"""What cannot be in time any more is served late rather than refused, while the pool is calm and nobody waits who can
be in time."""

from typing import Any

from msgspec.structs import replace

from events.base import ModelId
from events.decisions import DeferReason, RejectReason, WakeAsked
from events.request import RequestArrived
from tests.policies.house import admitted, deferred, house, rejected
from tests.policies.words import MS, S, arrived, engine, finished, first_token, quota, settings, slices, tick
from tests.spec import START_NS, Spec, at, said

PATIENT: dict[str, Any] = {"strategy": "slo_aware", "backlog_max_ns": 10 * MS, "late_max_ns": 2 * S}


def busy(**changes: Any) -> Spec:
    """`a` is in prefill for 100 ms."""
    return house(settings(**PATIENT | changes), engines=(engine("e1", blocks=1_000),)).after(arrived("a", 1_000, out=1))


def late(name: str = "late", **more: Any) -> RequestArrived:
    """50 ms of prefill that had to begin 10 ms from now, behind 100 ms of others."""
    return arrived(name, 500, out=1, slack=60 * MS, **more)


def test_what_comes_too_late_waits_and_goes_when_an_engine_is_free() -> None:
    spec = busy()
    spec.when(late()).then(deferred("late", DeferReason.LATE, until_ns=START_NS + 2 * S))
    spec.when(at(100 * MS, first_token("a"))).then(admitted("late", slo_slack_ns=-100 * MS))


def test_whoever_can_be_in_time_goes_first_though_it_came_later() -> None:
    spec = busy().after(late(), arrived("b", 500, out=1, slack=S))
    spec.when(at(100 * MS, first_token("a"))).then(admitted("b"), said(WakeAsked))
    spec.when(at(150 * MS, first_token("b"))).then(admitted("late"))


def test_those_that_wait_for_engines_it_cannot_go_to_are_not_asked() -> None:
    other = replace(engine("e2", blocks=1_000), models=(ModelId("n"),))
    spec = house(settings(**PATIENT), engines=(engine("e1", blocks=1_000), other))
    spec.after(arrived("a", 1_000, out=1), arrived("n1", 2_000, out=1, model="n"))
    spec.after(late(), arrived("n2", 500, out=1, slack=S, model="n"))
    spec.when(at(100 * MS, first_token("a"))).then(admitted("late"))


def test_one_whose_latest_start_passes_while_it_waits_is_served_late_too() -> None:
    spec = busy().after(arrived("long", 1_500, out=1, slack=260 * MS), arrived("b", 800, out=1, slack=250 * MS))
    spec.when(at(100 * MS, first_token("a"))).then(admitted("b"), said(WakeAsked))
    spec.when(at(115 * MS, tick(2))).then(deferred("long", DeferReason.LATE, until_ns=START_NS + 115 * MS + 2 * S))
    spec.when(at(180 * MS, first_token("b"))).then(admitted("long"))


def test_what_passed_it_while_it_could_be_in_time_takes_no_passes_from_those_that_are_late() -> None:
    in_turn = settings(**PATIENT | {"strategy": "fifo", "passes_max": 2})
    spec = house(in_turn, decoding=arrived("a", 500, out=100))  # It has 600 of 1,000.
    spec.after(arrived("big", 490, out=10, slack=100 * MS))
    for n in range(2):
        spec.when(at(n * 10 * MS, arrived(f"s{n}", 10, out=1, now=n * 10 * MS))).then(admitted(f"s{n}"))
        spec.after(at((n + 1) * 10 * MS, first_token(f"s{n}")))
    spec.when(at(70 * MS, tick(2))).then(deferred("big", DeferReason.LATE))
    spec.after(arrived("p", 390, out=1, now=70 * MS))
    spec.when(arrived("small", 100, out=1, now=70 * MS, slack=45 * MS)).then(deferred("small", DeferReason.LATE))
    spec.after(at(109 * MS, first_token("p")))
    spec.when(at(110 * MS, finished("p", out=1))).then(admitted("small"), said(WakeAsked))


def test_it_goes_with_the_last_that_can_be_in_time() -> None:
    spec = busy().after(late(), arrived("b", 50, out=1, slack=9 * S))
    spec.when(at(100 * MS, first_token("a"))).then(admitted("b"), admitted("late"))


def test_it_waits_for_the_turn_of_the_engine_where_it_costs_least() -> None:
    spec = house(settings(**PATIENT), engines=(engine("e1", blocks=1_000), engine("e2", blocks=1_000)))
    chain = slices(*(f"x{n}" for n in range(40)))
    spec.after(arrived("warm", 400, out=1, slices=chain), at(40 * MS, first_token("warm")), finished("warm"))
    spec.after(arrived("a", 1_000, out=1, slices=chain), arrived("c", 300, out=1))
    assert list(spec.state.running.items()) == [("a", "e1"), ("c", "e2")]
    spec.when(late(now=40 * MS, slices=chain)).then(deferred("late", DeferReason.LATE))
    spec.when(at(70 * MS, first_token("c", "e2"))).then_nothing()
    spec.when(at(100 * MS, first_token("a"))).then(admitted("late"))


def test_nobody_gives_way_to_what_is_late() -> None:
    asks = settings(**PATIENT | {"preemption": "priority", "tpot_margin_ppm": 0, "late_max_ns": 500 * MS})
    pool = (engine("e1", can_preempt=True), engine("e2", blocks=1_000))
    spec = house(asks, engines=pool, decoding=arrived("a", 500, out=100))
    spec.after(arrived("c", 1_500, out=1, priority=1), arrived("p", 390, out=1, priority=1))
    assert list(spec.state.running.items()) == [("a", "e1"), ("c", "e2"), ("p", "e1")]
    spec.after(arrived("late", 510, out=10, slack=80 * MS, priority=1))
    assert spec.state.lines.by_group["llm:m\n\nlate"].head().request.request_id == "late"
    spec.when(at(10 * MS, finished("p", out=1))).then_nothing()


def test_of_what_is_late_nobody_is_set_aside() -> None:
    spec = busy(late_max_ns=110 * MS).after(arrived("long", 1_000, out=1, slack=190 * MS))
    spec.after(at(60 * MS, tick(2)), arrived("short", 500, out=1, slack=80 * MS, now=60 * MS))
    spec.when(at(100 * MS, first_token("a"))).then(admitted("long"), said(WakeAsked))


def test_it_is_refused_when_it_has_waited_for_as_long_as_it_may() -> None:
    spec = busy(late_max_ns=80 * MS).after(late())
    spec.when(at(90 * MS, tick(2))).then(rejected("late", RejectReason.DEADLINE_PASSED))


def test_under_pressure_it_is_refused_at_once() -> None:
    spec = busy().after(late("first"))
    spec.after(at(100 * MS, first_token("a")))  # What goes late counts as not served.
    spec.when(late("second", now=100 * MS)).then(rejected("second", RejectReason.SLO_INFEASIBLE))


def test_it_may_wait_the_less_the_more_was_refused_of_late() -> None:
    spec = house(settings(**PATIENT), engines=(engine("e1", blocks=1_000),))
    spec.after(arrived("no", 900, out=1, slack=20 * MS, tpot=1))
    for n in range(198):
        spec.after(arrived(f"x{n}", 10, out=1), first_token(f"x{n}"), finished(f"x{n}"))
    spec.after(arrived("a", 1_000, out=1))
    # 199 of 200 served: half of the way from 99 % to all.
    assert spec.explained(late())["late_max_ns"] == S
    spec.when(late()).then(deferred("late", DeferReason.LATE, until_ns=START_NS + S))


def test_what_no_idle_engine_could_do_in_time_is_refused() -> None:
    busy().when(arrived("x", 1_000, out=1, slack=50 * MS)).then(rejected("x", RejectReason.SLO_INFEASIBLE))
    busy().when(arrived("x", 100, out=9, slack=S, tpot=MS)).then(rejected("x", RejectReason.SLO_INFEASIBLE))


def test_without_it_or_without_waiting_what_is_late_is_refused() -> None:
    busy(late_max_ns=0).when(late()).then(rejected("late", RejectReason.SLO_INFEASIBLE))
    busy(deferral="off").when(late()).then(rejected("late", RejectReason.SLO_INFEASIBLE))


def test_a_burst_of_what_is_late_leaves_half_of_the_queue_to_those_in_time() -> None:
    spec = busy(queue_max=4).after(late("one"), late("two"))
    spec.when(late("three")).then(rejected("three", RejectReason.SLO_INFEASIBLE))
    spec.when(arrived("b", 500, out=1, slack=S)).then(deferred("b", DeferReason.PREFILL_BACKLOG), said(WakeAsked))


def test_what_waits_for_its_own_tenant_is_not_put_among_those_that_wait_for_an_engine() -> None:
    spec = busy().after(quota("t", 110_000))  # It holds 101,000.
    spec.when(arrived("b", 500, out=1, slack=500 * MS)).then(deferred("b", DeferReason.TENANT_QUOTA), said(WakeAsked))
    spec.when(at(S, tick(2))).then(rejected("b", RejectReason.DEADLINE_PASSED))


def test_one_whose_own_tenant_has_to_end_first_holds_up_nobody_who_is_late() -> None:
    spec = busy(passes_max=1, backlog_max_ns=100 * MS).after(first_token("a"), quota("t", 120_000))
    spec.after(arrived("p", 1_500, out=1, tenant="p"), late("q"), late("u0", tenant="u"), late("u1", tenant="u"))
    spec.when(at(150 * MS, first_token("p"))).then(admitted("u0"), admitted("u1"), said(WakeAsked))
    spec.when(at(250 * MS, finished("a"))).then(admitted("q"))


def test_a_long_one_keeps_to_the_long_lane() -> None:
    lane = {"long_prefill_ns": 100 * MS, "long_lane_ppm": 1, "long_lane_calm_ppm": 1}
    spec = house(settings(**PATIENT | lane), engines=(engine("e1", blocks=1_000), engine("e2", blocks=1_000)))
    spec.after(arrived("a", 1_500, out=1), arrived("b", 1_000, out=1, slack=110 * MS))
    spec.when(at(20 * MS, tick(2))).then(deferred("b", DeferReason.LATE))
    spec.when(at(30 * MS, tick(3))).then(said(WakeAsked))
    spec.when(at(110 * MS, tick(4))).then(admitted("b", "e2"))
