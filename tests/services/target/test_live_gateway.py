"""A workload on a real gateway with simulated engines: what its client sees, and what the gateway's own log says."""

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from msgspec.structs import replace

from events.base import NS_PER_MS, Event, RequestKind
from events.decisions import RejectReason, RequestRejected
from events.request import RequestArrived
from replay.bench.memory.report import EngineModel, Origin
from replay.bench.memory.workloads import Offer
from replay.score import NS_PER_HOUR
from replay.workloads.base import Arrival
from services.runtime.config import ModelConfig
from services.runtime.config_sources import ConfigError
from services.target.options import TargetOptions
from services.target.run import Found, offered
from tests.services.gateway.http_rig import House, config_of, house
from tests.services.gateway.rig import Decide, admitted

OFFER = Offer(workload="conversation", seed=1, scale=1.0, seconds=1, engines=1)
OPTIONS = TargetOptions(embedding_model="tiny", drain_s=20)


def arrivals(count: int, *, gap_ms: int = 10, output: int = 8) -> list[Arrival]:
    return [
        Arrival(
            request_id=f"r{number}", at_ns=number * gap_ms * NS_PER_MS, model="llama", prompt_tokens=600,
            output_tokens=output, prefix=(1, number % 3), prefix_tokens=256,
            kind=RequestKind.EMBEDDING if number % 5 == 4 else RequestKind.LLM,
        )
        for number in range(count)
    ]  # fmt: skip


def gateway(folder: Path, decide: Decide | None = None) -> AbstractAsyncContextManager[House]:
    settings = config_of(folder, gateway={"workload_hints": True}, models=[ModelConfig(name="tiny")])
    return house(settings, decide=decide, speed=1)


async def ask(running: House, load: list[Arrival], options: TargetOptions = OPTIONS) -> Found:
    return await offered(running.gateway.url, load, options, offer=OFFER, log=running.log, salt="tests")


async def test_a_live_run_has_the_result_that_a_simulated_one_has(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    async with gateway(tmp_path) as running:
        found = await offered(
            running.gateway.url, arrivals(20), OPTIONS, offer=OFFER, load=1.2, log=running.log,
            on_progress=lambda *progress: heard.append(progress),
        )  # fmt: skip
    result, scores = found.result, found.result.scores
    assert (result.engine, result.origin, result.load, result.digest) == (EngineModel.LIVE, Origin.OBSERVED, 1.2, "")
    assert not found.stopped
    assert (scores.requests, scores.finished) == (20, 20)
    assert {kind: part.requests for kind, part in scores.kinds.items()} == {"llm": 16, "embedding": 4}
    assert None not in (scores.ttft_p50_ns, scores.ttft_p99_ns, scores.tpot_p50_ns, scores.tpot_p99_ns)
    assert heard[-1] == (20, 20)
    assert "requests for llama were asked of tiny" in result.notes


async def test_what_its_policies_predicted_and_its_engines_held_comes_from_its_log(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        found = await ask(running, arrivals(30, gap_ms=40))  # More than a second: engines are measured meanwhile.
    scores = found.result.scores
    assert scores.kv_tokens_error.requests == 24, "every answer of an LLM stands beside its prediction"
    assert scores.device_ns == scores.window_ns, "one engine"
    assert {one.name for one in found.result.series} >= {
        "slo_attainment", "occupancy", "held_llm", "held_embedding", "memory_llm", "memory_embedding",
    }  # fmt: skip
    assert not any("are not known" in note for note in found.result.notes)
    assert any(note.startswith("predicted beside actual: KV tokens off by") for note in found.result.notes)


async def test_prompts_have_the_length_of_the_trace_by_the_target_s_own_count(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        found = await ask(running, arrivals(10))
    asked = 8 * 600  # The other two are embeddings.
    assert found.result.scores.prompt_tokens == pytest.approx(asked, rel=0.02)
    [said] = [note for note in found.result.notes if "by the target's count" in note]
    assert "OFF" not in said


async def test_a_rejection_is_counted_by_its_reason(tmp_path: Path) -> None:
    def decide(event: Event) -> list[Event]:
        if not isinstance(event, RequestArrived):
            return []
        if event.request_id.rpartition(".")[0] in ours:
            return [RequestRejected(request_id=event.request_id, reason=RejectReason.QUEUE_FULL)]
        return [admitted(event)]  # A probe: without an unloaded pace there is no SLO.

    load = arrivals(6)
    ours = {one.request_id for one in load}
    async with gateway(tmp_path, decide=decide) as running:
        found = await ask(running, load)
    assert found.result.scores.rejected == {str(RejectReason.QUEUE_FULL): 6}
    assert found.result.scores.goodput_per_s == 0


async def test_a_client_that_is_held_up_says_so_and_counts_it_against_the_target(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        found = await ask(running, arrivals(12, gap_ms=1, output=20), replace(OPTIONS, in_flight_max=1))
    assert any(note.startswith("NOT ON TIME") for note in found.result.notes)
    assert (found.result.scores.ttft_p99_ns or 0) > 300 * NS_PER_MS, "counted from when it was due"


async def test_an_interrupted_run_leaves_what_was_due_until_then(tmp_path: Path) -> None:
    begun = asyncio.Event()
    later = [replace(one, request_id=f"later{one.request_id}", at_ns=NS_PER_HOUR) for one in arrivals(6)]
    async with gateway(tmp_path) as running:
        task = asyncio.create_task(
            offered(
                running.gateway.url, [*arrivals(6), *later], OPTIONS, offer=OFFER,
                on_progress=lambda done, _of: begun.set() if done == 6 else None,
            )
        )  # fmt: skip
        await begun.wait()
        task.cancel()
        found = await task
    assert found.stopped
    assert found.result.scores.requests == 6
    assert any(note.startswith("interrupted: 6 of 12") for note in found.result.notes)


async def test_nobody_there_is_one_line() -> None:
    with pytest.raises(ConfigError, match="nothing answers at"):
        await offered("http://127.0.0.1:1", arrivals(1), OPTIONS, offer=OFFER)


async def test_a_model_that_is_not_served_is_refused_by_name(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        with pytest.raises(ConfigError, match="serves no 'llama'"):
            await ask(running, arrivals(1), TargetOptions(model="llama"))


async def test_embeddings_are_left_out_and_said_where_no_model_is_named(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        found = await ask(running, arrivals(10), TargetOptions())
    assert found.result.scores.requests == 8
    assert any(note.startswith("2 embedding requests were left out") for note in found.result.notes)
