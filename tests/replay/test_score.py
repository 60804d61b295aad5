"""The scorer: what counts as met, and over whom."""

from collections.abc import Sequence

import pytest

from events import codec
from events.base import NS_PER_MS, NS_PER_S, EngineId, Event, HolderId, ModelId, RequestId, RequestKind, TenantId
from events.control import Ticked
from events.decisions import (
    DeferReason,
    HolderLost,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestRejected,
    Would,
)
from events.engine import EngineMeasured
from events.log.base import Message
from events.request import AbortReason, FirstTokenSeen, RequestAborted, RequestArrived, RequestExpired, RequestFinished
from replay.score import Scores, jain, percentile, score


def arrived(name: str, *, tenant: str = "a", kind: RequestKind = RequestKind.LLM, attempt: int = 0) -> RequestArrived:
    return RequestArrived(
        request_id=RequestId(name), tenant=TenantId(tenant), model=ModelId("m"), holder=HolderId("gw"), kind=kind,
        prompt_tokens=100, slo_ttft_ns=NS_PER_S, slo_tpot_ns=50 * NS_PER_MS, deadline_ns=0, attempt=attempt,
    )  # fmt: skip


def finished(name: str, *, ttft_ms: int = 100, tpot_ms: int = 10, output: int = 11, cached: int = 0) -> RequestFinished:
    return RequestFinished(
        request_id=RequestId(name), engine_id=EngineId("e1"), prompt_tokens=100, output_tokens=output,
        cached_tokens=cached, kv_cache_tokens=110, ttft_ns=ttft_ms * NS_PER_MS, tpot_ns=tpot_ms * NS_PER_MS,
        e2e_ns=10**9, preemptions=1,
    )  # fmt: skip


def admitted(name: str, *, would: Would | None = None) -> RequestAdmitted:
    return RequestAdmitted(
        request_id=RequestId(name), engine_id=EngineId("e1"), output_tokens_predicted=20, kv_cache_tokens=120,
        kv_bytes_reserved=1, ttft_predicted_ns=60 * NS_PER_MS, slo_slack_ns=0, would=would,
    )  # fmt: skip


def log(*said: tuple[int, Event]) -> list[Message]:
    """Messages of one event each, at so many ms."""
    bodies = [codec.encode(owner="o", ts_ns=ms * NS_PER_MS, said=[codec.Said(event=event)]) for ms, event in said]
    return [Message(seq, "tg.v1.p.fact.x.y", body, {}) for seq, body in enumerate(bodies, start=1)]


def of(*events: Event) -> Scores:
    return score(log(*((1_000, event) for event in events)))


@pytest.mark.parametrize(
    ("how", "met"),
    [
        ({}, 1),
        ({"ttft_ms": 1_000, "tpot_ms": 50}, 1),
        ({"ttft_ms": 1_001}, 0),
        ({"tpot_ms": 51}, 0),
    ],
)
def test_an_slo_is_met_within_both_limits(how: dict[str, int], met: int) -> None:
    assert of(arrived("r"), finished("r", **how)).slo_met == met


def test_an_embedding_has_no_time_per_token() -> None:
    scores = of(arrived("v", kind=RequestKind.EMBEDDING), finished("v", tpot_ms=0, output=0))
    assert scores.kinds["embedding"].slo_met == 1
    assert scores.ttft_p50_ns is None, "percentiles are over LLM requests"


@pytest.mark.parametrize(
    ("end", "where", "name"),
    [
        (RequestRejected(request_id=RequestId("r2"), reason=RejectReason.KV_BUDGET), "rejected", "rejected_kv_budget"),
        (RequestAborted(request_id=RequestId("r2"), reason=AbortReason.CLIENT_GONE), "aborted", "aborted_client_gone"),
        (RequestExpired(request_id=RequestId("r2"), waited_ns=1), "aborted", "expired"),
        (HolderLost(holder=HolderId("gw"), requests=(RequestId("r2"),)), "aborted", "aborted_holder_lost"),
    ],
)
def test_whoever_arrived_counts_however_it_ended(end: Event, where: str, name: str) -> None:
    scores = of(arrived("r1"), arrived("r2"), finished("r1"), end)
    assert (scores.requests, scores.slo_met, scores.slo_attainment) == (2, 1, 0.5)
    assert getattr(scores, where) == {name: 1}
    assert scores.unfinished == 0
    assert (scores.ttft_p50_ns, scores.ttft_p99_ns) == (100 * NS_PER_MS, None), "no answer is infinite"


def test_what_never_ended_is_missed_and_said() -> None:
    scores = of(arrived("r1"))
    assert (scores.requests, scores.slo_met, scores.unfinished) == (1, 0, 1)


def test_offered_again_is_the_same_request() -> None:
    lost = RequestAborted(request_id=RequestId("r"), reason=AbortReason.ENGINE_LOST, final=False)
    scores = of(arrived("r"), lost, arrived("r", attempt=1), finished("r"))
    assert (scores.requests, scores.slo_met, scores.retried, scores.aborted) == (1, 1, 1, {})
    assert (scores.slo_met_retried, of(arrived("r"), finished("r")).slo_met_retried) == (1, 0)


def test_goodput_counts_per_second_of_arrivals() -> None:
    scores = score(log((0, arrived("r1")), (4_000, arrived("r2")), (9_000, finished("r1")), (9_000, finished("r2"))))
    assert scores.window_ns == 4 * NS_PER_S
    assert (scores.goodput_per_s, scores.offered_per_s) == (0.5, 0.5)
    assert scores.output_tokens_per_s == pytest.approx(22 / 9)


def test_a_log_that_goes_on_when_all_is_answered_makes_no_engine_slower() -> None:
    lived = [(0, arrived("r1")), (9_000, finished("r1"))]
    idle = score(log(*lived, (90_000, Ticked(n=1))))
    assert idle.output_tokens_per_s == score(log(*lived)).output_tokens_per_s == pytest.approx(11 / 9)


def test_engines_that_answer_nobody_any_more_are_not_quicker_for_it() -> None:
    lived = [(0, arrived("r1")), (9_000, finished("r1"))]
    refused = [
        (89_000, arrived("r2")),
        (89_000, RequestRejected(request_id=RequestId("r2"), reason=RejectReason.KV_BUDGET)),
    ]
    assert score(log(*lived, *refused)).output_tokens_per_s == pytest.approx(11 / 89)


def test_a_window_may_begin_later_than_the_log() -> None:
    """A pool was up for a minute before anybody asked."""
    measured = EngineMeasured(engine_id=EngineId("e1"), running=0, waiting=0, kv_used_ppm=0)
    said = log((0, measured), (60_000, arrived("r1")), (64_000, finished("r1")))
    assert score(said, window_ns=10 * NS_PER_S).tokens_per_s == 0
    assert score(said, window_ns=10 * NS_PER_S, start_ns=60 * NS_PER_S).tokens_per_s == pytest.approx(111 / 10)


def test_predictions_are_held_against_what_came_from_the_admission_on() -> None:
    first = FirstTokenSeen(request_id=RequestId("r"), engine_id=EngineId("e1"), ttft_ns=900 * NS_PER_MS)
    scores = score(log((0, arrived("r")), (800, admitted("r")), (900, first), (1_000, finished("r"))))
    assert scores.ttft_error_ns.bias_p50 == 40 * NS_PER_MS
    assert (scores.kv_tokens_error.bias_p50, scores.kv_tokens_error.error_p50) == (-10, 10)
    assert scores.kv_tokens_error.error_p50_share == pytest.approx(10 / 110)


def test_preemptions_survive_a_restart_of_the_engine() -> None:
    def measured(total: int) -> EngineMeasured:
        return EngineMeasured(engine_id=EngineId("e1"), running=0, waiting=0, kv_used_ppm=0, preemptions_total=total)

    assert of(arrived("r"), measured(3), measured(5), measured(1), measured(2)).preemptions == 7
    assert of(arrived("r"), finished("r")).preemptions == 1, "where no engine was measured, requests tell"


def test_deferrals_and_what_would_have_been_are_counted() -> None:
    deferred = RequestDeferred(request_id=RequestId("r"), until_ns=5, reason=DeferReason.KV_BUDGET)
    scores = of(arrived("r"), deferred, admitted("r", would=Would.DEFER), admitted("r", would=Would.ADMIT))
    assert (scores.deferrals, scores.would) == (1, {"defer": 1})


def test_tenants_are_compared() -> None:
    scores = of(arrived("r1", tenant="a"), arrived("r2", tenant="b"), finished("r1", cached=50))
    assert {name: part.slo_attainment for name, part in scores.tenants.items()} == {"a": 1.0, "b": 0.0}
    assert scores.fairness_jain == 0.5
    assert scores.cached_token_share == 0.5


def test_an_embedding_is_no_prompt_that_a_cache_could_have_had() -> None:
    """Bounds of what can be reused are over prompts of answers, and so is what was reused."""
    both = (arrived("r", tenant="a"), finished("r", cached=50), arrived("v", kind=RequestKind.EMBEDDING))
    scores = of(*both, finished("v", tpot_ms=0, output=0))
    assert (scores.cached_token_share, scores.hit_share) == (0.5, 0.5)
    assert (scores.prompt_tokens, scores.prompt_tokens_asked) == (100, 100)


def test_an_empty_log_has_no_scores() -> None:
    assert score([]).plain()["requests"] == 0


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([3, 1, 2], 50, 2), ([1, None], 50, 1), ([1, None], 99, None), (list(range(1, 101)), 99, 99)],
)
def test_percentiles_are_by_nearest_rank(values: Sequence[int | None], percent: int, expected: int | None) -> None:
    assert percentile(values, percent) == expected


def test_jain_is_one_when_all_have_the_same_and_one_over_n_when_one_has_all() -> None:
    assert jain([0.5, 0.5, 0.5]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain([0.0, 0.0]) == 1.0
