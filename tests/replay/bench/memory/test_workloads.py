"""What the memory benchmark offers: the same for the same offer, within its window, as dense on two engines as on
eight."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from events.base import NS_PER_S, RequestKind
from replay.bench.memory.workloads import (
    LAP_IDS,
    WORKLOADS,
    Offer,
    arrivals,
    drawn_of,
    engines,
    kv_tokens_of,
    trace_of,
    unique_kv_bytes,
)

MINUTE = 60


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A minute in batches of three seconds, two requests each, every prompt with a prefix of its own."""
    path = tmp_path_factory.mktemp("traces") / "trace.jsonl"
    rows = [
        {
            "timestamp": batch * 3_000,
            "input_length": 600,
            "output_length": 5,
            "hash_ids": [2 * batch + one, 900 + batch],
        }
        for batch in range(20)
        for one in range(2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def offer(workload: str = "conversation", trace: str = "", **changes: object) -> Offer:
    made = Offer(workload=workload, seed=1, scale=1.0, seconds=MINUTE, engines=2, trace=trace)
    return replace(made, **changes)


@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_an_offer_is_the_same_every_time_in_order_within_its_window_and_other_for_another_seed(workload: str) -> None:
    made = arrivals(offer(workload))
    assert made == arrivals(offer(workload))
    assert made != arrivals(offer(workload, seed=2))
    assert [one.at_ns for one in made] == sorted(one.at_ns for one in made)
    assert all(0 <= one.at_ns < MINUTE * NS_PER_S for one in made)
    assert len({one.request_id for one in made}) == len(made)


@pytest.mark.parametrize("workload", ["conversation", "mixed"])
def test_twice_the_engines_get_about_twice_the_requests(workload: str) -> None:
    few, many = (arrivals(offer(workload, engines=engines, seconds=300)) for engines in (2, 4))
    assert 1.5 < len(many) / len(few) < 2.6


def test_a_window_longer_than_its_trace_goes_round_with_prefixes_that_nothing_has_cached(trace: str) -> None:
    """Four engines at scale 2 take 120 s of a trace of 60 s in a minute."""
    longer = offer(trace=trace, engines=4, scale=2.0)
    made = arrivals(longer)
    assert len(made) == 80
    assert "end to end 2 times" in drawn_of(longer)
    firsts = [one.prefix[0] for one in made]
    assert len(set(firsts)) == len(firsts)
    assert {first // LAP_IDS for first in firsts} <= {0, 1, 2}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1_000), scale=st.floats(0.2, 6.0))
def test_a_trace_keeps_its_pace_whatever_the_seed(trace: str, seed: int, scale: float) -> None:
    """20 batches of two a minute: within a batch of what the scale says."""
    made = arrivals(offer(trace=trace, engines=4, seed=seed, scale=scale))
    assert abs(len(made) - 40 * scale) <= 4


@pytest.mark.parametrize("workload", ["conversation", "coding", "mixed", "conversation_embedding"])
def test_what_tiers_are_parts_of_is_the_same_at_every_load(workload: str) -> None:
    sizes = {unique_kv_bytes(offer(workload, scale=scale)) for scale in (0.2, 1.0, 8.0)}
    assert len(sizes) == 1
    assert sizes.pop() > 0


def test_a_trace_that_is_gone_through_twice_counts_once(trace: str) -> None:
    """Every prompt of the trace has one full slice of 512 tokens, and half of the trace has half of them."""
    slice_bytes = 512 * 131_072
    assert unique_kv_bytes(offer(trace=trace, engines=4)) == 40 * slice_bytes
    assert unique_kv_bytes(offer(trace=trace, engines=16)) == 40 * slice_bytes
    assert unique_kv_bytes(offer(trace=trace, engines=2)) == pytest.approx(20 * slice_bytes, rel=0.1)


def test_coding_sessions_wait_for_answers_and_every_turn_names_one_of_its_own_session() -> None:
    made = arrivals(offer("coding", scale=2.0, seconds=600))
    sessions = {one.request_id: one.session for one in made}
    followers = [one for one in made if one.after]
    assert followers
    assert all(sessions[one.after] == one.session and one.think_ns >= 0 for one in followers if one.after in sessions)
    assert WORKLOADS["coding"].closed_loop


def test_variants_of_mixed_differ_in_embedding_jobs_alone() -> None:
    made = {times: arrivals(offer(f"mixed_embedding_x{times}", seconds=300)) for times in ("0", "2", "4")}
    counts = {times: sum(one.kind is RequestKind.EMBEDDING for one in each) for times, each in made.items()}
    assert counts["0"] == 0
    assert 0 < counts["2"] < counts["4"]


def test_an_engine_that_serves_two_models_has_the_less_kv() -> None:
    assert kv_tokens_of(WORKLOADS["conversation"]) == 426_788
    assert kv_tokens_of(WORKLOADS["mixed"]) == 318_298
    made = engines(WORKLOADS["mixed"], 3, batch_tokens=1_024, seqs_max=64)
    assert [one.engine_id for one in made] == ["e1", "e2", "e3"]
    assert {(one.capability.batch_tokens_max, one.capability.seqs_max) for one in made} == {(1_024, 64)}


def test_traces_are_found_below_a_folder_and_what_is_not_there_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "mooncake").mkdir()
    file = tmp_path / "mooncake" / "conversation_trace.other-half.jsonl.gz"
    file.touch()
    assert trace_of(WORKLOADS["conversation"], tmp_path) == str(file)
    assert trace_of(WORKLOADS["coding"], tmp_path) == ""
    assert trace_of(WORKLOADS["mixed"], tmp_path) == ""
    assert "no trace file" in drawn_of(offer("synthetic"))
