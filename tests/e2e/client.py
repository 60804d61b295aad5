"""Clients of a gateway: one request with everything that came back, and a steady load of them."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import aiohttp

MODEL: Final = "llama-3-8b"
ANSWER_TIMEOUT_S: Final = 60.0
NO_ANSWER: Final = 0


class Answer(NamedTuple):
    """What a client got. `status` 0: the connection failed. `complete`: a body to its end ([DONE] for a stream, and no
    error in it). Seconds are of `time.monotonic()`."""

    sent_s: float
    took_s: float
    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool

    @property
    def decided(self) -> bool:
        """Whether a decision that stands in the log led to it."""
        return self.headers.get("x-tidegate-decided") != "no"

    @property
    def reason(self) -> str:
        """Why there was no answer, in one word; "" where there was."""
        return self.headers.get("x-llm-d-request-dropped-reason", "")

    @property
    def output_tokens(self) -> int:
        """As the engine counted them."""
        if not self.body.startswith(b"data:"):
            return int(json.loads(self.body)["usage"]["completion_tokens"])
        usage = [chunk["usage"] for chunk in _chunks(self.body) if chunk.get("usage")]
        return int(usage[-1]["completion_tokens"])


async def ask(
    session: aiohttp.ClientSession, url: str, *, prompt_tokens: int = 32, output_tokens: int = 8, stream: bool = False,
    request_id: str = "", headers: Mapping[str, str] | None = None, timeout_s: float = ANSWER_TIMEOUT_S,
) -> Answer:  # fmt: skip
    """One completion, of exactly so many tokens. Raises TimeoutError when the gateway leaves its client waiting."""
    name = request_id or f"client-{secrets.token_hex(8)}"
    sent = {"x-request-id": name, "x-tidegate-output-tokens": str(output_tokens), **(headers or {})}
    body: dict[str, Any] = {
        "model": MODEL,
        "prompt": [7] * prompt_tokens,
        "max_tokens": output_tokens,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    started_s = time.monotonic()
    async with asyncio.timeout(timeout_s):
        try:
            async with session.post(f"{url}/v1/completions", json=body, headers=sent) as response:
                got = await response.read()
                complete = response.status == 200 and (not stream or _is_whole(got))
                return _answer(started_s, response.status, response.headers, got, complete)
        except aiohttp.ClientError:
            return _answer(started_s, NO_ANSWER, {}, b"", False)


class SteadyLoad:
    """The answers to an open-loop load, in the order in which they ended."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def between(self, from_s: float, until_s: float) -> list[Answer]:
        """Answers to what was sent in that time."""
        return [answer for answer in self.answers if from_s <= answer.sent_s < until_s]


@asynccontextmanager
async def steady_load(url: str, *, per_s: float, **request: Any) -> AsyncIterator[SteadyLoad]:
    """A request every 1/`per_s` seconds while the block runs, answered or not; at the end all answers are in."""
    load = SteadyLoad()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> None:
            load.answers.append(await ask(session, url, **request))

        async with asyncio.TaskGroup() as group:

            async def send() -> None:
                while True:
                    group.create_task(one())
                    await asyncio.sleep(1 / per_s)

            sending = group.create_task(send())
            yield load
            sending.cancel()


def _answer(started_s: float, status: int, headers: Mapping[str, str], body: bytes, complete: bool) -> Answer:
    return Answer(started_s, time.monotonic() - started_s, status, headers, body, complete)


def _is_whole(body: bytes) -> bool:
    return body.endswith(b"data: [DONE]\n\n") and not any("error" in chunk for chunk in _chunks(body))


def _chunks(body: bytes) -> list[dict[str, Any]]:
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n\n")]
    return [json.loads(line) for line in lines if line.startswith(b"{")]
