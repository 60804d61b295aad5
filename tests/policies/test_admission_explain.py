"""Admission: what it tells of its decisions."""

from events.engine import Health
from tests.policies.house import BOTH, full, house
from tests.policies.words import (
    MS,
    arrived,
    health,
    tick,
)
from tests.spec import START_NS


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
