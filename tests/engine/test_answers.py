"""What a client gets through the gateway is what the engine answers to it directly, token for token."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from events.decisions import RequestAdmitted
from events.request import RequestArrived, RequestFinished
from tests.engine.conftest import TEXT_MODEL, Engines
from tests.engine.house import EMBEDDING_MODEL, House, running_house

CHATS = 20
OUTPUT_TOKENS = 40
SENTENCE = "the tide turns twice a day; "


async def test_sequential_chats_are_token_equal_to_direct_ones(engines: Engines, model: Path, tmp_path: Path) -> None:
    async with (
        _house(engines, model, tmp_path) as house,
        _client(house.url) as through,
        _client(engines.texts[0].url) as direct,
    ):
        for number in range(CHATS):
            assert await _chat(through, number) == await _chat(direct, number)

        await house.until(RequestFinished, count=CHATS)  # an answer is with its client before its end is in the log
        events = [recorded.event for recorded in await house.events()]
        finished = [event for event in events if isinstance(event, RequestFinished)]
        assert len([event for event in events if isinstance(event, RequestAdmitted)]) == CHATS
        assert len(finished) == CHATS
        assert {event.engine_id for event in finished} == {server.name for server in engines.texts}
        assert {event.output_tokens for event in finished} == {OUTPUT_TOKENS}


async def test_vectors_are_equal_to_direct_ones(engines: Engines, model: Path, tmp_path: Path) -> None:
    inputs: list[Any] = ["the tide turns", SENTENCE * 40, ["ebb", "flow", "slack water"], "潮 🌊"]
    async with (
        _house(engines, model, tmp_path) as house,
        _client(house.url) as through,
        _client(engines.embedding.url) as direct,
    ):
        for text in inputs:
            ours = await through.embeddings.create(model=EMBEDDING_MODEL, input=text)
            theirs = await direct.embeddings.create(model=EMBEDDING_MODEL, input=text)
            assert [each.embedding for each in ours.data] == [each.embedding for each in theirs.data]
            assert ours.usage == theirs.usage

        await house.until(RequestFinished, count=len(inputs))
        events = [recorded.event for recorded in await house.events()]
        arrived = {event.request_id: event for event in events if isinstance(event, RequestArrived)}
        finished = [event for event in events if isinstance(event, RequestFinished)]
        assert len(finished) == len(inputs)
        for event in finished:
            counted = arrived[event.request_id]
            assert event.engine_id == "embed"
            # Several inputs in one body have no one list of tokens at the engine: there the count is an estimate.
            assert counted.estimated or counted.prompt_tokens == event.prompt_tokens
        assert sum(event.estimated for event in arrived.values()) <= 1


async def test_client_sees_openais_errors(engines: Engines, model: Path, tmp_path: Path) -> None:
    async with _house(engines, model, tmp_path) as house, _client(house.url) as client:
        with pytest.raises(NotFoundError, match="model"):
            await client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "?"}])
        with pytest.raises(BadRequestError):
            await client.chat.completions.create(
                model=TEXT_MODEL, messages=[{"role": "user", "content": "?"}], extra_headers={"x-slo-ttft-ms": "soon"}
            )
        with pytest.raises(BadRequestError):
            await client.completions.create(model=TEXT_MODEL, prompt=SENTENCE * 4096, max_tokens=1)
        assert [each.id async for each in client.models.list()] == [TEXT_MODEL, EMBEDDING_MODEL]
        await _chat(client, 0)


@asynccontextmanager
async def _house(engines: Engines, model: Path, folder: Path) -> AsyncIterator[House]:
    texts = {server.name: server.url for server in engines.texts}
    async with running_house(folder, texts=texts, model=model, embedding=engines.embedding.url) as house:
        yield house


def _client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


async def _chat(client: AsyncOpenAI, number: int) -> tuple[Any, ...]:
    """All that a greedy answer says: text, token ids, log-probabilities, usage, how it ended."""
    answer = await client.chat.completions.create(
        model=TEXT_MODEL,
        messages=[
            {"role": "system", "content": "Say where the water goes. 潮"},
            {"role": "user", "content": f"{number}: {SENTENCE * number}"},
        ],
        temperature=0,
        max_tokens=OUTPUT_TOKENS,
        logprobs=True,
        top_logprobs=2,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    [choice] = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    token_ids = (choice.model_extra or {})["token_ids"]
    assert len(token_ids) == OUTPUT_TOKENS
    tokens = [(each.token, [top.token for top in each.top_logprobs]) for each in choice.logprobs.content]
    logprobs = [pytest.approx(each.logprob, abs=1e-3) for each in choice.logprobs.content]
    return choice.message.content, token_ids, tokens, logprobs, answer.usage, choice.finish_reason
