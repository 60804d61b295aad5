"""Engines, clients and gateways that go away in the middle: nothing hangs, and budgets are freed."""

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from events.base import Recorded, RequestId
from events.decisions import HolderLost, RequestAdmitted, RequestDeferred
from events.engine import EngineHealthChanged, Health
from events.request import (
    AbortReason,
    DispatchStarted,
    FirstTokenSeen,
    RequestAborted,
    RequestArrived,
    RequestFinished,
)
from services.gateway.openai import CHAT
from tests.engine.conftest import TEXT_MODEL, Engines
from tests.engine.house import running_house
from tests.engine.pace import quiet, slow_motion

ALL_TIMEOUT_S = 120
LONG_TOKENS = 3_900
SHORT_TOKENS = 8
STREAMS = 8
# One big request fits an engine of this size, two do not.
SMALL_KV_BLOCKS = 120
BIG_PROMPT = "the tide turns twice a day " * 150
BIG_TOKENS = 1_700


class Outcome(NamedTuple):
    """How a stream ended for its client. `error` is what the last event said was wrong, "" if nothing."""

    request_id: RequestId
    complete: bool
    error: str


async def test_killed_engine_loses_no_request_in_silence(engines: Engines, model: Path, tmp_path: Path) -> None:
    doomed, survivor = engines.texts
    texts = {server.name: server.url for server in engines.texts}
    async with (
        asyncio.timeout(ALL_TIMEOUT_S),
        running_house(tmp_path, texts=texts, model=model) as house,
        _session() as session,
    ):
        async with slow_motion(doomed):
            begun = [asyncio.create_task(_stream(session, house.url, LONG_TOKENS)) for _ in range(STREAMS)]
            await house.until(FirstTokenSeen, lambda event: event.engine_id == doomed.name)
        doomed.freeze()
        # Frozen, it takes connections and answers nothing: what it gets now is before its first token when it dies.
        waiting = [asyncio.create_task(_stream(session, house.url, SHORT_TOKENS)) for _ in range(STREAMS)]
        await house.until(DispatchStarted, lambda event: event.engine_id == doomed.name, count=STREAMS // 2 + 1)
        doomed.kill()

        outcomes = {outcome.request_id: outcome for outcome in await asyncio.gather(*begun, *waiting)}
        await house.until(
            EngineHealthChanged, lambda event: event.engine_id == doomed.name and event.health is Health.LOST
        )
        assert (await _stream(session, house.url, SHORT_TOKENS)).complete
        await house.until(RequestFinished, count=1 + sum(outcome.complete for outcome in outcomes.values()))
        events = [recorded.event for recorded in await house.events()]

    aborted = [event for event in events if isinstance(event, RequestAborted)]
    assert {(event.reason, event.engine_id) for event in aborted} == {(AbortReason.ENGINE_LOST, doomed.name)}
    ended = {event.request_id for event in aborted if event.final}
    offered_again = {event.request_id for event in aborted if not event.final}
    assert ended
    assert offered_again
    assert not ended & offered_again

    again = Counter(event.request_id for event in events if isinstance(event, RequestArrived) and event.attempt == 1)
    assert again == Counter(offered_again)
    finished = {event.request_id: event.engine_id for event in events if isinstance(event, RequestFinished)}
    assert {finished[request_id] for request_id in offered_again} == {survivor.name}
    for request_id, outcome in outcomes.items():
        assert outcome.complete == (request_id in finished), outcome
        assert outcome.complete != (request_id in ended), outcome
        assert bool(outcome.error) == (request_id in ended), outcome


async def test_client_that_leaves_frees_the_engine_and_the_budget(
    engines: Engines, model: Path, tmp_path: Path
) -> None:
    server = engines.texts[0]
    async with (
        asyncio.timeout(ALL_TIMEOUT_S),
        running_house(tmp_path, texts={server.name: server.url}, model=model, kv_blocks=SMALL_KV_BLOCKS) as house,
        _session() as session,
    ):
        async with slow_motion(server), session.post(house.url + CHAT, json=_big()) as leaving:
            await leaving.content.readany()
            next_one = asyncio.create_task(_stream(session, house.url, BIG_TOKENS, prompt=BIG_PROMPT))
            await house.until(RequestDeferred)
            left = RequestId(leaving.headers["x-request-id"])
            leaving.close()

        [gone] = await house.until(RequestAborted)
        assert (gone.request_id, gone.reason, gone.final) == (left, AbortReason.CLIENT_GONE, True)
        outcome = await next_one
        assert outcome.complete
        await quiet(server)
        assert _order(await house.events(), outcome.request_id, freed_by=gone)


async def test_killed_gateway_frees_its_reservations(engines: Engines, model: Path, tmp_path: Path) -> None:
    server = engines.texts[0]
    async with (
        asyncio.timeout(ALL_TIMEOUT_S),
        running_house(tmp_path, texts={server.name: server.url}, model=model, kv_blocks=SMALL_KV_BLOCKS) as house,
        _session() as session,
    ):
        async with slow_motion(server), session.post(house.url + CHAT, json=_big()) as broken:
            await broken.content.readany()
            held = RequestId(broken.headers["x-request-id"])
            [arrived] = await house.until(RequestArrived)
            os.kill(house.pid_of("gateway"), signal.SIGKILL)
            with pytest.raises(aiohttp.ClientError):
                await broken.read()

        [lost] = await house.until(HolderLost)
        assert (lost.holder, lost.requests) == (arrived.holder, (held,))
        await quiet(server)
        await house.until_well()
        outcome = await _stream(session, house.url, BIG_TOKENS, prompt=BIG_PROMPT)
        assert outcome.complete
        assert _order(await house.events(), outcome.request_id, freed_by=lost)


def _order(events: list[Recorded], request_id: RequestId, *, freed_by: RequestAborted | HolderLost) -> bool:
    """Whether a request was admitted only after the room for it was given back."""
    freed = next(recorded.at for recorded in events if recorded.event == freed_by)
    admitted = next(
        recorded.at
        for recorded in events
        if isinstance(recorded.event, RequestAdmitted) and recorded.event.request_id == request_id
    )
    return freed < admitted


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


def _big() -> dict[str, Any]:
    return _body(BIG_TOKENS, BIG_PROMPT)


def _body(tokens: int, prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    options = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    return {"model": TEXT_MODEL, "messages": messages, **options}


async def _stream(session: aiohttp.ClientSession, url: str, tokens: int, *, prompt: str = "and then?") -> Outcome:
    """A client that reads to the end."""
    async with session.post(url + CHAT, json=_body(tokens, prompt)) as response:
        text = (await response.read()).decode()
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    ended = [choice["finish_reason"] for event in events for choice in event.get("choices", ())][-1:]
    errors = [event["error"]["message"] for event in events if "error" in event]
    complete = ended == ["length"] and lines[-1] == "[DONE]"
    return Outcome(RequestId(response.headers["x-request-id"]), complete, "".join(errors))
