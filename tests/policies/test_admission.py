"""Admission, rule by rule: what arrives, what was there before, and what is said."""

from typing import Any

import msgspec
import pytest

from events.base import EngineId, HolderId, RequestId
from events.decisions import (
    DeferReason,
    HolderLost,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestRejected,
    WakeAsked,
    Would,
)
from events.engine import EngineRegistered, EngineRemoved, Health
from events.request import AbortReason, HolderStopped, RequestArrived
from policies.admission import ADMISSION
from tests.policies.words import (
    EXACT,
    FS_PER_MS,
    MS,
    STEP,
    S,
    aborted,
    arrived,
    beat,
    embedding,
    engine,
    expired,
    finished,
    first_token,
    health,
    measured,
    settings,
    slices,
    tick,
)
from tests.spec import START_NS, Said, Spec, at, given, said

E1 = (engine("e1"),)
BOTH = (engine("e1"), engine("e2"))


def house(*events: Any, engines: tuple[EngineRegistered, ...] = E1, decoding: RequestArrived | None = None) -> Spec:
    """Engines without margins at START_NS. `decoding` was admitted before, and gave its first token just now, just as
    the model predicts, so that no correction blurs the round numbers."""
    spec = given(ADMISSION, EXACT, tick(0), *engines)
    if decoding is not None:
        prefill_ns = -(-decoding.prompt_tokens // 100) * 10 * MS
        spec.after(at(-prefill_ns, decoding), at(0, first_token(decoding.request_id)))
    return spec.after(at(0, tick(1)), *events)


def admitted(name: str, engine_id: str = "e1", **more: Any) -> Said:
    return said(RequestAdmitted, request_id=name, engine_id=engine_id, **more)


def deferred(name: str, reason: DeferReason, **more: Any) -> Said:
    return said(RequestDeferred, request_id=name, reason=reason, **more)


def rejected(name: str, reason: RejectReason, **more: Any) -> Said:
    return said(RequestRejected, request_id=name, reason=reason, **more)


# ------------------------------------------------------------------------------------------------- who can serve


def test_a_request_that_fits_is_admitted_with_what_was_predicted() -> None:
    house().when(arrived("r", 100, out=50)).then(
        RequestAdmitted(
            request_id=RequestId("r"), engine_id=EngineId("e1"), output_tokens_predicted=50, kv_cache_tokens=150,
            kv_bytes_reserved=15_000, ttft_predicted_ns=10 * MS, slo_slack_ns=990 * MS,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "before",
    [
        (),
        (engine("e1", llm=False, embedding=True),),
        (engine("e1"), health("e1", Health.LOST)),
        (engine("e1"), health("e1", Health.DRAINING)),
        (engine("e1"), EngineRemoved(engine_id=EngineId("e1"))),
    ],
    ids=["none", "other kind", "lost", "draining", "removed"],
)
def test_without_a_ready_engine_it_is_refused(before: tuple[Any, ...]) -> None:
    given(ADMISSION, *before).when(arrived("r")).then(rejected("r", RejectReason.NO_ENGINE))


def test_an_unknown_model_has_no_engine() -> None:
    house().when(arrived("r", model="other")).then(rejected("r", RejectReason.NO_ENGINE))


def test_an_engine_that_is_ready_again_gets_work_again() -> None:
    house(health("e1", Health.LOST), health("e1", Health.READY)).when(arrived("r")).then(admitted("r"))


@pytest.mark.parametrize(
    ("request_", "ok"),
    [
        (arrived("r", 998, out=1), True),
        (arrived("r", 1_000, out=1), False),
        (arrived("r", 1_000, out=1, estimated=True), False),
        (embedding("r", 4_000, inputs=5), True),
        (embedding("r", 4_100, inputs=2), False),
    ],
    ids=["fits", "more than the KV", "estimated, more than the KV", "many inputs", "one input beyond the context"],
)
def test_what_fits_no_engine_is_too_long(request_: Any, ok: bool) -> None:
    spec = house(engines=(engine("e1", embedding=True),)).when(request_)
    spec.then(admitted("r") if ok else rejected("r", RejectReason.TOO_LONG, retry_after_ns=0))


def test_an_estimated_prompt_is_not_held_against_the_context() -> None:
    large = engine("e1", blocks=1_000)
    house(engines=(large,)).when(arrived("r", 2_000)).then(rejected("r", RejectReason.TOO_LONG))
    house(engines=(large,)).when(arrived("r", 2_000, estimated=True)).then(admitted("r"))


def test_a_predicted_length_is_cut_to_what_an_engine_can_hold_alone() -> None:
    house().when(arrived("r", 900, out=50_000)).then(admitted("r", output_tokens_predicted=100))


# ------------------------------------------------------------------------------------------------------ KV budget


def test_it_waits_while_the_predicted_peak_is_above_the_budget_and_goes_when_it_is_not() -> None:
    spec = house(decoding=arrived("a", 500, out=100))
    spec.when(arrived("b", 500, out=100)).then(
        deferred("b", DeferReason.KV_BUDGET, until_ns=START_NS + 950 * MS, work_ns=50 * MS), said(WakeAsked)
    )
    spec.when(finished("a")).then(admitted("b"))


def test_memory_that_one_frees_before_another_needs_it_is_promised_twice() -> None:
    # 400+100 and 400+190 are 1,090 tokens of 1,000 at full length; but the first ends when both have grown by 100.
    house(settings(tpot_margin_ppm=0), decoding=arrived("a", 400, out=100)).when(arrived("b", 390, out=190)).then(
        admitted("b")
    )


def test_a_safety_margin_of_the_blocks_is_never_promised() -> None:
    house(settings(safety_ppm=100_000)).when(arrived("r", 899, out=50)).then(admitted("r", output_tokens_predicted=1))
    house(settings(safety_ppm=100_000)).when(arrived("r", 900)).then(rejected("r", RejectReason.TOO_LONG))


def test_what_others_use_on_the_engine_counts_once_it_was_seen_twice() -> None:
    once = house(measured(used_ppm=900_000))
    once.when(arrived("r", 200)).then(admitted("r"))
    twice = house(measured(used_ppm=900_000), measured(used_ppm=950_000))
    twice.when(arrived("r", 200)).then(deferred("r", DeferReason.KV_BUDGET), said(WakeAsked))
    twice.when(measured(used_ppm=0)).then(admitted("r"))


def test_what_ours_use_is_not_taken_for_somebody_elses() -> None:
    spec = house(decoding=arrived("a", 300, out=100))
    spec.after(measured(used_ppm=340_000, running=1), measured(used_ppm=360_000, running=1))
    assert spec.state.accounts["e1"].foreign_blocks == 0


def test_promises_made_since_the_engine_was_measured_count() -> None:
    spec = house(measured(), measured(), arrived("a", 450, out=100))
    spec.when(arrived("b", 450, out=100)).then(deferred("b", DeferReason.KV_BUDGET), said(WakeAsked))


def test_a_request_that_outgrows_its_prediction_is_promised_more() -> None:
    short = [event for n in range(20) for event in (arrived(f"s{n}", 10), finished(f"s{n}", out=20))]
    spec = house(*short, arrived("a", 400, out=500), first_token("a"))
    load = spec.state.accounts["e1"].load
    assert load.blocks_final == 43, "400 + 21 tokens: 20 were seen, in a bucket that ends at 21"
    spec.when(beat(a=30)).then_nothing()
    assert load.blocks_final == 90, "nothing longer was ever seen, so the client's own cap"


def test_an_engine_that_does_not_tell_its_kv_is_not_judged_by_it() -> None:
    house(engines=(engine("e1", blocks=0),)).when(arrived("r", 1_900, out=1)).then(admitted("r"))


def test_sequences_are_bounded() -> None:
    spec = house(arrived("a", 10), engines=(engine("e1", seqs_max=1),))
    spec.when(arrived("b", 10)).then(deferred("b", DeferReason.SEQS_MAX), said(WakeAsked))


def test_a_request_that_holds_its_place_too_long_is_dropped_from_the_books() -> None:
    spec = house(settings(request_max_ns=60 * S), arrived("a", 500, out=500), first_token("a"))
    minute = [at(n * S, event) for n in range(1, 63) for event in (tick(n), beat())]
    spec.after(*minute)
    assert spec.state.accounts["e1"].load.seqs == 0
    assert not spec.state.running


# --------------------------------------------------------------------------------------------------- first token


def test_a_deadline_that_the_work_before_it_makes_unreachable_is_refused_at_once() -> None:
    spec = house(settings(backlog_max_ns=0), arrived("a", 400, slack=S, out=1))
    spec.when(arrived("b", 100, slack=45 * MS)).then(rejected("b", RejectReason.SLO_INFEASIBLE, retry_after_ns=S))
    spec.when(arrived("c", 100, slack=50 * MS)).then(admitted("c", ttft_predicted_ns=50 * MS, slo_slack_ns=0))


def test_what_no_engine_could_ever_do_in_time_gets_no_advice_to_retry() -> None:
    house().when(arrived("r", 500, slack=40 * MS)).then(rejected("r", RejectReason.SLO_INFEASIBLE, retry_after_ns=0))


def test_the_margin_is_held_against_the_slack() -> None:
    house(settings(ttft_margin_ppm=2_000_000)).when(arrived("r", 500, slack=99 * MS)).then(
        rejected("r", RejectReason.SLO_INFEASIBLE)
    )


def test_what_the_head_of_the_line_has_done_already_is_not_counted_again() -> None:
    spec = house(settings(backlog_max_ns=0), arrived("a", 400, out=1))
    spec.when(at(30 * MS, arrived("b", 100, slack=20 * MS, now=30 * MS))).then(admitted("b"))


def test_resident_decode_context_makes_first_tokens_later() -> None:
    slow_context = msgspec.structs.replace(STEP, context_fs=FS_PER_MS // 10)
    spec = house(engines=(engine("e1", step=slow_context),), decoding=arrived("a", 300, out=10))
    spec.when(arrived("b", 99)).then(admitted("b", ttft_predicted_ns=10 * MS + 301 * MS // 10))


def test_the_prediction_learns_from_what_was_seen() -> None:
    spec = house()
    for n in range(60):
        now = n * 400 * MS
        spec.after(at(now, arrived(f"r{n}", 1, now=now, out=1)), at(now + 300 * MS, first_token(f"r{n}")))
        spec.after(finished(f"r{n}"), tick(n), beat())
    now = 24 * S
    spec.when(at(now, arrived("r", 100, now=now))).then(said(RequestAdmitted))
    predicted_ns = spec.decisions[0].ttft_predicted_ns
    assert 40 * MS <= predicted_ns <= 160 * MS, "300 ms seen where the model says 10: bounded, and by and by"


def test_an_engine_without_a_model_is_judged_by_its_rate_once_that_is_known() -> None:
    spec = house(engines=(engine("e1", step=None),))
    spec.when(arrived("r", 500, slack=1)).then(admitted("r", ttft_predicted_ns=0, slo_slack_ns=1))
    spec.after(aborted("r"))
    for n in range(8):
        now = n * 200 * MS
        spec.after(at(now, arrived(f"r{n}", 100, now=now)), at(now + 100 * MS, first_token(f"r{n}")), finished(f"r{n}"))
    spec.when(arrived("a", 500, now=1_500 * MS, slack=490 * MS)).then(rejected("a", RejectReason.SLO_INFEASIBLE))
    spec.when(arrived("b", 500, now=1_500 * MS, slack=510 * MS)).then(admitted("b"))
    assert abs(spec.decisions[0].ttft_predicted_ns - 500 * MS) < MS


def test_it_waits_here_while_the_prefill_backlog_there_is_long() -> None:
    spec = house(settings(backlog_max_ns=30 * MS), arrived("a", 400, out=1))
    spec.when(arrived("b", 100, out=1)).then(deferred("b", DeferReason.PREFILL_BACKLOG), said(WakeAsked))
    spec.when(at(40 * MS, first_token("a"))).then(admitted("b"))


# ------------------------------------------------------------------------------------------------------------ pace


def test_a_prefill_that_would_make_a_running_answer_late_waits() -> None:
    # Prefill steps take 40 ms, decode steps 10 ms: 100 tokens at a limit of 15 ms leave room for 16 of them.
    slow = msgspec.structs.replace(STEP, knee_tokens=1, above_fs=3 * FS_PER_MS // 10)
    running: dict[str, Any] = {
        "engines": (engine("e1", step=slow, blocks=1_000),),
        "decoding": arrived("a", 10, out=100, tpot=15 * MS),
    }
    free = settings(backlog_max_ns=0)
    house(free, **running).when(arrived("b", 1_000, out=1)).then(admitted("b"))
    house(free, **running).when(arrived("b", 1_900, out=1)).then(deferred("b", DeferReason.TPOT_GUARD), said(WakeAsked))
    house(free, settings(tpot_margin_ppm=0), **running).when(arrived("b", 1_900, out=1)).then(admitted("b"))


def test_a_pace_that_an_idle_engine_cannot_keep_is_refused() -> None:
    house().when(arrived("r", tpot=9 * MS)).then(rejected("r", RejectReason.SLO_INFEASIBLE, retry_after_ns=0))


def test_an_answer_that_is_late_anyway_holds_nobody_up() -> None:
    spec = house(arrived("a", 10, out=10, tpot=10 * MS), first_token("a"))
    spec.when(at(900 * MS, arrived("b", 100, out=1, now=900 * MS))).then(admitted("b"))


# --------------------------------------------------------------------------------------------------- who goes first


def full(*more: Any) -> Spec:
    """600 of 1,000 tokens are taken by `a`, and `b` with 500 waits."""
    return house(arrived("b", 490, out=10, slack=10 * S), *more, decoding=arrived("a", 500, out=100))


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


# ----------------------------------------------------------------------------------------------------- placement


def test_the_engine_that_is_quicker_is_taken() -> None:
    house(arrived("a", 400, out=1), engines=BOTH).when(arrived("b", 100)).then(admitted("b", "e2"))


def test_a_cached_prefix_makes_an_engine_quicker() -> None:
    spec = house(arrived("a", 400, out=1), arrived("b", 200, slices=slices("x", "y"), slice_tokens=100), engines=BOTH)
    spec.after(finished("a"), finished("b", "e2"))
    spec.when(arrived("c", 300, slices=slices("x", "y", "z"), slice_tokens=100)).then(
        admitted("c", "e2", cached_tokens_predicted=200, ttft_predicted_ns=10 * MS)
    )


def test_a_lost_engine_has_lost_its_cache() -> None:
    spec = house(arrived("a", 200, slices=slices("x", "y"), slice_tokens=100), finished("a"))
    spec.after(health("e1", Health.LOST), health("e1", Health.READY))
    spec.when(arrived("b", 200, slices=slices("x", "y"), slice_tokens=100)).then(
        admitted("b", cached_tokens_predicted=0)
    )


def test_the_next_best_engine_is_taken_where_the_best_has_no_room() -> None:
    spec = house(engines=(engine("e1"), engine("e2", batch_tokens_max=50)), decoding=arrived("a", 500, out=500))
    spec.when(arrived("b", 400, out=100)).then(admitted("b", "e2"))


def test_round_robin_takes_turns_per_model_and_kind() -> None:
    spec = given(
        ADMISSION, settings(placement="round_robin"), engine("e1", embedding=True), engine("e2", embedding=True)
    )
    for name, engine_id in (("a", "e1"), ("b", "e2"), ("c", "e1")):
        spec.when(arrived(name, 10)).then(admitted(name, engine_id))
        spec.when(embedding(f"v{name}", 10)).then(admitted(f"v{name}", engine_id))


def test_least_loaded_goes_by_tokens() -> None:
    spec = house(
        settings(placement="least_loaded"), arrived("a", 400), arrived("b", 100), arrived("c", 100), engines=BOTH
    )
    spec.when(arrived("d", 100)).then(admitted("d", "e2"))


def test_prefix_affinity_follows_the_prefix_unless_that_engine_is_much_busier() -> None:
    spec = house(
        settings(placement="prefix_affinity", affinity_tokens_min=100, affinity_load_ppm=1_200_000), engines=BOTH
    )
    spec.after(arrived("a", 200, slices=slices("x", "y"), slice_tokens=100))
    spec.after(finished("a"), arrived("b", 100, model="m"), arrived("c", 100))
    warm = {"slices": slices("x", "y"), "slice_tokens": 100}
    spec.when(arrived("d", 200, **warm)).then(admitted("d", "e1"))
    spec.when(arrived("e", 200, **warm)).then(admitted("e", "e2"))


# ---------------------------------------------------------------------------------------- engines and holders that fail


def test_a_request_that_lost_its_engine_goes_to_another() -> None:
    spec = house(arrived("a", 100), engines=BOTH)
    spec.after(aborted("a", AbortReason.ENGINE_LOST, engine_id=EngineId("e1"), final=False))
    spec.when(arrived("a", 100, attempt=1)).then(admitted("a", "e2", attempt=1))


def test_an_engine_that_a_holder_lost_gets_nothing_until_something_is_heard_of_it() -> None:
    spec = house(arrived("a", 100), aborted("a", AbortReason.ENGINE_LOST, engine_id=EngineId("e1"), final=False))
    spec.when(arrived("b", 100)).then(rejected("b", RejectReason.NO_ENGINE))
    spec.when(measured()).then_nothing()
    spec.when(arrived("a", 100, attempt=1)).then(admitted("a", "e1"))


def test_a_lost_engine_keeps_its_requests_in_the_books_until_they_end() -> None:
    spec = house(arrived("a", 100), health("e1", Health.LOST), engines=BOTH)
    assert spec.state.accounts["e1"].load.seqs == 1
    spec.after(aborted("a", AbortReason.ENGINE_LOST))
    assert spec.state.accounts["e1"].load.seqs == 0


def test_a_removed_engine_is_forgotten_with_its_last_request() -> None:
    spec = house(arrived("a", 100), EngineRemoved(engine_id=EngineId("e1")), engines=BOTH)
    assert list(spec.state.accounts) == ["e1", "e2"]
    spec.after(finished("a"))
    assert list(spec.state.accounts) == ["e2"]


def test_an_engine_that_is_described_anew_keeps_what_runs_there() -> None:
    spec = house(arrived("a", 100, out=100), engine("e1", blocks=200))
    assert spec.state.accounts["e1"].load.blocks_final == 20
    spec.after(finished("a"))
    assert spec.state.accounts["e1"].load.blocks_final == 0


def test_a_silent_holder_is_lost_with_all_it_held() -> None:
    spec = house(arrived("b", 500, slack=60 * S), decoding=arrived("a", 500, out=400))
    spec.after(*(at(n * S, tick(n)) for n in range(1, 5)))
    spec.when(at(5 * S, tick(5))).then(HolderLost(holder=HolderId("h"), requests=(RequestId("a"), RequestId("b"))))
    assert spec.state.accounts["e1"].load.blocks_final == 0
    spec.when(at(6 * S, tick(6))).then_nothing()


@pytest.mark.parametrize(
    "word", [beat(), first_token("a"), arrived("z", 10, now=3 * S)], ids=["beat", "token", "arrival"]
)
def test_whatever_a_holder_says_is_a_sign_of_life(word: Any) -> None:
    spec = house(arrived("a", 100), *(at(n * S, tick(n)) for n in range(1, 4)), at(3 * S, word))
    spec.after(*(at(n * S, tick(n)) for n in range(4, 8))).when(at(8 * S, tick(8))).then(said(HolderLost))


def test_an_outage_of_the_log_loses_no_holder() -> None:
    spec = house(beat(), arrived("a", 100))
    for n in range(1, 4):  # Ticks that each bring the most that a tick may: nobody could speak in between.
        spec.when(at(n * 2 * S, tick(n))).then_nothing()
    spec.when(at(6 * S, beat())).then_nothing()


def test_a_holder_that_starts_anew_has_lost_what_it_held() -> None:
    spec = house(beat(epoch="1"), arrived("a", 100), beat(epoch="1"))
    spec.when(beat(epoch="2")).then(HolderLost(holder=HolderId("h"), requests=(RequestId("a"),)))
    spec.when(beat(epoch="2")).then_nothing()
    spec.when(beat(epoch="3")).then_nothing()  # It holds nothing: there is nothing to lose.
    assert spec.state.holders.heard["h"].epoch == "3"


def test_a_holder_that_leaves_in_good_order_frees_what_it_held() -> None:
    spec = full(arrived("c", 490, out=10, slack=10 * S, holder="other"))
    spec.when(HolderStopped(holder=HolderId("h"))).then(admitted("c"))


# --------------------------------------------------------------------------------------------------- modes, repeats


def test_observe_admits_at_once_and_says_what_would_have_been() -> None:
    spec = house(settings(mode="observe"))
    spec.when(arrived("a", 500, out=400)).then(admitted("a", would=Would.ADMIT, reason=""))
    spec.when(arrived("b", 500, out=400)).then(admitted("b", would=Would.DEFER, reason="kv_budget"))
    spec.when(arrived("c", 500, slack=1)).then(admitted("c", would=Would.REJECT, reason="rejected_slo_infeasible"))
    spec.when(arrived("d", 5_000)).then(rejected("d", RejectReason.TOO_LONG))
    spec.when(arrived("e", model="x")).then(rejected("e", RejectReason.NO_ENGINE))


def test_those_who_wait_go_at_once_when_the_mode_changes_to_observe() -> None:
    full(settings(mode="observe")).when(at(10 * MS, tick(9))).then(admitted("b", would=Would.DEFER))


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


# ------------------------------------------------------------------------------------------------------- explain


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
    assert values["deferred"] == 1
