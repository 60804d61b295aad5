"""A live target that is a plain vLLM: its prompts have the trace's lengths and prefixes, and it tells its memory."""

import pytest

from events.base import NS_PER_MS, RequestKind
from events.engine import EngineKind, EngineMeasured
from replay.bench.memory.report import EngineModel, Origin, RunResult
from replay.bench.memory.workloads import Offer
from replay.workloads.base import Arrival
from services.engines.vllm import VLLMBackend
from services.runtime.config import EngineConfig
from services.target.options import TargetOptions
from services.target.run import offered
from tests.engine.conftest import TEXT_MODEL, Engines
from tests.engine.house import EMBEDDING_MODEL

OFFER = Offer(workload="conversation", seed=1, scale=1.0, seconds=20, engines=1)
PREFIX_TOKENS = 256


def arrivals(count: int, *, gap_ms: int, kind: RequestKind = RequestKind.LLM) -> list[Arrival]:
    """Prompts of which three quarters are the same in all."""
    return [
        Arrival(
            request_id=f"{kind}-{number}", at_ns=number * gap_ms * NS_PER_MS, prompt_tokens=1_024, output_tokens=6,
            prefix=(7, 8, 9, 100 + number), prefix_tokens=PREFIX_TOKENS, kind=kind,
        )
        for number in range(count)
    ]  # fmt: skip


async def ask(url: str, load: list[Arrival], options: TargetOptions) -> RunResult:
    return (await offered(url, load, options, offer=OFFER, salt="tests")).result


async def test_a_plain_vllm_is_asked_for_what_the_trace_says(engines: Engines) -> None:
    before = await _metrics(engines)
    result = await ask(engines.texts[0].url, arrivals(8, gap_ms=400), TargetOptions())
    after = await _metrics(engines)

    assert (result.engine, result.origin) == (EngineModel.LIVE, Origin.OBSERVED)
    assert (result.scores.requests, result.scores.finished) == (8, 8)
    assert result.scores.prompt_tokens == pytest.approx(8 * 1_024, rel=0.02)
    assert result.scores.kinds["llm"].requests == 8
    assert any(one.name == "occupancy" for one in result.series), "/metrics was read"
    assert result.scores.device_ns == result.scores.window_ns, "one engine"
    hits = after.prefix_hits_total - before.prefix_hits_total
    assert hits >= 7 * 2 * PREFIX_TOKENS, "prompts that share a prefix share its tokens"
    assert result.scores.cached_token_share == pytest.approx(7 * 3 * PREFIX_TOKENS / (8 * 1_024), abs=0.05)
    assert "requests for llama-3-8b were asked of " + TEXT_MODEL in result.notes


async def test_embeddings_are_asked_of_the_model_that_makes_them(engines: Engines) -> None:
    load = arrivals(3, gap_ms=200, kind=RequestKind.EMBEDDING)
    result = await ask(engines.embedding.url, load, TargetOptions(embedding_model=EMBEDDING_MODEL))

    assert result.scores.kinds["embedding"].requests == 3
    assert result.scores.finished == 3
    assert result.scores.tokens_per_s > 0


async def _metrics(engines: Engines) -> EngineMeasured:
    backend = VLLMBackend(
        EngineConfig(id="e", kind=EngineKind.VLLM, models=[TEXT_MODEL], url=engines.texts[0].url)
    )  # fmt: skip
    try:
        return await backend.metrics()
    finally:
        await backend.close()
