"""Preemption: who makes room for whom, when it pays, and how those who made room go on."""

from typing import Any

import pytest

from events.base import EngineId, HolderId, RequestId
from events.control import PolicyConfigured
from events.decisions import (
    DeferReason,
    PreemptReason,
    RejectReason,
    RequestPreempted,
    WakeAsked,
)
from events.engine import EngineRemoved, Health
from events.request import AbortReason, HolderStopped, RequestArrived
from tests.policies.house import admitted, deferred, house, rejected
from tests.policies.words import (
    MS,
    S,
    aborted,
    arrived,
    beat,
    embedding,
    engine,
    finished,
    first_token,
    health,
    settings,
    shares,
    tick,
)
from tests.spec import START_NS, Said, Spec, at, said

ON = settings(preemption="priority", tpot_margin_ppm=0)
SLACK = settings(preemption="slack", tpot_margin_ppm=0)
CAN = (engine("e1", can_preempt=True),)
CANNOT = (engine("e1"),)
LOW = arrived("low", 500, out=400)


def preempted(name: str, for_request: str, engine_id: str = "e1", **more: Any) -> Said:
    return said(RequestPreempted, request_id=name, for_request=for_request, engine_id=engine_id, **more)


def urgent(name: str = "high", prompt: int = 400, **more: Any) -> RequestArrived:
    """A request of priority 1 that wants its first token within a second."""
    return arrived(name, prompt, **({"priority": 1, "out": 100} | more))


def busy(*more: Any, on: PolicyConfigured = ON, engines: Any = CAN, low: RequestArrived = LOW) -> Spec:
    """`low` has its first token and holds 900 of 1,000 tokens for the next four seconds."""
    return house(on, *more, engines=engines, decoding=low)


# --------------------------------------------------------------------------------------------- who, and when it pays


def test_a_more_important_request_takes_the_place_of_a_less_important_one() -> None:
    busy().when(urgent()).then(
        RequestPreempted(
            request_id=RequestId("low"), engine_id=EngineId("e1"), for_request=RequestId("high"),
            reason=PreemptReason.MORE_URGENT, output_tokens=1, kv_bytes_freed=51_000,
        ),
        admitted("high", ttft_predicted_ns=40 * MS),
    )  # fmt: skip


KEEPS_ITS_PLACE: dict[str, tuple[tuple[Any, ...], dict[str, Any], RequestArrived, RequestArrived]] = {
    # what is said before, the house, who runs, who wants its place
    "off": ((settings(preemption="off"),), {}, LOW, urgent()),
    "observing is not deciding": ((settings(mode="observe"),), {"observed": True}, LOW, urgent()),
    "same priority": ((), {}, LOW, urgent(priority=0)),
    "more important": ((), {}, arrived("low", 500, out=400, priority=2), urgent()),
    "it would fit in time anyway": ((), {}, LOW, urgent(slack=10 * S)),
    "its answer is nearly complete": ((beat(low=390),), {}, LOW, urgent(slack=100 * MS)),
    "every answer that has begun is protected": ((settings(protect_ppm=0),), {}, LOW, urgent()),
    "it was preempted too often": ((settings(preemptions_max=0),), {}, LOW, urgent()),
    "the engine cannot": ((), {"engines": CANNOT}, LOW, urgent()),
    "it has no answer to go on with": (
        (),
        {"engines": (engine("e1", can_preempt=True, embedding=True, batch_tokens_max=900),)},
        embedding("low", 900, stream=True),
        urgent(slack=15 * MS),
    ),
    "it would not be in time in its place either": ((), {}, LOW, urgent(slack=39 * MS)),
}


@pytest.mark.parametrize(("before", "house_", "low", "newcomer"), KEEPS_ITS_PLACE.values(), ids=KEEPS_ITS_PLACE)
def test_who_runs_keeps_its_place_where(
    before: tuple[Any, ...], house_: dict[str, Any], low: RequestArrived, newcomer: RequestArrived
) -> None:
    spec = busy(*before, engines=house_.get("engines", CAN), low=low)
    spec.when(newcomer)
    assert not [event for event in spec.decisions if isinstance(event, RequestPreempted)], spec.decisions
    assert "low" in spec.state.running


def test_without_a_first_token_it_makes_room_on_any_engine_that_can_abort() -> None:
    before: tuple[Any, ...] = (ON, settings(backlog_max_ns=0), LOW)
    house(*before, engines=CANNOT).when(urgent()).then(preempted("low", "high", output_tokens=0), admitted("high"))
    stubborn = (engine("e1", can_abort=False),)
    house(*before, engines=stubborn).when(urgent()).then(deferred("high", DeferReason.KV_BUDGET), said(WakeAsked))


def test_a_sequence_is_worth_as_much_as_memory() -> None:
    one_seat = (engine("e1", can_preempt=True, seqs_max=1),)
    busy(engines=one_seat, low=arrived("low", 10, out=400)).when(urgent()).then(
        preempted("low", "high"), admitted("high")
    )


def test_prefill_in_line_makes_room_for_what_would_be_late_behind_it() -> None:
    spec = house(ON, settings(backlog_max_ns=0), arrived("low", 900, out=1, slack=5 * S))
    spec.when(urgent(prompt=50, out=1, slack=60 * MS)).then(preempted("low", "high"), admitted("high"))


def test_no_more_are_taken_than_one_decision_may() -> None:
    low = [arrived(f"low{n}", 200, out=100) for n in range(3)]
    crowd = (settings(backlog_max_ns=0), *low)
    spec = house(ON, *crowd)
    spec.when(urgent(prompt=700, slack=300 * MS)).then(
        *(preempted(f"low{n}", "high") for n in range(3)), admitted("high")
    )
    house(ON, settings(preempt_victims_max=2), *crowd).when(urgent(prompt=700, slack=300 * MS)).then(
        deferred("high", DeferReason.KV_BUDGET), said(WakeAsked)
    )


def test_nobody_is_preempted_in_vain() -> None:
    """The one of its own priority stays, and without that nothing fits."""
    spec = house(ON, settings(backlog_max_ns=0), arrived("peer", 600, out=300, priority=1), arrived("low", 50, out=10))
    spec.when(urgent(prompt=500)).then(deferred("high", DeferReason.KV_BUDGET), said(WakeAsked))


def test_the_same_priority_makes_room_only_while_it_can_still_wait() -> None:
    """With `slack`, who waits in the engine for its first token and has time goes behind who has none."""
    patient, pressed = arrived("patient", 900, out=1, slack=5 * S), arrived("pressed", 50, out=1, slack=60 * MS)
    line = settings(backlog_max_ns=0)
    house(SLACK, line, patient).when(pressed).then(preempted("patient", "pressed"), admitted("pressed"))
    house(ON, line, patient).when(pressed).then(rejected("pressed", RejectReason.SLO_INFEASIBLE))
    hurried = arrived("hurried", 900, out=1, slack=95 * MS)
    house(SLACK, line, hurried).when(pressed).then(rejected("pressed", RejectReason.SLO_INFEASIBLE))
    running = busy(on=SLACK)
    running.when(urgent(priority=0)).then(deferred("high", DeferReason.KV_BUDGET), said(WakeAsked))


def test_one_that_waits_may_take_a_place_when_its_time_runs_out() -> None:
    spec = busy(settings(preemption="off"), urgent(slack=1_900 * MS))
    assert "high" in spec.state.lines.group_of
    spec.after(ON)
    spec.when(at(1 * S, tick(2))).then(preempted("low", "high"), admitted("high"))


def test_memory_of_another_kind_is_of_no_use_where_shares_are_set() -> None:
    both, peer = (engine("e1", embedding=True),), arrived("peer", 50, out=10, priority=1)
    spec = house(ON, settings(backlog_max_ns=0), shares(500_000), embedding("vector", 400), peer, engines=both)
    spec.when(urgent(prompt=480)).then(deferred("high", DeferReason.SHARE), said(WakeAsked))
    spec = house(ON, settings(backlog_max_ns=0), embedding("vector", 2_000, inputs=5), engines=both)
    spec.when(urgent(prompt=490, out=400, slack=150 * MS)).then(preempted("vector", "high"), admitted("high"))


# ------------------------------------------------------------------------------------------------ without a first token


def without_token(*more: Any, engines: Any = CANNOT) -> Spec:
    """`low` was taken off e1 before its first token, for `high`."""
    low = arrived("low", 500, out=400, slack=5 * S)
    return house(ON, settings(backlog_max_ns=0), *more, low, urgent(), engines=engines)


def test_it_waits_again_and_goes_when_there_is_room() -> None:
    spec = without_token()
    assert spec.state.lines.group_of == {"low": "llm:m"}
    spec.when(finished("high")).then(admitted("low", resumed=False))


def test_it_may_go_on_anywhere() -> None:
    spec = without_token()
    spec.when(engine("e2")).then(admitted("low", "e2"))


def test_when_its_time_is_up_it_was_evicted() -> None:
    spec = without_token().after(*(at(n * S, event) for n in range(1, 5) for event in (beat(), tick(n))))
    spec.when(at(4_960 * MS, tick(5))).then(rejected("low", RejectReason.EVICTED_DEADLINE_PASSED, retry_after_ns=S))


def test_an_order_that_came_too_late_is_taken_back() -> None:
    """The first token was on its way from an engine that cannot preempt."""
    spec = without_token()
    spec.when(first_token("low")).then_nothing()
    assert (list(spec.state.running), spec.state.lines.group_of) == (["high", "low"], {})
    assert spec.state.accounts["e1"].residents["low"].output_tokens == 1
    spec.after(beat(low=9), finished("low"), finished("high"))
    assert_nothing_is_held(spec)


def test_it_is_taken_back_even_if_it_was_sent_elsewhere_meanwhile() -> None:
    spec = without_token().after(engine("e2"))
    assert spec.state.running["low"] == "e2"
    spec.when(first_token("low", "e1")).then_nothing()
    assert spec.state.running["low"] == "e1"
    assert not spec.state.accounts["e2"].residents


def test_where_the_engine_can_preempt_the_stream_is_held_there() -> None:
    spec = without_token(engines=CAN)
    spec.when(first_token("low")).then_nothing()
    assert spec.state.parked_on == {"low": "e1"}
    spec.when(finished("high")).then(admitted("low", resumed=True))


# --------------------------------------------------------------------------------------------------- with a first token


def parked(*more: Any, engines: Any = CAN) -> Spec:
    """`low` was taken off e1 after 50 tokens, for `high`."""
    return busy(beat(low=50), *more, urgent(slack=500 * MS), engines=engines)


def test_it_goes_on_where_its_stream_is_as_soon_as_there_is_room() -> None:
    spec = parked().after(engine("e2", can_preempt=True))
    assert spec.state.parked_on == {"low": "e1"}
    spec.when(at(100 * MS, finished("high"))).then(
        admitted(
            "low", resumed=True, output_tokens_predicted=400, kv_cache_tokens=900, kv_bytes_reserved=90_000,
            ttft_predicted_ns=60 * MS,
        )
    )  # fmt: skip
    resident = spec.state.accounts["e1"].residents["low"]
    assert (resident.prefilling, resident.output_tokens, resident.uncached_tokens) == (True, 50, 550)
    spec.after(at(200 * MS, beat(low=52)))
    assert (resident.prefilling, resident.first_ns) == (False, START_NS)


def test_that_it_makes_tokens_again_is_presumed_where_nobody_says_so() -> None:
    spec = parked().after(at(100 * MS, finished("high")), at(200 * MS, tick(2)))
    assert not spec.state.accounts["e1"].prefilling


def test_nobody_of_its_priority_goes_before_it() -> None:
    spec = parked()
    spec.when(arrived("small", 10, out=10)).then(deferred("small", DeferReason.BEHIND_OTHERS), said(WakeAsked))
    spec.when(urgent("higher", 10, out=10)).then(admitted("higher"))
    spec.when(finished("higher")).then_nothing()
    spec.when(finished("high")).then(admitted("low", resumed=True), admitted("small"))


def test_it_goes_on_in_bounded_time_whatever_else_there_is() -> None:
    spec = parked(settings(resume_max_ns=2 * S), beat(high=1))
    spec.when(at(1 * S, tick(2))).then_nothing()
    spec.when(at(2 * S, tick(3))).then(admitted("low", resumed=True))


def test_not_even_one_that_is_more_important_and_parked_there_later_holds_it_up_for_longer() -> None:
    spec = parked(settings(resume_max_ns=2 * S), beat(high=9))
    spec.when(at(1 * S, urgent("highest", 450, now=1 * S, out=300, priority=2, slack=500 * MS))).then(
        preempted("high", "highest"), admitted("highest")
    )
    spec.after(at(1 * S, tick(2)), beat())
    spec.when(at(2 * S, tick(3))).then(admitted("low", resumed=True))


def test_it_goes_on_though_its_deadline_has_passed_long_ago() -> None:
    spec = parked(settings(resume_max_ns=600 * S)).after(at(1 * S, tick(2)), beat(), at(3 * S, tick(3)), beat())
    spec.when(finished("high")).then(admitted("low", resumed=True))


def test_it_is_preempted_only_so_often() -> None:
    spec = parked(settings(preemptions_max=1)).after(at(100 * MS, finished("high")), at(200 * MS, tick(2)))
    spec.when(urgent("again", now=200 * MS)).then(deferred("again", DeferReason.KV_BUDGET), said(WakeAsked))


ENDS: dict[str, Any] = {
    "finished": finished("low"),
    "client gone": aborted("low", engine_id=EngineId("e1")),
    "engine lost": aborted("low", AbortReason.ENGINE_LOST, engine_id=EngineId("e1")),
    "holder stopped": HolderStopped(holder=HolderId("h")),
}


@pytest.mark.parametrize("how", [parked, without_token], ids=["with a token", "without"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_one_that_made_room_may_end_meanwhile_and_nothing_leaks(how: Any, end: Any) -> None:
    spec = how().after(end, finished("high"))
    assert_nothing_is_held(spec)


def test_a_holder_that_is_lost_has_lost_what_was_parked() -> None:
    spec = parked(settings(resume_max_ns=600 * S))
    spec.after(*(at(n * S, tick(n)) for n in range(2, 7)))
    assert_nothing_is_held(spec)


def test_an_engine_that_left_is_forgotten_with_the_last_of_its_streams() -> None:
    spec = parked()
    spec.after(EngineRemoved(engine_id=EngineId("e1")), finished("high"))
    assert list(spec.state.accounts) == ["e1"]
    spec.after(aborted("low", AbortReason.ENGINE_LOST, engine_id=EngineId("e1")))
    assert not spec.state.accounts


def test_on_an_engine_that_is_lost_it_goes_on_when_it_must_and_the_holder_finds_out() -> None:
    spec = parked(settings(resume_max_ns=2 * S)).after(health("e1", Health.LOST))
    spec.when(finished("high")).then_nothing()
    spec.when(at(2 * S, tick(3))).then(admitted("low", resumed=True))


def test_an_arrival_said_twice_of_one_that_is_parked_has_no_effect() -> None:
    parked().when(LOW).then_nothing()


def assert_nothing_is_held(spec: Spec) -> None:
    state = spec.state
    assert (state.running, state.parked_on, state.lines.by_group, state.tenants.held) == ({}, {}, {}, {})
    assert all(not one.residents and not one.parked and not one.priorities for one in state.accounts.values())
