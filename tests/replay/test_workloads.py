"""Workloads: drawn from a seed alone, in order of time, and carried by a journal without loss."""

import os
import subprocess
import sys
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events import codec
from events.base import NS_PER_MS, NS_PER_S, EngineId, HolderId, PoolId, RequestKind
from events.log.base import Message
from events.request import RequestArrived, RequestFinished
from replay.costmodel import registered
from replay.workloads.base import Arrival
from replay.workloads.facts import arrivals_of, arrivals_to_messages, row_of, rows_of, rows_to_messages
from replay.workloads.mixed import EMBEDDING_MODEL, LLM_MODEL, MIXED_DEFAULT, Mixed, engines, mixed
from replay.workloads.slo import SLO_DEFAULT, Slo

ENGINE = registered("e1", [LLM_MODEL])
POOL = PoolId("p")


def test_the_default_workload_is_what_the_demo_promises() -> None:
    arrivals = mixed(1)
    assert 400 <= len(arrivals) <= 700
    assert arrivals[-1].at_ns <= (MIXED_DEFAULT.seconds + 2) * NS_PER_S
    assert {a.tenant for a in arrivals} == {"chat", "search", "agents"}
    assert {a.kind for a in arrivals} == {RequestKind.LLM, RequestKind.EMBEDDING}
    assert {a.model for a in arrivals} == {LLM_MODEL, EMBEDDING_MODEL}
    assert [e.engine_id for e in engines()] == ["e1", "e2"]


@pytest.mark.parametrize("seed", range(20))
def test_arrivals_come_in_order_with_ids_of_their_own(seed: int) -> None:
    arrivals = mixed(seed)
    assert [a.at_ns for a in arrivals] == sorted(a.at_ns for a in arrivals)
    assert len({a.request_id for a in arrivals}) == len(arrivals)
    for a in arrivals:
        assert a.prompt_tokens > 0
        assert len(a.prefix) * a.prefix_tokens <= a.prompt_tokens
        assert (a.output_tokens > 0) == (a.kind is RequestKind.LLM)
        assert a.output_tokens <= a.tokens_max or a.kind is RequestKind.EMBEDDING


def test_turns_of_a_session_grow_on_one_prefix_and_sessions_share_their_tenants() -> None:
    arrivals = [a for a in mixed(1) if a.kind is RequestKind.LLM]
    turns: dict[str, list[Arrival]] = {}
    for a in arrivals:
        turns.setdefault(a.session, []).append(a)
    assert max(map(len, turns.values())) >= 4
    for session in turns.values():
        for before, after in pairwise(session):
            assert after.prompt_tokens > before.prompt_tokens + before.output_tokens
            assert after.prefix[: len(before.prefix)] == before.prefix
    first = {a.tenant: a.prefix[0] for a in arrivals}
    assert len(set(first.values())) == 3, "no prefix crosses tenants"
    assert all(a.prefix[0] == first[a.tenant] for a in arrivals)


def test_a_seed_gives_one_workload_under_two_hash_seeds() -> None:
    script = "from replay.workloads.mixed import mixed; print(mixed(7))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1
    assert mixed(7) != mixed(8)


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        at_ns=st.integers(0, 10**12), request_id=st.just(""), kind=st.sampled_from(RequestKind),
        tenant=st.sampled_from(["a", "b"]), prompt_tokens=st.integers(1, 5_000), output_tokens=st.integers(0, 500),
        tokens_max=st.integers(0, 500), prefix=st.lists(st.integers(0, 2**100), max_size=8).map(tuple),
        prefix_tokens=st.sampled_from([16, 256, 512]), inputs=st.integers(1, 9), priority=st.integers(-3, 3),
        session=st.sampled_from(["", "s1"]), after=st.sampled_from(["", "r0"]), think_ns=st.integers(0, 10**12),
        slo=st.none(),
    ),
    max_size=20,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(ARRIVALS)
def test_a_workload_survives_its_journal_but_for_cut_units(drawn: list[Arrival]) -> None:
    arrivals = [
        msgspec.structs.replace(a, request_id=f"r{n}") for n, a in enumerate(sorted(drawn, key=lambda a: a.at_ns))
    ]
    whole = [msgspec.structs.replace(a, prefix=a.prefix[: a.prompt_tokens // a.prefix_tokens]) for a in arrivals]
    messages = list(arrivals_to_messages(arrivals, ENGINE, pool=POOL))
    assert arrivals_of(messages) == whole
    assert [m.seq for m in messages] == list(range(1, len(arrivals) + 1))


def test_an_envelope_survives_its_journal_and_a_recorded_limit_stays() -> None:
    asked = msgspec.structs.replace(mixed(1)[0], slo=Slo(ttft_min_ns=3 * NS_PER_S, ttft_factor=5, tpot_ns=7))
    (message,) = arrivals_to_messages([asked], ENGINE, pool=POOL)
    (back,) = arrivals_of([message])
    assert back.slo == asked.slo
    live = codec.decode(1, message.subject, message.body)[0].event
    assert isinstance(live, RequestArrived)
    live = msgspec.structs.replace(live, holder=HolderId("gw-1"))
    body = codec.encode(owner="gw-1", ts_ns=50, said=[codec.Said(event=live)])
    (recorded,) = arrivals_of([Message(1, message.subject, body, {})])
    assert recorded.slo is not None
    assert recorded.slo.ttft_ns(10, ENGINE) == recorded.slo.ttft_ns(100_000, ENGINE) == live.slo_ttft_ns


def test_a_log_without_traced_outputs_is_read_by_its_caps() -> None:
    (message,) = arrivals_to_messages(mixed(1)[:1], ENGINE, pool=POOL)
    arrived = codec.decode(1, message.subject, message.body)[0].event
    body = codec.encode(owner="gw-1", ts_ns=50, said=[codec.Said(event=arrived)])
    (arrival,) = arrivals_of([Message(1, message.subject, body, {})])
    assert isinstance(arrived, RequestArrived)
    assert arrival.output_tokens == max(1, arrived.tokens_max)


def test_a_row_says_what_memory_its_request_is_expected_to_hold() -> None:
    llm = Arrival(at_ns=0, request_id="a", prompt_tokens=1_000, output_tokens=24)
    job = Arrival(at_ns=0, request_id="b", kind=RequestKind.EMBEDDING, prompt_tokens=9_000, output_tokens=0, inputs=90)
    held, passing = row_of(llm, ENGINE).traced, row_of(job, ENGINE).traced
    assert (held.kv_cache_tokens, held.embedding_workspace_bytes) == (1_024, 0)
    assert held.kv_cache_bytes == 1_024 * ENGINE.block_bytes // ENGINE.block_tokens
    step = ENGINE.capability.batch_tokens_max
    assert (passing.kv_cache_bytes, passing.kv_cache_tokens) == (0, 0)
    assert passing.embedding_workspace_bytes == step * ENGINE.block_bytes // ENGINE.block_tokens, "a step's worth"


def test_a_recorded_log_is_a_trace_with_the_answers_and_the_slo_that_it_had() -> None:
    (message,) = arrivals_to_messages(mixed(1)[:1], ENGINE, pool=POOL)
    arrived = codec.decode(1, message.subject, message.body)[0].event
    assert isinstance(arrived, RequestArrived)
    seen = msgspec.structs.replace(arrived, holder=HolderId("gw-1"), slo_ttft_ns=7, slo_tpot_ns=8)
    done = RequestFinished(
        request_id=seen.request_id, engine_id=EngineId("e1"), prompt_tokens=9, output_tokens=77, kv_cache_tokens=86,
        ttft_ns=1, e2e_ns=2,
    )  # fmt: skip
    body = codec.encode(owner="gw-1", ts_ns=50 * NS_PER_S, said=[codec.Said(event=seen), codec.Said(event=done)])
    log = [Message(1, message.subject, body, {})]
    (arrival,) = arrivals_of(log)
    assert (arrival.at_ns, arrival.output_tokens) == (0, 77)
    assert arrival.slo is not None
    assert (arrival.slo.ttft_ns(100_000, ENGINE), arrival.slo.tpot_ns) == (7, 8)
    rewritten = list(rows_to_messages(rows_of(log), pool=POOL))
    assert arrivals_of(rewritten) == [arrival], "written as a trace it says the same"
    assert b"gw-1" not in rewritten[0].body
    assert rows_of(rewritten)[0].traced.kv_cache_tokens == 86


def test_the_slo_is_a_second_or_twice_the_unloaded_time() -> None:
    assert SLO_DEFAULT.ttft_ns(100, ENGINE) == NS_PER_S
    assert SLO_DEFAULT.ttft_ns(100_000, ENGINE) > 2 * NS_PER_S
    assert Slo(ttft_min_ns=1, ttft_factor=4).ttft_ns(9_000, ENGINE) == 2 * Slo(ttft_min_ns=1).ttft_ns(9_000, ENGINE)
    assert Slo(ttft_min_ns=7).ttft_ns(9_000, msgspec.structs.replace(ENGINE, step=None)) == 7
    assert SLO_DEFAULT.tpot_ns == 50 * NS_PER_MS


def test_parameters_change_the_workload() -> None:
    assert all(a.kind is RequestKind.LLM for a in mixed(1, Mixed(waves=0)))
    assert all(a.kind is RequestKind.EMBEDDING for a in mixed(1, Mixed(sessions=0, bursts=0)))
