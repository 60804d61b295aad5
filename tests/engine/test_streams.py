"""A hundred streams at once: engines get the clients' own bodies, streams are complete, and tokens are counted."""

import asyncio
import json
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from events.request import RequestArrived, RequestFinished
from services.gateway.openai import CHAT, COMPLETIONS, FIELDS_CHANGED
from tests.engine.conftest import TEXT_MODEL, Engines
from tests.engine.house import running_house
from tests.engine.recording_proxy import Asked, recording

STREAMS = 100
TIMEOUT_S = 120
TAIL = b"data: [DONE]"


class Client(NamedTuple):
    """One client's body, exactly as it was sent; `marker` stands in it and nowhere else."""

    marker: str
    path: str
    body: bytes
    wants_usage: bool


class Answer(NamedTuple):
    """What one client got."""

    request_id: str
    events: list[dict[str, Any]]


async def test_a_hundred_streams_reach_engines_unchanged_and_complete(
    engines: Engines, model: Path, tmp_path: Path
) -> None:
    clients = [_client(number) for number in range(STREAMS)]
    async with recording(*(server.url for server in engines.texts)) as proxies:
        texts = {server.name: proxy.url for server, proxy in zip(engines.texts, proxies, strict=True)}
        async with running_house(tmp_path, texts=texts, model=model) as house:
            answers = await _all_at_once(house.url, clients)
            await house.until(RequestFinished, count=STREAMS)  # the last client has its answer before the log knows
            events = [recorded.event for recorded in await house.events()]

    asked = [each for proxy in proxies for each in proxy.asked if each.path in (CHAT, COMPLETIONS)]
    assert len(asked) == STREAMS
    for client in clients:
        [seen] = [each for each in asked if client.marker.encode() in each.body]
        assert_same_body(client, seen)

    arrived = {event.request_id: event for event in events if isinstance(event, RequestArrived)}
    finished = {event.request_id: event for event in events if isinstance(event, RequestFinished)}
    assert set(arrived) == set(finished) == {answer.request_id for answer in answers}
    for client, answer in zip(clients, answers, strict=True):
        assert_complete(client, answer)
        said = finished[answer.request_id]
        counted = arrived[answer.request_id]
        assert not counted.estimated
        assert counted.prompt_tokens == said.prompt_tokens
        assert_usage(client, answer, said)


def assert_same_body(client: Client, seen: Asked) -> None:
    """Every field but the listed ones is the very bytes that the client sent."""
    assert seen.path == client.path
    sent, got = (msgspec.json.decode(body, type=dict[str, msgspec.Raw]) for body in (client.body, seen.body))
    whole = {field for field in FIELDS_CHANGED if "." not in field}
    parts = {tuple(field.split(".")) for field in FIELDS_CHANGED if "." in field}
    for name in (sent.keys() | got.keys()) - whole:
        inner = {part for outer, part in parts if outer == name}
        if inner and sent.get(name) != got.get(name):
            before, after = (_without(fields.get(name), inner) for fields in (sent, got))
            assert before == after, name
        else:
            assert bytes(sent.get(name, b"")) == bytes(got.get(name, b"")), name


def assert_complete(client: Client, answer: Answer) -> None:
    """One finish reason for each choice, after which nothing but usage comes."""
    choices = [choice for event in answer.events for choice in event["choices"]]
    ended = {choice["index"]: choice["finish_reason"] for choice in choices if choice.get("finish_reason")}
    assert set(ended) == {choice["index"] for choice in choices}, client.marker
    assert set(ended.values()) <= {"stop", "length"}, client.marker


def assert_usage(client: Client, answer: Answer, said: RequestFinished) -> None:
    """A client that asked for usage gets what the log says; one that did not gets none."""
    usages = [event["usage"] for event in answer.events if event.get("usage")]
    if not client.wants_usage:
        assert usages == [], client.marker
        return
    [usage] = usages
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (said.prompt_tokens, said.output_tokens)


async def _all_at_once(url: str, clients: list[Client]) -> list[Answer]:
    async with (
        asyncio.timeout(TIMEOUT_S),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(_stream(session, url, client)) for client in clients]
    return [task.result() for task in tasks]


async def _stream(session: aiohttp.ClientSession, url: str, client: Client) -> Answer:
    headers = {"content-type": "application/json"}
    async with session.post(url + client.path, data=client.body, headers=headers) as response:
        text = await response.read()
        assert response.status == 200, text
    lines = [line for line in text.split(b"\n\n") if line]
    assert lines[-1] == TAIL, lines[-1]
    return Answer(response.headers["x-request-id"], [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]])


def _client(number: int) -> Client:
    """Bodies as clients really send them: fields that the gateway does not know, odd spacing, escapes, big integers."""
    marker = f"marker-{number:04d}."
    words = "and every wave is written down " * (number % 40)
    fields: dict[str, Any] = {"model": TEXT_MODEL, "stream": True, "temperature": 0, "max_tokens": 8 + number % 24}
    path = CHAT if number % 3 else COMPLETIONS
    if path == CHAT:
        fields["messages"] = [
            {"role": "system", "content": "Ümläut \u2028 🌊"},
            {"role": "user", "content": f"{marker} {words}"},
        ]
    else:
        fields["prompt"] = f"{marker} {words}"
    wants_usage = number % 2 == 0
    if wants_usage:
        fields["stream_options"] = {"include_usage": True}
    elif number % 5 == 0:
        fields["stream_options"] = {"continuous_usage_stats": False}
    extras: list[dict[str, Any]] = [
        {"seed": 2**53 + number, "user": "a\u0000b"},
        {"ignore_eos": True, "logit_bias": {"7": -1.5}},
        {"cache_salt": "the client's own", "metadata": {"deep": [{"er": None}]}},
        {"priority": 0, "stop": ["\n\n\n", "</s>"], "x_unknown_field": 1e-7},
    ]
    fields |= extras[number % len(extras)]
    text = json.dumps(fields, ensure_ascii=number % 7 == 0, indent=2 if number % 4 == 1 else None)
    return Client(marker, path, text.encode(), wants_usage)


def _without(raw: msgspec.Raw | None, names: set[str]) -> dict[str, Any]:
    fields = msgspec.json.decode(raw, type=dict[str, Any]) if raw else {}
    return {name: value for name, value in fields.items() if name not in names}
