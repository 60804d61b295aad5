"""The vLLM adapter against a real vLLM: what it says of itself, what it answers, and that closing aborts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from events.base import EngineId, ModelId, RequestId, RequestKind
from services.engines.base import Call, Chunk, EngineError
from services.engines.vllm import VLLMBackend
from services.runtime.config import EngineConfig
from tests.engine.conftest import TEXT_MODEL, Engines
from tests.engine.house import EMBEDDING_MODEL
from tests.engine.pace import quiet, slow_motion
from tests.engine.vllm_server import BLOCK_TOKENS, CONTEXT_TOKENS_MAX, VllmServer

CHAT = "/v1/chat/completions"
LONG_TOKENS = 4_000


@pytest.fixture
async def text(engines: Engines) -> AsyncIterator[VLLMBackend]:
    backend = _backend(engines.texts[0], TEXT_MODEL)
    yield backend
    await backend.close()


@pytest.fixture
async def embedding(engines: Engines) -> AsyncIterator[VLLMBackend]:
    backend = _backend(engines.embedding, EMBEDDING_MODEL)
    yield backend
    await backend.close()


async def test_engine_tells_its_blocks_and_context(text: VLLMBackend) -> None:
    registered = await text.describe()

    assert registered.kv_blocks > 0
    assert registered.block_tokens == BLOCK_TOKENS
    assert registered.capability.context_tokens_max == CONTEXT_TOKENS_MAX
    assert await text.version() == "0.32.0"


@pytest.mark.parametrize("stream", [True, False])
async def test_usage_is_what_the_engine_counted(text: VLLMBackend, stream: bool) -> None:
    call = _chat("r-1", stream=stream, max_tokens=24)
    tokens = await text.tokenize(CHAT, call.body)
    chunks = [chunk async for chunk in text.submit(call)]

    usage = next(chunk.usage for chunk in chunks if chunk.usage is not None)
    assert tokens is not None
    assert usage.prompt_tokens == len(tokens)
    assert usage.output_tokens == 24
    # An engine whose client lags puts several tokens into one event: what was seen on the way is a lower bound.
    counted = sum(chunk.tokens for chunk in chunks)
    assert 0 < counted <= 24
    assert stream or counted == 24
    assert usage.finish_reason == "length"


async def test_closing_the_answer_aborts_the_work(text: VLLMBackend, engines: Engines) -> None:
    server = engines.texts[0]
    before = await _said(server)
    async with slow_motion(server), aclosing(text.submit(_chat("r-2", stream=True, max_tokens=LONG_TOKENS))) as answer:
        first = await anext(answer)
        assert first.data

    # Whatever the gauge lags behind, it has seen both by the time this one is answered.
    await asyncio.to_thread(server.post, CHAT, json.loads(_chat("after", stream=False, max_tokens=1).body))
    await quiet(server)
    assert await _said(server) - before < LONG_TOKENS


async def test_abort_ends_the_call_and_the_work(text: VLLMBackend, engines: Engines) -> None:
    server = engines.texts[0]
    async with slow_motion(server):
        answer = text.submit(_chat("r-3", stream=True, max_tokens=LONG_TOKENS))
        await anext(answer)
        await text.abort(RequestId("r-3"))

        with pytest.raises(EngineError) as ended:
            await _rest(answer)
    assert not ended.value.lost
    await quiet(server)


async def test_engines_refusal_comes_back_as_it_is(text: VLLMBackend) -> None:
    with pytest.raises(EngineError) as refused:
        await _rest(text.submit(_chat("r-4", stream=False, max_tokens=CONTEXT_TOKENS_MAX * 2)))

    assert not refused.value.lost
    assert refused.value.status == 400
    assert "error" in json.loads(refused.value.body)


async def test_vector_comes_back_with_its_usage(embedding: VLLMBackend) -> None:
    body = json.dumps({"model": EMBEDDING_MODEL, "input": "the tide turns"}).encode()
    call = _call("r-5", "/v1/embeddings", body, stream=False, kind=RequestKind.EMBEDDING, tokens_max=0)
    tokens = await embedding.tokenize(call.path, body)
    [chunk] = [chunk async for chunk in embedding.submit(call)]

    assert chunk.usage is not None
    assert tokens is not None
    assert chunk.usage.prompt_tokens == len(tokens)
    assert len(json.loads(chunk.data)["data"][0]["embedding"]) == 256


async def test_engine_that_does_not_listen_is_lost(engines: Engines) -> None:
    backend = VLLMBackend(EngineConfig(id="nobody", models=[TEXT_MODEL], url="http://127.0.0.1:9"))
    with pytest.raises(EngineError) as failed:
        await backend.metrics()
    assert failed.value.lost
    await backend.close()


def _backend(server: VllmServer, model: str) -> VLLMBackend:
    embedding = model == EMBEDDING_MODEL
    config = EngineConfig(id=server.name, models=[model], url=server.url, embedding=embedding, llm=not embedding)
    assert config.id == EngineId(server.name)
    return VLLMBackend(config)


def _chat(request_id: str, *, stream: bool, max_tokens: int) -> Call:
    body: dict[str, Any] = {
        "model": TEXT_MODEL,
        "messages": [{"role": "user", "content": f"{request_id}: when does the tide turn?"}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    return _call(request_id, CHAT, json.dumps(body).encode(), stream=stream, tokens_max=max_tokens)


def _call(
    request_id: str, path: str, body: bytes, *, stream: bool, tokens_max: int, kind: RequestKind = RequestKind.LLM
) -> Call:
    return Call(
        request_id=RequestId(request_id), model=ModelId(TEXT_MODEL), kind=kind, path=path, body=body, stream=stream,
        prompt_tokens=0, tokens_max=tokens_max,
    )  # fmt: skip


async def _rest(answer: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in answer]


async def _said(server: VllmServer) -> float:
    """Tokens of answers until now."""
    return await asyncio.to_thread(server.metric, "vllm:generation_tokens_total")
