"""Admission: what it tells of its decisions."""

from typing import Any

from events.base import Event
from events.engine import Health
from tests.policies.house import BOTH, full, house
from tests.policies.words import (
    MS,
    S,
    arrived,
    engine,
    health,
    settings,
    tick,
)
from tests.spec import START_NS, Spec


def test_explain_tells_what_was_predicted_for_every_engine_and_the_rule() -> None:
    spec = house(health("e2", Health.LOST), engines=BOTH, decoding=arrived("a", 500, out=400))
    (one,) = spec.explained(arrived("b", 500, out=100))["requests"]
    assert one["rule"] == {"would": "defer", "reason": "kv_budget", "until_ns": START_NS + 950 * MS}
    first, second = one["engines"]
    assert (first["peak_blocks"], first["budget_blocks"], first["ttft_ns"], first["rank"]) == (123, 100, 60 * MS, 0)
    assert (first["blocked"], second["candidate"], second["health"]) == ("kv_budget", False, "lost")


def test_explain_of_a_tick_tells_of_the_heads_of_the_lines() -> None:
    values = full().explained(tick(5))
    assert [one["request_id"] for one in values["requests"]] == ["b"]
    assert (values["deferred"], values["long_lane_ppm"]) == (1, 500_000)


def busy(**changes: Any) -> Spec:
    """`a` is in prefill for 100 ms, and what is late may wait 80 ms."""
    late = {"backlog_max_ns": 10 * MS, "late_max_ns": 80 * MS}
    spec = house(settings(**late | changes), engines=(engine("e1", blocks=1_000),))
    return spec.after(arrived("a", 1_000, out=1))


def rule_of(spec: Spec, event: Event, *, after_ns: int = 0) -> dict[str, Any]:
    spec.ns += after_ns
    (one,) = spec.explained(event)["requests"]
    rule: dict[str, Any] = one["rule"]
    return rule


def test_the_rule_of_what_is_late_is_that_of_its_decision() -> None:
    late, long = arrived("late", 500, out=1, slack=60 * MS), arrived("long", 1_000, out=1, slack=210 * MS)
    assert rule_of(busy(), late) == {"would": "defer", "reason": "late", "until_ns": START_NS + 80 * MS}
    no = {"would": "reject", "reason": "rejected_slo_infeasible", "retry_after_ns": S}
    assert rule_of(busy(late_max_ns=0), late) == no
    passed = {"would": "defer", "reason": "late", "until_ns": START_NS + 191 * MS}
    assert rule_of(busy().after(long), tick(2), after_ns=111 * MS) == passed
    waits = {"would": "defer", "reason": "late", "until_ns": START_NS + 80 * MS}
    assert rule_of(busy().after(late), tick(2), after_ns=79 * MS) == waits
    no = {"would": "reject", "reason": "rejected_deadline_passed", "retry_after_ns": S}
    assert rule_of(busy().after(late), tick(2), after_ns=80 * MS) == no


def test_in_mode_observe_nobody_is_late() -> None:
    late = arrived("late", 500, out=1, slack=60 * MS)
    assert rule_of(busy(mode="observe"), late)["reason"] == "rejected_slo_infeasible"
