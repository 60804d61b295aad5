"""The HTTP front door from outside: answers, errors in OpenAI's shape, and what the log says of both."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from events import codec, subjects
from events.base import NS_PER_S, Event, PoolId
from events.control import Ticked
from events.decisions import RejectReason, RequestRejected
from events.request import RequestArrived, RequestFinished
from services.engines.base import Call, Chunk
from services.engines.simulated import SimulatedBackend
from services.runtime.config import EngineConfig, ModelConfig, OnLogDown, TenantConfig
from tests.services.gateway.http_rig import CHAT, SIMULATED, House, arrival, config_of, house
from tests.services.gateway.rig import Decide, SwitchLog, heard, records

SPEED = 20


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[House]:
    """A gateway with one simulated engine and the real admission."""
    async with house(config_of(tmp_path), speed=SPEED) as running:
        yield running


async def test_openai_client_streams_a_chat(served: House) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.gateway.url}/v1", api_key="none") as client:
        words = []
        stream = await client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
        async for chunk in stream:
            words += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            usage = chunk.usage
        listed = [model.id for model in (await client.models.list()).data]

    assert usage is not None
    assert len("".join(words).split()) == usage.completion_tokens <= 8
    assert listed == ["tiny"]
    finished = (await heard(served.log, lambda event: isinstance(event, RequestFinished))).event
    assert isinstance(finished, RequestFinished)
    assert finished.output_tokens == usage.completion_tokens


async def test_openai_client_gets_whole_answers_and_vectors(served: House) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.gateway.url}/v1", api_key="none") as client:
        chat = await client.chat.completions.create(**CHAT)
        text = await client.completions.create(model="tiny", prompt="hello", max_tokens=4)
        vectors = await client.embeddings.create(model="tiny", input=["a", "b"])

    assert chat.choices[0].message.content
    assert text.usage is not None
    assert 1 <= text.usage.completion_tokens <= 4
    assert [len(each.embedding) for each in vectors.data] == [16, 16]


async def test_answer_names_its_request_and_engine(served: House) -> None:
    answered = await served.post("/v1/chat/completions", CHAT)
    arrived = (await heard(served.log, lambda event: isinstance(event, RequestArrived))).event

    assert answered.status == 200
    assert answered.headers["x-tidegate-engine"] == "e1"
    assert isinstance(arrived, RequestArrived)
    assert answered.headers["x-request-id"] == arrived.request_id
    assert "x-tidegate-decided" not in answered.headers


async def test_the_engine_is_told_what_the_request_is_worth(served: House, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Call] = []
    submit = SimulatedBackend.submit

    def seen(self: SimulatedBackend, call: Call) -> AsyncIterator[Chunk]:
        calls.append(call)
        return submit(self, call)

    monkeypatch.setattr(SimulatedBackend, "submit", seen)
    before_ns = time.monotonic_ns() * SPEED
    slo = {"x-llm-d-slo-ttft-ms": "30000", "x-llm-d-slo-tpot-ms": "40"}
    answered = await served.post("/v1/chat/completions", {**CHAT, "priority": 3}, slo)
    arrived = (await heard(served.log, lambda event: isinstance(event, RequestArrived))).event

    assert answered.status == 200
    assert isinstance(arrived, RequestArrived)
    [call] = calls
    assert (call.tenant, call.priority, call.slo_tpot_ns) == (arrived.tenant, arrived.priority, 40_000_000)
    assert 0 < call.deadline_ns - before_ns - 30 * NS_PER_S < 60 * NS_PER_S
    assert call.output_expected > 0


async def test_usage_event_is_kept_from_a_client_that_did_not_ask(served: House) -> None:
    plain = await served.post("/v1/chat/completions", {**CHAT, "stream": True})
    asking = await served.post(
        "/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    )

    assert plain.headers["content-type"].startswith("text/event-stream")
    assert b"usage" not in plain.body
    assert b'"usage"' in asking.body
    assert plain.body.endswith(b"data: [DONE]\n\n")


# Bad input.

BAD_BODIES: list[tuple[str, Any, int, str]] = [
    ("/v1/chat/completions", b"{nope", 400, "invalid_json"),
    ("/v1/chat/completions", b"", 400, "invalid_json"),
    ("/v1/chat/completions", b"[1]", 400, "invalid_type"),
    ("/v1/chat/completions", b'{"model":"tiny","messages":[{"content":"\xff"}]}', 400, "invalid_json"),
    ("/v1/chat/completions", {"messages": []}, 400, "missing_required_parameter"),
    ("/v1/chat/completions", {"model": 7, "messages": []}, 400, "invalid_type"),
    ("/v1/chat/completions", {"model": "tiny"}, 400, "missing_required_parameter"),
    ("/v1/chat/completions", {**CHAT, "model": "nobody"}, 404, "model_not_found"),
    ("/v1/completions", {"model": "tiny", "prompt": 5}, 400, "invalid_type"),
    ("/v1/chat/completions", {"model": "tiny", "messages": "hi"}, 400, "invalid_type"),
    ("/v1/completions", {"model": "tiny", "prompt": []}, 400, ""),
    ("/v1/completions", {"model": "tiny", "prompt": [1, "a"]}, 400, ""),
    ("/v1/completions", {"model": "tiny", "prompt": [-1]}, 400, ""),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": -1}, 400, ""),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "n": 0}, 400, ""),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "priority": 2**40}, 400, ""),
    ("/v1/embeddings", {"model": "tiny"}, 400, "missing_required_parameter"),
    ("/v1/embeddings", {"model": "tiny", "input": ["a"] * 3000}, 400, ""),
    ("/v1/nothing", {}, 404, "not_found"),
]


@pytest.mark.parametrize(("path", "body", "status", "code"), BAD_BODIES)
async def test_bad_body_is_refused_in_openais_shape(
    served: House, path: str, body: Any, status: int, code: str
) -> None:
    answered = await served.post(path, body)

    assert answered.status == status
    error = answered.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert (error["code"] or "") == code
    assert not any(isinstance(each.event, RequestArrived) for each in await records(served.log))


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-llm-d-slo-ttft-ms", "soon"),
        ("x-llm-d-slo-ttft-ms", "-5"),
        ("x-llm-d-slo-ttft-ms", "0"),
        ("x-llm-d-slo-tpot-ms", "1e3"),
        ("x-slo-ttft-ms", ""),
        ("x-slo-tpot-ms", "99999999999"),
        ("x-llm-d-inference-objective", "two words"),
        ("x-gateway-inference-fairness-id", "x" * 65),
    ],
)
async def test_bad_slo_header_is_named_with_what_is_allowed(served: House, header: str, value: str) -> None:
    answered = await served.post("/v1/chat/completions", CHAT, {header: value})

    assert answered.status == 400
    assert answered.json["error"]["param"] == header
    assert "allowed" in answered.json["error"]["message"]


async def test_body_that_is_too_large_is_413_however_it_comes(tmp_path: Path) -> None:
    async with house(config_of(tmp_path, gateway={"body_bytes_max": 1_000})) as running:
        body = {**CHAT, "user": "x" * 2_000}
        answered = await running.post("/v1/chat/completions", body)
        assert (answered.status, answered.code) == (413, "body_too_large")

        async def chunked() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b" " * 100

        async with running.session.post(f"{running.gateway.url}/v1/chat/completions", data=chunked()) as response:
            assert response.status == 413


async def test_wrong_method_is_405(served: House) -> None:
    answered = await served.get("/v1/chat/completions")
    assert (answered.status, answered.code) == (405, "method_not_allowed")


@pytest.mark.parametrize("key", ["", "Bearer wrong", "Bearer ", "Basic key-a", "Bearer kéy"])
async def test_unknown_key_is_401_when_tenants_are_configured(tmp_path: Path, key: str) -> None:
    tenants = [TenantConfig(name="a", api_keys=["key-a"])]
    async with house(config_of(tmp_path, tenants=tenants)) as running:
        headers = {"authorization": key} if key else {}
        assert (await running.get("/v1/models", headers)).status == 401
        answered = await running.post("/v1/chat/completions", CHAT, headers)
        assert (answered.status, answered.code) == (401, "invalid_api_key")
        assert (await running.get("/health")).status == 200


async def test_tenant_comes_from_the_key_never_from_the_clients_word(tmp_path: Path) -> None:
    tenants = [TenantConfig(name="a", api_keys=["key-a"]), TenantConfig(name="b", api_keys=["key-b"], priority=3)]
    async with house(config_of(tmp_path, tenants=tenants)) as running:
        headers = {"authorization": "Bearer key-b", "x-llm-d-inference-fairness-id": "a"}
        assert (await running.post("/v1/chat/completions", {**CHAT, "user": "a"}, headers)).status == 200
        arrived = await arrival(running)
        assert (arrived.tenant, arrived.priority) == ("b", 3)


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({}, {}, {"slo_ttft_ns": 60_000_000_000, "slo_tpot_ns": 50_000_000, "priority": 0, "objective": ""}),
        ({"x-llm-d-slo-ttft-ms": "250", "x-slo-ttft-ms": "9"}, {}, {"slo_ttft_ns": 250_000_000}),
        ({"x-slo-ttft-ms": "1500.5"}, {}, {"slo_ttft_ns": 1_500_500_000}),
        ({"x-llm-d-slo-tpot-ms": "20"}, {}, {"slo_tpot_ns": 20_000_000}),
        ({"x-gateway-inference-objective": "fast"}, {}, {"objective": "fast", "priority": 7}),
        ({"x-llm-d-inference-objective": "fast"}, {"priority": 2}, {"priority": -2}),
        ({}, {"max_completion_tokens": 5}, {"tokens_max": 5}),
        ({}, {"max_tokens": None}, {"tokens_max": 0}),
        ({}, {"n": 3}, {"tokens_max": 24}),
    ],
)
async def test_what_a_client_asks_for_stands_in_the_arrival(
    tmp_path: Path, headers: dict[str, str], body: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = config_of(tmp_path, gateway={"objectives": {"fast": 7}})
    async with house(config, decide=rejecting(RejectReason.QUEUE_FULL)) as running:
        await running.post("/v1/chat/completions", {**CHAT, **body}, headers)
        arrived = await arrival(running)
        assert {name: getattr(arrived, name) for name in expected} == expected
        assert arrived.deadline_ns >= arrived.slo_ttft_ns


async def test_default_slo_grows_with_the_prompts_unloaded_ttft(tmp_path: Path) -> None:
    models = [ModelConfig(name="tiny", slo_ttft_ms=1, slo_ttft_factor=3)]
    async with house(config_of(tmp_path, models=models), decide=rejecting(RejectReason.QUEUE_FULL)) as running:
        await running.post("/v1/completions", {"model": "tiny", "prompt": [7] * 30_000})
        long = await arrival(running)
        assert 2_000_000_000 < long.slo_ttft_ns < 6_000_000_000, "3 x what an H100 takes for 30,000 tokens"


async def test_pools_time_is_that_of_its_ticks_not_the_walls(tmp_path: Path) -> None:
    log = SwitchLog(PoolId("p"))
    old_ns = 1_000 * NS_PER_S
    tick = codec.encode(owner="c", ts_ns=old_ns, said=[codec.Said(event=Ticked(n=1))])
    await log.append(subjects.fact(log.pool, "clock", "ticked"), tick)
    async with house(config_of(tmp_path), decide=rejecting(RejectReason.QUEUE_FULL), log=log) as running:
        await running.post("/v1/chat/completions", CHAT, {"x-slo-ttft-ms": "1000"})
        arrived = await arrival(running)
        assert old_ns < arrived.deadline_ns < old_ns + 60 * NS_PER_S

        later = codec.encode(owner="c", ts_ns=2 * old_ns, said=[codec.Said(event=Ticked(n=2))])
        await log.append(subjects.fact(log.pool, "clock", "ticked"), later)
        while arrived.deadline_ns < 2 * old_ns:
            answered = await running.post("/v1/chat/completions", CHAT, {"x-slo-ttft-ms": "1000"})
            request_id = answered.headers["x-request-id"]
            said = await heard(log, lambda event, wanted=request_id: getattr(event, "request_id", "") == wanted)
            assert isinstance(said.event, RequestArrived)
            arrived = said.event


def rejecting(reason: RejectReason, retry_after_ns: int = 2_000_000_000) -> Decide:
    def decide(event: Event) -> list[Event]:
        if not isinstance(event, RequestArrived):
            return []
        return [RequestRejected(request_id=event.request_id, reason=reason, retry_after_ns=retry_after_ns)]

    return decide


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (RejectReason.QUEUE_FULL, 429, "rejected_queue_full"),
        (RejectReason.NO_ENGINE, 503, "rejected_no_engine"),
        (RejectReason.TOO_LONG, 400, "context_length_exceeded"),
    ],
)
async def test_rejection_reaches_the_client(tmp_path: Path, reason: RejectReason, status: int, code: str) -> None:
    async with house(config_of(tmp_path), decide=rejecting(reason), speed=1) as running:
        answered = await running.post("/v1/chat/completions", {**CHAT, "stream": True})

        assert (answered.status, answered.code) == (status, code)
        assert answered.headers["x-llm-d-request-dropped-reason"] == reason
        if status != 400:
            assert answered.headers["retry-after"] == "2"
        assert answered.headers["x-request-id"]


async def test_full_gateway_is_503_with_retry_after(tmp_path: Path) -> None:
    async with house(config_of(tmp_path, gateway={"requests_max": 0})) as running:
        answered = await running.post("/v1/chat/completions", CHAT)
        assert (answered.status, answered.code, answered.headers["retry-after"]) == (503, "requests_max", "1")


async def test_health_says_why_and_metrics_count(served: House) -> None:
    await served.post("/v1/chat/completions", CHAT)
    await served.post("/v1/chat/completions", b"{")
    metrics = (await served.get("/metrics")).body
    assert b'tidegate_gateway_requests_total{model="tiny",outcome="finished"} 1.0' in metrics
    assert b'tidegate_gateway_turned_away_total{status="400"} 1.0' in metrics
    assert b"gen_ai_server_time_to_first_token_seconds_bucket" in metrics
    assert (await served.get("/health")).json["status"] == "ok"

    served.log.off = True
    served.gateway.holder._say_beat()
    await served.gateway.holder.health.up_until(asyncio.Future())
    unwell = await served.get("/health")
    assert (unwell.status, unwell.json["reasons"]) == (503, ["the event log takes nothing"])
    refused = await served.post("/v1/chat/completions", CHAT)
    assert (refused.status, refused.code) == (503, "log_down")
    served.log.off = False


async def test_gateway_without_engines_is_not_healthy(tmp_path: Path) -> None:
    async with house(config_of(tmp_path, engines=())) as running:
        unwell = await running.get("/health")
        assert (unwell.status, unwell.json["reasons"]) == (503, ["no engine is ready"])
        assert (await running.post("/v1/chat/completions", CHAT)).status == 503


async def test_undecided_answer_is_marked(tmp_path: Path) -> None:
    async with house(config_of(tmp_path, gateway={"on_log_down": OnLogDown.PASS})) as running:
        running.log.off = True
        running.gateway.holder._say_beat()
        await running.gateway.holder.health.up_until(asyncio.Future())
        answered = await running.post("/v1/chat/completions", CHAT)
        assert (answered.status, answered.headers["x-tidegate-decided"]) == (200, "no")
        running.log.off = False


async def test_engine_list_is_exchanged_without_a_restart(served: House) -> None:
    other = EngineConfig(id="e2", kind=SIMULATED.kind, models=["tiny", "second"], embedding=True)
    await served.gateway.reload([other])

    answered = await served.post("/v1/chat/completions", {**CHAT, "model": "second"})
    assert (answered.status, answered.headers["x-tidegate-engine"]) == (200, "e2")
    assert (await served.get("/v1/models/second")).status == 200
    assert (await served.get("/v1/models/none")).code == "model_not_found"
