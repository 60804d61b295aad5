"""Admission: how long it takes from a decision to the engine is measured, and counted."""

from events.base import PPM, EngineId, RequestId
from events.decisions import DeferReason, RejectReason, WakeAsked
from events.request import DispatchStarted
from policies.accounts import CONTROL_MAX_NS
from tests.policies.house import admitted, deferred, house, rejected
from tests.policies.words import MS, S, arrived, finished, first_token, settings, tick
from tests.spec import START_NS, Spec, at, said

WAY_NS = 80 * MS
ROUNDS = 200
ROUND_NS = 2 * S
LATER_NS = ROUNDS * ROUND_NS


def dispatched(name: str) -> DispatchStarted:
    return DispatchStarted(request_id=RequestId(name), engine_id=EngineId("e1"))


def after_slow_ways(way_ns: int = WAY_NS) -> Spec:
    """Many requests, one after the other, that their holder sent `way_ns` after the decision."""
    spec = house(settings(backlog_max_ns=20 * MS))
    for n in range(ROUNDS):
        name, now = f"r{n}", n * ROUND_NS
        sent = now + way_ns
        spec.after(at(now, tick(n + 2)), at(now, arrived(name, 100, now=now, out=1)), at(sent, dispatched(name)))
        spec.after(at(sent + 10 * MS, first_token(name)), at(sent + 10 * MS, finished(name)))
    return spec.after(at(LATER_NS, tick(ROUNDS + 2)))


def control_ns(spec: Spec) -> int:
    way_ns: int = spec.state.accounts["e1"].control_ns
    return way_ns


def test_the_way_is_learned_and_the_engines_speed_is_not_blamed_for_it() -> None:
    spec = after_slow_ways()

    assert WAY_NS - 1_000 < control_ns(spec) <= WAY_NS
    assert spec.state.accounts["e1"].correction.ratio_ppm == PPM


def test_what_held_up_everything_for_long_is_not_taken_for_the_way() -> None:
    assert control_ns(after_slow_ways(CONTROL_MAX_NS + S // 2)) <= CONTROL_MAX_NS


def test_the_first_token_of_an_idle_engine_is_as_late_as_the_way_is_long() -> None:
    spec = after_slow_ways()
    predicted_ns = control_ns(spec) + 10 * MS
    spec.when(at(LATER_NS, arrived("late", 100, now=LATER_NS, slack=predicted_ns - 1))).then(
        rejected("late", RejectReason.SLO_INFEASIBLE)
    )
    spec.when(at(LATER_NS, arrived("idle", 100, now=LATER_NS, slack=predicted_ns))).then(
        admitted("idle", ttft_predicted_ns=predicted_ns)
    )


def test_an_engine_gets_so_much_ahead_that_it_does_not_wait_for_the_next() -> None:
    spec = house(settings(backlog_max_ns=20 * MS), arrived("a", 400, out=1))
    spec.when(arrived("b", 100)).then(deferred("b", DeferReason.PREFILL_BACKLOG), said(WakeAsked))

    spec = after_slow_ways()
    spec.after(at(LATER_NS, arrived("a", 400, now=LATER_NS, out=1)))
    spec.when(at(LATER_NS, arrived("b", 100, now=LATER_NS))).then(admitted("b", ttft_predicted_ns=50 * MS))


def test_who_waits_is_sent_so_early_that_the_way_is_left() -> None:
    spec = after_slow_ways()
    spec.after(at(LATER_NS, arrived("a", 900, now=LATER_NS, out=1, slack=2 * S)))
    spec.after(at(LATER_NS, arrived("b", 900, now=LATER_NS, slack=2 * S)))
    [one] = [line.entries["b"] for line in spec.state.lines.by_group.values()]

    assert one.until_ns == START_NS + LATER_NS + 2 * S - control_ns(spec) - 90 * MS


def test_the_turn_of_the_head_begins_when_it_is_sent() -> None:
    spec = house(settings(backlog_max_ns=0), arrived("a", 400, out=1), at(30 * MS, dispatched("a")))
    spec.when(at(30 * MS, arrived("b", 100, slack=49 * MS, now=30 * MS))).then(
        rejected("b", RejectReason.SLO_INFEASIBLE)
    )
    spec.when(at(30 * MS, arrived("c", 100, slack=50 * MS, now=30 * MS))).then(admitted("c"))
