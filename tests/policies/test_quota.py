"""Quota, rule by rule."""

from typing import Any

import pytest

from events.base import PPM, EngineId, Event, RequestKind, TenantId
from events.decisions import HolderLost, RejectReason, ShareReason, SharesSet, TenantQuotaSet
from events.engine import EngineRemoved, Health
from events.request import HolderId, RequestId
from policies.quota import QUOTA
from policies.quota_state import IDLE_PERIODS, OPEN_MAX, TENANTS_MAX
from tests.policies.quota_words import (
    WIDE,
    admitted,
    armed,
    asks,
    both,
    bounds,
    deferred,
    preempted,
    quota,
    rejected,
    second,
    shares,
    tenant,
)
from tests.policies.words import (
    S,
    aborted,
    arrived,
    engine,
    expired,
    finished,
    first_token,
    health,
    measured,
    settings,
    tick,
)
from tests.spec import Spec, at, given, said

LLM, EMBEDDING = RequestKind.LLM, RequestKind.EMBEDDING
LIFTED, ASKED = ShareReason.LIFTED, ShareReason.BOUNDS_ASKED


def set_to(percent: float, reason: ShareReason = ShareReason.LOAD_MOVED, on: str = "e1") -> Any:
    return said(**shares(percent, reason, on))


def share(spec: Spec, on: str = "e1") -> int:
    ppm: int = spec.progress.state.shares[EngineId(on)].embedding_ppm
    return ppm


def held(spec: Spec, kind: RequestKind, on: str = "e1") -> int:
    amount: int = spec.progress.state.engines[EngineId(on)].books.of(kind).held
    return amount


# Armed and un-armed -------------------------------------------------------------------------------------------------


def test_the_first_share_is_set_when_every_engine_was_measured() -> None:
    spec = given(QUOTA, WIDE, both(), both("e2"), *second(0)).after(*second(1))
    spec.then_nothing()
    spec.after(at(2 * S, measured("e1")), at(2 * S, measured("e2"))).when(at(2 * S, tick(2)))
    spec.then(*(set_to(5, ShareReason.ARMED, on) for on in ("e1", "e2", "")))


def test_after_a_start_nothing_moves_until_every_engine_was_measured_anew() -> None:
    spec = armed().after(asks("v", EMBEDDING), admitted("v", 40_000), at(S, quota()))
    spec.when(at(2 * S, tick(2))).then_nothing()
    spec.after(*second(3)).then(set_to(15), set_to(15, on=""))


def test_nothing_moves_while_an_engine_is_silent_and_all_goes_on_after_the_gap() -> None:
    spec = armed(quota(step_max_ppm=50_000)).after(asks("v", EMBEDDING), admitted("v", 40_000))
    moves = []
    for n in range(2, 10):
        spec.after(at(n * S, tick(n)))
        moves.append(bool(spec.decisions))
    assert moves == [True] * 5 + [False] * 3
    spec.after(*second(10)).after(finished("v", out=0))
    for n in range(11, 30):
        spec.after(*second(n))
    assert share(spec) == 50_000


def test_an_engine_that_takes_no_work_is_not_waited_for() -> None:
    spec = given(QUOTA, WIDE, both(), both("e2"), *second(0), at(0, health("e2", Health.LOST)))
    spec.after(*second(1))
    assert [one.engine_id for one in spec.decisions] == ["e1", "e2", ""]


def test_an_engine_that_serves_one_kind_is_not_divided() -> None:
    spec = given(QUOTA, WIDE, engine("llm"), engine("vec", llm=False, embedding=True), both("e1"), *second(0))
    spec.after(*second(1, fresh=("llm", "vec", "e1")))
    spec.then(set_to(5, ShareReason.ARMED), said(SharesSet, engine_id="", embedding_ppm=(PPM + 50_000) // 3))


def test_without_engines_nothing_is_said() -> None:
    given(QUOTA, tick(0)).when(at(S, tick(1))).then_nothing()


def test_an_engine_that_is_described_anew_for_one_kind_is_not_divided_any_more() -> None:
    spec = armed()
    spec.when(engine("e1")).then(set_to(5, LIFTED))
    spec.when(at(2 * S, tick(2))).then_nothing()


def test_a_removed_engine_is_forgotten_and_what_it_held_with_it() -> None:
    spec = armed(asks("a"), admitted("a", 100)).after(EngineRemoved(engine_id=EngineId("e1")), finished("a"))
    assert list(spec.progress.state.shares) == [""]
    assert not spec.progress.state.open


def test_what_ran_on_an_engine_before_it_left_owes_it_nothing_when_it_is_back() -> None:
    spec = armed(asks("a"), admitted("a", 100), EngineRemoved(engine_id=EngineId("e1")), both(), finished("a"))
    assert spec.progress.state.engines[EngineId("e1")].books.llm.held == 0


# The division -------------------------------------------------------------------------------------------------------


def test_with_no_embedding_load_the_share_rests_at_its_least() -> None:
    spec = armed(asks("a"), admitted("a", 90_000))
    spec.when(at(2 * S, tick(2))).then_nothing()
    assert share(spec) == 50_000


def test_the_share_goes_by_steps_to_what_embedding_jobs_want_beside_the_others() -> None:
    spec = armed(asks("a"), admitted("a", 60_000), asks("v", EMBEDDING), admitted("v", 40_000))
    assert share(spec) == 400_000  # The first one is set at once: no cap held before.
    spec.after(finished("v", out=0))
    for n in range(2, 30):
        before = share(spec)
        spec.after(*second(n))
        assert 0 <= before - share(spec) <= 100_000
    assert share(spec) == 50_000


def test_a_step_up_is_bounded_and_lands_within_the_deadband() -> None:
    spec = armed(quota(deadband_ppm=0)).after(
        *second(2), asks("a"), admitted("a", 60_000), asks("v", EMBEDDING), admitted("v", 40_000)
    )
    seen = []
    for n in range(3, 20):
        spec.after(*second(n))
        seen.append(share(spec))
    assert seen[:3] == [150_000, 250_000, 350_000]
    assert 400_000 <= seen[-1] <= 500_000


def test_less_than_the_deadband_moves_nothing() -> None:
    spec = armed(quota(deadband_ppm=200_000, embedding_min_ppm=100_000)).after(*second(2))
    spec.after(asks("a"), admitted("a", 90_000), asks("v", EMBEDDING), admitted("v", 20_000))
    spec.after(at(3 * S, measured())).when(at(3 * S, tick(3))).then_nothing()


def test_what_came_and_went_within_a_period_counts_with_its_peak() -> None:
    spec = armed().after(asks("v", EMBEDDING), admitted("v", 40_000), finished("v", out=0))
    spec.after(at(2 * S, measured())).when(at(2 * S, tick(2))).then(set_to(15), set_to(15, on=""))


def test_what_waits_in_the_pool_presses_on_the_engines_that_could_take_it() -> None:
    spec = armed().after(asks("v", EMBEDDING, prompt=400), deferred("v"))
    spec.after(at(2 * S, measured())).when(at(2 * S, tick(2))).then(set_to(15), set_to(15, on=""))
    assert spec.progress.state.engines["e1"].wants.embedding_urgency == 400_000


def test_of_an_embedding_job_that_waits_only_what_it_holds_at_once_counts() -> None:
    """Inputs pass one after another: a step of 100 tokens, and one input of 25 that began before it."""
    many = arrived("v", 400, kind=EMBEDDING, inputs=16)
    spec = armed().after(many, deferred("v"))
    assert spec.progress.state.waiting.embedding.held == 125
    spec.after(admitted("v", 12_500))
    assert spec.progress.state.waiting.embedding.held == 0


def test_late_answers_make_a_kind_more_urgent() -> None:
    def urgency(*events: Event) -> tuple[int, int]:
        spec = armed().after(asks("a"), admitted("a", 10_000), *events, *second(2))
        wants = spec.progress.state.engines["e1"].wants
        return wants.llm_urgency, wants.embedding_urgency

    in_time, _ = urgency(first_token("a"))
    assert in_time == 100_000
    missed, none = urgency(expired("a"))
    assert (missed, none) == (100_000 + 125_000, 0)
    refused, _ = urgency(rejected("a"))
    assert refused == missed
    assert urgency(rejected("a", RejectReason.TOO_LONG))[0] == in_time
    assert urgency(aborted("a"))[0] == in_time


def test_lateness_is_a_part_of_the_time_that_was_wanted() -> None:
    late = asks("a")
    spec = armed().after(late, admitted("a", 10_000))
    seen = first_token("a").__class__(request_id=RequestId("a"), engine_id=EngineId("e1"), ttft_ns=3 * S // 2)
    spec.after(seen, seen, *second(2))
    assert spec.progress.state.engines["e1"].wants.llm_urgency == 100_000 + 500_000 // 8


def test_after_some_periods_without_embedding_jobs_nothing_is_forecast() -> None:
    spec = armed().after(asks("v", EMBEDDING), admitted("v", 80_000), finished("v", out=0), *second(2))
    assert spec.progress.state.engines["e1"].wants.floor_ppm > 0
    spec.after(*(one for n in range(3, 3 + IDLE_PERIODS) for one in second(n)))
    assert spec.progress.state.engines["e1"].wants.floor_ppm == 0


def test_the_share_does_not_fall_below_what_is_forecast() -> None:
    spec = armed(quota(embedding_weight_ppm=1)).after(asks("a"), admitted("a", 100_000))
    for n in range(2, 12):
        spec.after(asks(f"v{n}", EMBEDDING), admitted(f"v{n}", 30_000), finished(f"v{n}", out=0), *second(n))
    assert share(spec) >= 300_000


def test_periods_longer_than_a_second_are_kept() -> None:
    spec = armed().after(quota(period_ns=3 * S), asks("v", EMBEDDING), admitted("v", 90_000))
    moves = []
    for n in range(2, 11):
        spec.after(*second(n))
        moves.append(bool(spec.decisions))
    assert moves == [False, False, True, False, False, True, False, False, True]


# The books ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        finished("a"), aborted("a"), expired("a"), rejected("a"),
        HolderLost(holder=HolderId("h"), requests=(RequestId("a"),)),
    ],
    ids=lambda event: event.event_kind(),
)  # fmt: skip
@pytest.mark.parametrize("before", [[], [deferred("a")], [admitted("a", 500)], [admitted("a", 500), preempted("a")]])
def test_whatever_ends_a_request_frees_what_it_held_and_waited_for(before: list[Event], end: Event) -> None:
    spec = armed(asks("a"), *before, end)
    state = spec.progress.state
    assert (held(spec, LLM), state.waiting.llm.held, state.open) == (0, 0, {})


def test_a_preempted_request_waits_again() -> None:
    spec = armed(asks("a"), admitted("a", 500), preempted("a"))
    assert (held(spec, LLM), spec.progress.state.waiting.llm.held) == (0, 100)
    spec.after(admitted("a", 600))
    assert (held(spec, LLM), spec.progress.state.waiting.llm.held) == (600, 0)


def test_of_too_many_requests_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.quota_state.OPEN_MAX", 2)
    spec = given(QUOTA, WIDE, both(), asks("a"), admitted("a", 500), asks("b"), asks("c"))
    assert list(spec.progress.state.open) == ["b", "c"]
    assert held(spec, LLM) == 0
    assert OPEN_MAX == 65_536


def test_what_is_said_of_unknown_requests_and_engines_changes_nothing() -> None:
    spec = armed().after(finished("x"), admitted("x", 5), deferred("x"), preempted("x"), measured("x"))
    spec.after(asks("a"), admitted("a", 5, on="x"), health("x", Health.LOST), finished("a", "x"))
    assert held(spec, LLM) == 0
    assert not spec.progress.state.open


# Orders of operators ------------------------------------------------------------------------------------------------


def test_bounds_hold_at_once() -> None:
    spec = armed()
    spec.when(bounds(30, 40)).then(set_to(30, ASKED), set_to(30, ASKED, on=""))
    spec.when(bounds(10, 10, on="e1")).then(set_to(10, ASKED), set_to(10, ASKED, on=""))
    spec.when(bounds(5, 50)).then_nothing()  # Its own bounds go before the pool's.
    assert share(spec) == 100_000


def test_equal_bounds_fix_the_share_whatever_the_load() -> None:
    spec = armed(bounds(20, 20), asks("v", EMBEDDING), admitted("v", 90_000))
    for n in range(2, 6):
        spec.after(*second(n)).then_nothing()
    assert share(spec) == 200_000


@pytest.mark.parametrize("wrong", [bounds(40, 30), bounds(-1, 30), bounds(10, 101)])
def test_bounds_that_are_none_change_nothing(wrong: Event) -> None:
    armed().when(wrong).then_nothing()


def test_bounds_before_the_first_share_are_kept_for_it() -> None:
    spec = given(QUOTA, WIDE, both(), *second(0)).after(bounds(30, 40))
    spec.then_nothing()
    spec.after(*second(1)).then(set_to(30, ShareReason.ARMED), set_to(30, ShareReason.ARMED, on=""))


def test_a_tenant_s_quota_is_what_the_operator_asks_for() -> None:
    spec = given(QUOTA)
    spec.when(tenant("t", 4_096)).then(TenantQuotaSet(tenant=TenantId("t"), kv_bytes_max=4_096))
    spec.when(tenant("t", 0)).then(TenantQuotaSet(tenant=TenantId("t"), kv_bytes_max=0))
    assert spec.progress.state.tenants == {}
    spec.when(tenant("t", -1)).then_nothing()


def test_more_tenants_than_can_be_kept_have_no_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.quota.TENANTS_MAX", 1)
    spec = given(QUOTA, tenant("a", 1))
    spec.when(tenant("b", 1)).then_nothing()
    spec.when(tenant("a", 2)).then(TenantQuotaSet(tenant=TenantId("a"), kv_bytes_max=2))
    assert TENANTS_MAX == 4_096


def test_switched_off_it_lifts_its_caps_once_and_says_nothing_more_but_tenants_quotas_hold() -> None:
    spec = armed().after(quota(enabled="off"))
    spec.when(at(2 * S, tick(2))).then(set_to(5, LIFTED), set_to(5, LIFTED, on=""))
    spec.when(at(3 * S, tick(3))).then_nothing()
    spec.when(bounds(30, 40)).then_nothing()
    spec.when(tenant("t", 7)).then(TenantQuotaSet(tenant=TenantId("t"), kv_bytes_max=7))
    spec.after(at(3 * S, quota(enabled="on")), *second(4)).then(
        set_to(30, ShareReason.ARMED), set_to(30, ShareReason.ARMED, on="")
    )


def test_settings_of_others_are_not_its_own_and_bad_ones_are_refused_whole() -> None:
    spec = armed(settings(queue_max=1))
    with pytest.raises(ValueError, match=r"quota.step_max_ppm = 5 \(allowed: a whole number from 1000 to 1000000\)"):
        QUOTA.configure(spec.progress.state, {"deadband_ppm": 7, "step_max_ppm": 5})
    assert spec.progress.state.settings.deadband_ppm == 20_000


def test_a_max_below_the_min_counts_as_the_min() -> None:
    spec = armed(quota(embedding_min_ppm=300_000, embedding_max_ppm=100_000)).after(*second(2))
    assert share(spec) == 300_000


# Explained ----------------------------------------------------------------------------------------------------------


def test_explain_says_how_a_share_is_enforced_and_what_is_wanted() -> None:
    told = armed(tenant("t", 9)).after(engine("llm"), measured("llm")).explained(tick(2))
    assert told["armed"]
    assert told["tenants"] == [{"tenant": "t", "kv_bytes_max": 9}]
    divided, undivided = told["engines"]
    assert "preallocates" in divided["enforced"]
    assert divided["embedding_bytes_max"] + divided["llm_bytes_max"] == divided["kv_bytes"]
    assert not undivided["divided"]


def test_explain_names_what_it_waits_for_before_it_is_armed() -> None:
    told = given(QUOTA, WIDE, both()).explained(tick(0))
    assert not told["armed"]
    assert told["stale"] == ["e1"]
    assert "no cap holds" in told["engines"][0]["enforced"]
