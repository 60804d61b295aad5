"""What is offered: the same requests at every scale, other ones for every seed, the same limits for every engine."""

import json
from pathlib import Path

import pytest

from events.base import NS_PER_S, HolderId, RequestKind
from replay.bench.offered import BATCH_NS, SLO, Extent, Offer, Workload, arrivals, engines
from replay.score import prompt_class
from replay.workloads.base import Arrival
from replay.workloads.facts import arrived

SHORT = Extent(window_s=30, mixed_s=60)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """A minute in batches of three seconds, three requests each."""
    path = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": batch * 3_000, "input_length": 1_000 + 10 * batch + one, "output_length": 5, "hash_ids": [batch]}
        for batch in range(21)
        for one in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def offer(trace: str = "", *, workload: Workload = Workload.CONVERSATION, seed: int = 1, scale: float = 1.0) -> Offer:
    return Offer(workload=workload, seed=seed, scale=scale, extent=SHORT, trace=trace)


def names(found: list[Arrival]) -> list[str]:
    return [one.request_id for one in found]


@pytest.mark.parametrize("workload", list(Workload))
def test_an_offer_is_the_same_every_time_and_in_order_of_time(workload: Workload, trace: str) -> None:
    found = arrivals(offer(trace, workload=workload))
    assert found == arrivals(offer(trace, workload=workload))
    assert [one.at_ns for one in found] == sorted(one.at_ns for one in found)


@pytest.mark.parametrize("workload", list(Workload))
def test_seeds_differ(workload: Workload, trace: str) -> None:
    assert arrivals(offer(trace, workload=workload, seed=1)) != arrivals(offer(trace, workload=workload, seed=2))


def test_a_window_holds_the_same_requests_at_every_speed(trace: str) -> None:
    calm, fast = arrivals(offer(trace)), arrivals(offer(trace, scale=2.0))
    assert names(calm) == names(fast)
    assert [one.at_ns // 2 for one in calm] == [one.at_ns for one in fast]


def test_batches_stay_whole_unless_they_are_spread(trace: str) -> None:
    whole, spread = arrivals(offer(trace)), arrivals(offer(trace, workload=Workload.SPREAD))
    assert len(whole) == 30
    assert {one.at_ns % BATCH_NS for one in whole} == {0}
    assert len({one.at_ns for one in spread}) > 20
    assert sorted(names(whole)) == sorted(names(spread))


def test_waves_of_embedding_jobs_come_on_top_of_the_window(trace: str) -> None:
    window, both = arrivals(offer(trace)), arrivals(offer(trace, workload=Workload.EMBEDDING))
    jobs = [one for one in both if one.kind is RequestKind.EMBEDDING]
    assert sorted(names([one for one in both if one.kind is RequestKind.LLM])) == sorted(names(window))
    assert jobs
    assert [one.at_ns for one in both] == sorted(one.at_ns for one in both)
    assert len(set(names(both))) == len(both), "every request has a name of its own"
    assert {model for each in engines(Workload.EMBEDDING, 1_024) for model in each.models} == {
        one.model for one in both
    }


def test_a_window_without_a_trace_is_drawn() -> None:
    found = arrivals(offer())
    assert found
    assert all(one.kind is RequestKind.LLM for one in found)
    assert {prompt_class(one.prompt_tokens) for one in found} >= {"<4K", "4-16K", "16-32K"}


def test_the_scale_of_mixed_is_how_many_not_how_fast() -> None:
    some, many = (arrivals(offer(workload=Workload.MIXED, scale=scale)) for scale in (0.5, 1.5))
    assert 2 < len(many) / len(some) < 4
    assert max(one.at_ns for one in many) < SHORT.mixed_s * NS_PER_S


@pytest.mark.parametrize("workload", list(Workload))
def test_the_limits_do_not_move_with_the_chunk_budget(workload: Workload, trace: str) -> None:
    one = arrivals(offer(trace, workload=workload))[0]
    limits = []
    for batch_tokens in (512, 2_048):
        for engine in engines(workload, batch_tokens):
            assert engine.capability.batch_tokens_max == batch_tokens
            limits.append(arrived(one, engine, holder=HolderId("h"), now_ns=0, slo=SLO).slo_ttft_ns)
    assert len(set(limits)) == 1
