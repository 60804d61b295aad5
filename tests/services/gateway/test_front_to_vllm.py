"""The HTTP front door towards a vLLM: what the engine gets, what becomes of its answers, and where prompts are not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from events.request import AbortReason, RequestAborted
from services.runtime.config import EngineConfig, ModelConfig, TenantConfig
from tests.services.engines.vllm_double import VllmDouble, vllm_double
from tests.services.gateway.http_rig import CHAT, arrival, byte_tokenizer, config_of, house
from tests.services.gateway.rig import admit_to, heard


@pytest.fixture
async def double() -> AsyncIterator[VllmDouble]:
    async with vllm_double() as running:
        yield running


def vllm_config(folder: Path, double: VllmDouble, *, engine: dict[str, Any] | None = None, **more: Any) -> Any:
    engines = [EngineConfig(id="e1", models=["tiny"], url=double.url, **(engine or {}))]
    return config_of(folder, engines=engines, **more)


CHANGES: list[tuple[bytes, dict[str, Any], Callable[[str], bytes]]] = [
    (
        b'{"model":"tiny", "big":123456789012345678901234567890, "e":"\\u00e9", "messages":[ {"role":"user"} ]}',
        {},
        lambda salt: b'{"model":"tiny","big":123456789012345678901234567890,"e":"\\u00e9",'
        b'"messages":[ {"role":"user"} ],"cache_salt":"' + salt.encode() + b'"}',
    ),
    (
        b'{"model":"tiny","messages":[],"cache_salt":"mine","priority":5}',
        {},
        lambda salt: b'{"model":"tiny","messages":[],"cache_salt":"' + salt.encode() + b'"}',
    ),
    (
        b'{"model":"tiny","messages":[],"priority":5}',
        {"priority": True},
        lambda salt: b'{"model":"tiny","messages":[],"cache_salt":"' + salt.encode() + b'","priority":5}',
    ),
    (
        b'{"model":"tiny","messages":[],"stream":true,"stream_options":{"x":1.50}}',
        {},
        lambda salt: b'{"model":"tiny","messages":[],"stream":true,"stream_options":{"x":1.50,"include_usage":true},'
        b'"cache_salt":"' + salt.encode() + b'"}',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "engine", "expected"), CHANGES)
async def test_engine_gets_the_clients_body_but_for_the_listed_fields(
    tmp_path: Path, double: VllmDouble, sent: bytes, engine: dict[str, Any], expected: Callable[[str], bytes]
) -> None:
    async with house(vllm_config(tmp_path, double, engine=engine, secret="s"), decide=admit_to("e1")) as running:
        answered = await running.post("/v1/chat/completions", sent, {"authorization": "Bearer client-secret"})
        assert answered.status == 200

    [got] = double.bodies
    salt = got.split(b'"cache_salt":"')[1].split(b'"')[0].decode()
    assert len(salt) == 32
    assert got == expected(salt)
    assert "authorization" not in double.headers[0], "the client's key is not the engine's"


async def test_engines_stream_passes_untouched(tmp_path: Path, double: VllmDouble) -> None:
    asking = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with house(vllm_config(tmp_path, double), decide=admit_to("e1")) as running:
        answered = await running.post("/v1/chat/completions", asking)
        plain = await running.post("/v1/chat/completions", {**CHAT, "stream": True})
        direct = await running.session.post(f"{double.url}/v1/chat/completions", json=asking)
        assert answered.body == await direct.read()
        events = answered.body.split(b"\n\n")
        assert plain.body == b"\n\n".join(event for event in events if b'"usage"' not in event)


async def test_client_that_disconnects_aborts_the_engines_work(tmp_path: Path, double: VllmDouble) -> None:
    double.hold = asyncio.Event()
    async with house(vllm_config(tmp_path, double), decide=admit_to("e1")) as running:
        url = f"{running.gateway.url}/v1/chat/completions"
        async with running.session.post(url, json={**CHAT, "stream": True}) as response:
            await response.content.readany()
            response.close()
        await asyncio.wait_for(double.client_left.wait(), 5)
        aborted = (await heard(running.log, lambda event: isinstance(event, RequestAborted))).event
        assert isinstance(aborted, RequestAborted)
        assert aborted.reason is AbortReason.CLIENT_GONE


async def test_engine_lost_in_the_middle_ends_the_stream_with_a_clear_error(tmp_path: Path, double: VllmDouble) -> None:
    double.break_after = 2
    async with house(vllm_config(tmp_path, double), decide=admit_to("e1")) as running:
        answered = await running.post("/v1/chat/completions", {**CHAT, "stream": True})

    assert answered.status == 200
    events = answered.body.split(b"\n\n")
    assert events[-3].startswith(b'data: {"error":{"message":')
    assert events[-2] == b"data: [DONE]"


async def test_engine_lost_before_the_first_token_is_tried_once_more(tmp_path: Path, double: VllmDouble) -> None:
    async with vllm_double() as dead:
        await dead.kill()
        engines = [
            EngineConfig(id="e1", models=["tiny"], url=dead.url),
            EngineConfig(id="e2", models=["tiny"], url=double.url),
        ]
        async with house(config_of(tmp_path, engines=engines), decide=admit_to("e1", "e2")) as running:
            answered = await running.post("/v1/chat/completions", {**CHAT, "stream": True})
            assert (answered.status, answered.headers["x-tidegate-engine"]) == (200, "e2")

        async with house(config_of(tmp_path, engines=engines[:1]), decide=admit_to("e1", "e1")) as running:
            answered = await running.post("/v1/chat/completions", CHAT)
            assert (answered.status, answered.code) == (503, "engine_lost")


async def test_engines_own_error_is_the_clients(tmp_path: Path, double: VllmDouble) -> None:
    double.refuse = (422, b'{"error":{"message":"its own"}}')
    async with house(vllm_config(tmp_path, double), decide=admit_to("e1")) as running:
        answered = await running.post("/v1/chat/completions", CHAT)
        assert (answered.status, answered.body) == (422, b'{"error":{"message":"its own"}}')


async def test_tokens_are_asked_from_the_engine_where_configured(tmp_path: Path, double: VllmDouble) -> None:
    models = [ModelConfig(name="tiny", tokenizer="engine")]
    async with house(vllm_config(tmp_path, double, models=models), decide=admit_to("e1")) as running:
        await running.post("/v1/chat/completions", CHAT)
        arrived = await arrival(running)
        assert (arrived.prompt_tokens, arrived.estimated) == (len("hello tide"), False)


# Prompt text stays in the gateway.

SECRETS = ["purple-elephant", "my-session-name", "key-of-the-client", "sk-upstream"]


async def test_prompt_text_and_keys_are_written_nowhere(
    tmp_path: Path, double: VllmDouble, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    folder = byte_tokenizer(tmp_path / "tokenizer")
    config = vllm_config(
        tmp_path / "state", double, engine={"api_key": "sk-upstream"},
        models=[ModelConfig(name="tiny", tokenizer=str(folder))],
        tenants=[TenantConfig(name="a", api_keys=["key-of-the-client"])],
    )  # fmt: skip
    long = "purple-elephant " * 400
    chat = {"model": "tiny", "messages": [{"role": "user", "content": long}], "session_id": "my-session-name"}
    key = {"authorization": "Bearer key-of-the-client"}
    async with house(config, decide=admit_to("e1", "e1")) as running:
        said: list[bytes] = []
        for body in (
            {**chat, "stream": True},
            {**chat, "tools": [{"name": long}]},
            {**chat, "max_tokens": "purple-elephant"},
            {**chat, "model": "purple-elephant"},
            {"model": "tiny", "messages": "purple-elephant"},
            b'{"model":"tiny","messages":["purple-elephant',
        ):
            answered = await running.post("/v1/chat/completions", body, key)
            said.append(answered.body)
        double.break_after = 1
        said.append((await running.post("/v1/chat/completions", {**chat, "stream": True}, key)).body)
        said.append(
            (await running.post("/v1/chat/completions", chat, {"authorization": "Bearer my-session-name"})).body
        )
        said.append((await running.get("/metrics")).body)
        arrived = await arrival(running)
        assert arrived.slices, "the prompt was long enough to be fingerprinted"
    said += [message.body + message.subject.encode() async for batch in running.log.read() for message in batch]
    said += [path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()]
    said.append(caplog.text.encode())

    assert not [secret for secret in SECRETS if any(secret.encode() in each for each in said)]
