"""What a client saw, as facts: each answer is scored as it would be in any log, and every refusal has its word."""

from typing import Any

import pytest

from events import codec
from events.base import NS_PER_MS, NS_PER_S, EngineId, Event, RequestKind
from events.decisions import RejectReason
from events.engine import EngineKind, EngineMeasured, EngineRegistered
from events.log.base import Message
from events.request import AbortReason
from replay.score import Error, Scores, score
from replay.workloads.base import Arrival
from replay.workloads.slo import Slo
from services.target import observed
from services.target.client import Seen
from services.target.telemetry import Told

MS = NS_PER_MS


def seen(
    name: str = "r", *, kind: RequestKind = RequestKind.LLM, due: int = 0, first: int = 0, last: int = 0, **more: Any
) -> Seen:
    arrival = Arrival(
        at_ns=due * MS, request_id=name, prompt_tokens=100, output_tokens=11, kind=kind,
        slo=Slo(ttft_min_ns=200 * MS, tpot_ns=50 * MS),
    )  # fmt: skip
    base = {"status": 200, "ended": True, "whole": True, "events": 11, "output_tokens": 11, "prompt_tokens": 100}
    return Seen(
        arrival=arrival, due_ns=due * MS, sent_ns=due * MS, first_ns=first * MS, last_ns=last * MS, **{**base, **more}
    )


def scored(*of: Seen) -> Scores:
    return score(observed.facts(of), window_ns=NS_PER_S)


def test_an_answer_is_scored_from_when_it_was_due() -> None:
    scores = scored(seen(due=100, first=250, last=350))
    assert (scores.ttft_p50_ns, scores.tpot_p50_ns, scores.slo_met) == (150 * MS, 10 * MS, 1)


@pytest.mark.parametrize(
    ("one", "met"),
    [
        (seen(first=200, last=300), 1),
        (seen(first=201, last=300), 0),
        (seen(first=100, last=600), 1),
        (seen(first=100, last=601), 0),
        (seen(kind=RequestKind.EMBEDDING, first=200, last=200, output_tokens=0, events=0), 1),
        (seen(kind=RequestKind.EMBEDDING, first=201, last=201, output_tokens=0, events=0), 0),
    ],
)
def test_limits_are_met_to_the_nanosecond(one: Seen, met: int) -> None:
    assert scored(one).slo_met == met


@pytest.mark.parametrize(
    ("one", "rejected", "aborted"),
    [
        (seen(status=429, whole=False, reason="rejected_slo_infeasible"), str(RejectReason.SLO_INFEASIBLE), ""),
        (seen(status=503, whole=False, reason="requests_max"), "", str(AbortReason.ENGINE_REFUSED)),
        (seen(status=400, whole=False), "", str(AbortReason.ENGINE_REFUSED)),
        (seen(status=0, whole=False, reason="ClientOSError"), "", str(AbortReason.ENGINE_LOST)),
        (seen(first=50, last=80, whole=False), "", str(AbortReason.ENGINE_LOST)),
    ],
)
def test_what_was_not_answered_is_missed_under_its_reason(one: Seen, rejected: str, aborted: str) -> None:
    scores = scored(one)
    assert (scores.finished, scores.slo_met) == (0, 0)
    assert list(scores.rejected) == ([rejected] if rejected else [])
    assert list(scores.aborted) == ([aborted] if aborted else [])


def test_what_never_ended_is_unfinished() -> None:
    scores = scored(seen(ended=False, whole=False, status=0), seen("s", first=10, last=20))
    assert (scores.requests, scores.unfinished, scores.finished) == (2, 1, 1)


def test_where_the_target_counts_nothing_its_events_do() -> None:
    scores = scored(seen(first=100, last=200, output_tokens=-1, prompt_tokens=-1, events=6))
    assert (scores.tpot_p50_ns, scores.prompt_tokens) == (20 * MS, 100)


def test_metrics_stand_at_their_time_between_the_requests() -> None:
    measured = EngineMeasured(engine_id=EngineId("e"), running=1, waiting=0, kv_used_ppm=500_000)
    facts = observed.facts([seen(due=0), seen("s", due=900)], [Told(700 * MS, measured)], begun_ns=200 * MS)
    kinds = [event.event_kind() for event in _events(facts)]
    assert kinds.index("engine_measured") == kinds.index("request_arrived", 1) - 1
    assert [message.seq for message in facts] == list(range(1, len(facts) + 1))


def test_a_target_s_own_log_adds_what_no_client_sees() -> None:
    theirs = Scores(
        requests=9, slo_met=9, deferrals=4, kv_tokens_error=Error(requests=3), device_ns=3_600 * NS_PER_S,
        device_hours_per_million=7.0,
    )  # fmt: skip
    both = observed.merged(Scores(requests=5, slo_met=2, slo_tokens=500_000), theirs)
    assert (both.requests, both.slo_met, both.deferrals, both.kv_tokens_error.requests) == (5, 2, 4, 3)
    assert both.device_hours_per_million == 2.0


def test_hits_are_those_of_the_metrics_where_no_answer_tells() -> None:
    def told(queries: int, hits: int) -> Told:
        return Told(0, EngineMeasured(engine_id=EngineId("e"), running=0, waiting=0, kv_used_ppm=0,
                                      prefix_queries_total=queries, prefix_hits_total=hits))  # fmt: skip

    scores = scored(seen(first=100, last=200))
    by_metrics = observed.by_metrics(scores, [told(0, 0), told(400, 100)])
    assert (by_metrics.cached_token_share, by_metrics.hit_tokens_by_tier["device"]) == (0.25, 25)
    told_by_answers = scored(seen(first=100, last=200, cached_tokens=80))
    assert observed.by_metrics(told_by_answers, [told(400, 100)]) == told_by_answers
    untold = observed.by_metrics(scores, [told(0, 0)])
    assert (untold.cached_token_share, untold.hit_share, untold.hit_tokens_by_tier) == (None, None, {})


def test_held_tokens_grow_with_the_answer_and_are_gone_at_its_end() -> None:
    llm = seen(due=5_000, first=10_000, last=30_000, output_tokens=40)
    job = seen("e", kind=RequestKind.EMBEDDING, due=1, first=15_000, last=15_000)
    by_name = {one.name: one.values for one in observed.held([llm, job])}
    assert by_name["held_llm"] == (100, 120, 0)
    assert by_name["held_embedding"] == (100, 0, 0)


def test_device_memory_is_told_by_kind_where_engines_tell_it() -> None:
    registered = EngineRegistered(
        engine_id=EngineId("e"), kind=EngineKind.SIMULATED, models=(), kv_blocks=10, block_tokens=16, block_bytes=100
    )
    full = EngineMeasured(engine_id=EngineId("e"), running=1, waiting=0, kv_used_ppm=800_000, embedding_bytes=300)
    silent = EngineMeasured(engine_id=EngineId("e"), running=1, waiting=0, kv_used_ppm=800_000)
    told = [Told(0, registered), Told(MS, full), Told(2 * MS, silent)]
    by_name = {one.name: one.values for one in observed.memory(observed.facts([], told))}
    assert by_name == {"memory_llm": (500.0,), "memory_embedding": (300.0,)}


def _events(messages: list[Message]) -> list[Event]:
    return [
        recorded.event
        for message in messages
        for recorded in codec.decode(message.seq, message.subject, message.body)
    ]  # fmt: skip
