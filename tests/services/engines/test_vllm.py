"""The vLLM adapter on the wire: keys, faults, metrics, tokenising."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from events.base import NS_PER_S, EngineId, RequestId, SliceId, TenantId
from events.engine import EngineMeasured
from services.engines import vllm_metrics
from services.engines.base import EngineError
from services.engines.vllm import VLLMBackend, hinted
from services.runtime.config import EngineConfig
from services.vllm_plugin import hints
from tests.services.engines.test_backend_contract import call, collect
from tests.services.engines.vllm_double import METRICS, VllmDouble, vllm_double


@pytest.fixture
async def double() -> AsyncIterator[VllmDouble]:
    async with vllm_double() as running:
        yield running


@pytest.fixture
async def backend(double: VllmDouble) -> AsyncIterator[VLLMBackend]:
    opened = VLLMBackend(EngineConfig(id="e1", models=["tiny"], url=double.url, api_key="upstream"))
    yield opened
    await opened.close()


async def test_body_arrives_byte_for_byte_with_the_engines_own_key(double: VllmDouble, backend: VLLMBackend) -> None:
    body = b'{ "model":"tiny", "n" : 1,"seed":123456789012345678901234567890, "x":"\\u00e9\xc3\xa9" }'
    await collect(backend.submit(call(stream=False, body=body)))

    assert double.bodies == [body]
    assert double.headers[0]["authorization"] == "Bearer upstream"
    assert double.headers[0]["x-request-id"] == "r1"


@pytest.mark.parametrize("events", [0, 1, 3, 5])
async def test_stream_cut_before_its_end_is_a_lost_engine(
    double: VllmDouble, backend: VLLMBackend, events: int
) -> None:
    double.break_after = events
    with pytest.raises(EngineError) as error:
        await collect(backend.submit(call()))
    assert error.value.lost


async def test_stream_that_ends_politely_without_done_is_a_lost_engine(
    double: VllmDouble, backend: VLLMBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(double, "_events", lambda *_: ['{"choices":[{"index":0,"text":"a"}]}'])
    with pytest.raises(EngineError) as error:
        await collect(backend.submit(call()))
    assert error.value.lost


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_http_error_is_handed_on_as_it_is(double: VllmDouble, backend: VLLMBackend, status: int) -> None:
    double.refuse = (status, b'{"error":{"message":"its own words"}}')
    with pytest.raises(EngineError) as error:
        await collect(backend.submit(call()))

    assert (error.value.lost, error.value.status) == (False, status)
    assert error.value.body == b'{"error":{"message":"its own words"}}'


async def test_engine_that_says_nothing_in_time_is_lost(double: VllmDouble) -> None:
    double.hold = asyncio.Event()
    config = EngineConfig(id="e1", models=["tiny"], url=double.url, first_byte_timeout_ms=50)
    backend = VLLMBackend(config)
    with pytest.raises(EngineError) as error:
        await collect(backend.submit(call()))
    assert error.value.lost
    await backend.close()


async def test_version_health_and_description(double: VllmDouble, backend: VLLMBackend) -> None:
    await backend.health()
    assert await backend.version() == "0.32.0"
    described = await backend.describe()
    assert (described.kv_blocks, described.block_tokens, described.block_bytes) == (2_048, 32, 1)
    assert described.capability.context_tokens_max == 4_096
    assert backend.get_kv_schema() is None


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/v1/completions", b'{"model":"tiny","prompt":"ab","max_tokens":3}', [97, 98]),
        ("/v1/chat/completions", b'{"model":"tiny","messages":[{"role":"user","content":"ab"}]}', [97, 98]),
        ("/v1/embeddings", b'{"model":"tiny","input":"ab"}', [97, 98]),
        ("/v1/completions", b'{"model":"tiny","prompt":["ab","c"]}', None),
        ("/v1/completions", b'{"model":"tiny","prompt":[1,2]}', None),
    ],
)
async def test_tokenize_asks_for_single_prompts(
    double: VllmDouble, backend: VLLMBackend, path: str, body: bytes, tokens: list[int] | None
) -> None:
    assert await backend.tokenize(path, body) == tokens
    assert all(b"max_tokens" not in asked for asked in double.bodies)


def test_metrics_are_read_by_name() -> None:
    assert vllm_metrics.measured(EngineId("e1"), METRICS) == EngineMeasured(
        engine_id=EngineId("e1"), running=3, waiting=2, kv_used_ppm=250_000, preemptions_total=7,
        prefix_queries_total=1_000, prefix_hits_total=400, prompt_tokens_total=5_000, output_tokens_total=900,
        evictions_total=11,
    )  # fmt: skip
    assert vllm_metrics.cache_config(METRICS) == vllm_metrics.CacheConfig(2_048, 32)


@pytest.mark.parametrize("text", ["", "nonsense", "vllm:num_requests_running{} NaN\nvllm:cache_config_info{} 1\n"])
def test_strange_metrics_count_as_nothing(text: str) -> None:
    assert vllm_metrics.measured(EngineId("e1"), text).running == 0
    assert vllm_metrics.cache_config(text) == vllm_metrics.CacheConfig()


def test_inner_engines_add_up_and_the_fullest_counts() -> None:
    two = "".join(METRICS.replace('engine="0"', f'engine="{n}"').replace("0.25", f"0.{n + 3}") for n in range(2))
    measured = vllm_metrics.measured(EngineId("e1"), two)
    assert (measured.running, measured.kv_used_ppm) == (6, 400_000)
    assert vllm_metrics.cache_config(two).kv_blocks == 4_096


async def test_aborting_nobody_is_no_error(backend: VLLMBackend) -> None:
    await backend.abort(RequestId("nobody"))


async def test_an_engine_with_an_agent_gets_hints_beside_the_body_and_never_the_clients_own(double: VllmDouble) -> None:
    backend = VLLMBackend(EngineConfig(id="e1", models=["tiny"], url=double.url, agent=True))
    body = (
        b'{"model":"tiny","prompt":"a","kv_transfer_params":{"tidegate":{"tenant":"other"},"do_remote_prefill":true}}'
    )
    due_ns = time.monotonic_ns() + 10 * NS_PER_S
    asked = call(stream=False, body=body)._replace(
        path="/v1/completions", tenant="acme", priority=3, deadline_ns=due_ns, slo_tpot_ns=5, output_expected=7,
        slices=("a1" * 16, "b2" * 16), slice_tokens=256,
    )  # fmt: skip
    await collect(backend.submit(asked))
    await backend.close()

    sent = json.loads(double.bodies[0])
    assert (sent["model"], sent["prompt"]) == ("tiny", "a")
    assert list(sent["kv_transfer_params"]) == ["tidegate"]
    told = hints.of(sent["kv_transfer_params"])
    assert 0 < told.slack_ns <= 10 * NS_PER_S
    assert msgspec.structs.replace(told, slack_ns=0) == hints.Hints(
        request_id=RequestId("r1"), tenant=TenantId("acme"), priority=3, slo_tpot_ns=5, output_expected=7,
        slices=(SliceId("a1" * 16), SliceId("b2" * 16)),
    )  # fmt: skip


def test_hints_name_only_as_many_slices_as_an_engine_takes() -> None:
    many = call()._replace(slices=("a1" * 16,) * (hints.SLICES_MAX + 1))
    sent = json.loads(hinted(many))
    assert len(hints.of(sent["kv_transfer_params"]).slices) == hints.SLICES_MAX


def test_a_request_without_a_deadline_says_none() -> None:
    assert hints.of(json.loads(hinted(call()))["kv_transfer_params"]).slack_ns == 0


@pytest.mark.parametrize("agent", [True, False])
def test_an_engine_with_an_agent_reports_its_slices(agent: bool) -> None:
    config = EngineConfig(id="e1", models=["tiny"], url="http://x", agent=agent)
    assert VLLMBackend(config).get_capability().reports_slices is agent
