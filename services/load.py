"""Open-loop load on a gateway: every arrival of a workload is sent at its time, answered or not.

Prompts are made of token ids: each prefix id of an arrival becomes the same run of tokens wherever it appears, so
that shared prefixes are shared for real, over the wire. The text means nothing and is never kept.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import aiohttp
import msgspec

from events.base import RequestKind
from replay.workloads.base import Arrival

DIGIT = 30_000
"""Base in which a prefix id is written into tokens; below every real vocabulary's size."""
DIGITS = 4
FILLER = 7
RUNS_CACHED_MAX = 65_536


class LoadResult(msgspec.Struct, kw_only=True):
    """What came back: HTTP statuses by code (0 = the connection failed), streams that broke off, and how late the
    generator itself was at worst (wall seconds; large = it, not the gateway, was the limit)."""

    statuses: Counter[int] = msgspec.field(default_factory=Counter)
    broken: int = 0
    late_max_s: float = 0.0


@lru_cache(maxsize=RUNS_CACHED_MAX)
def token_run(prefix_id: int, tokens: int) -> str:
    """The tokens of one prefix id as JSON numbers, comma-separated: the id's digits, then filler."""
    digits = [prefix_id // DIGIT**place % DIGIT for place in range(DIGITS)]
    return ",".join(map(str, (digits + [FILLER] * tokens)[:tokens]))


def prompt_json(arrival: Arrival) -> str:
    """The prompt of an arrival as a JSON list of exactly `prompt_tokens` token ids."""
    runs: list[str] = []
    left = arrival.prompt_tokens
    for prefix_id in arrival.prefix:
        if left <= 0:
            break
        runs.append(token_run(prefix_id, min(arrival.prefix_tokens, left)))
        left -= arrival.prefix_tokens
    if left > 0:
        own = [FILLER + 1 + int.from_bytes(arrival.request_id.encode()[-6:], "big") % DIGIT]
        runs.append(",".join(map(str, (own + [FILLER] * left)[:left])))
    return "[" + ",".join(runs) + "]"


def call_of(arrival: Arrival) -> tuple[str, bytes, dict[str, str]]:
    """Path, body and headers that say this arrival in OpenAI's words."""
    headers = {
        "content-type": "application/json",
        "x-request-id": arrival.request_id,
        "x-llm-d-inference-fairness-id": arrival.tenant,
    }
    prompt = prompt_json(arrival)
    if arrival.kind is RequestKind.EMBEDDING:
        return "/v1/embeddings", f'{{"model":"{arrival.model}","input":{prompt}}}'.encode(), headers
    headers["x-tidegate-output-tokens"] = str(arrival.output_tokens)
    limit = arrival.tokens_max or arrival.output_tokens
    body = f'{{"model":"{arrival.model}","stream":true,"max_tokens":{limit},"prompt":{prompt}}}'
    return "/v1/completions", body.encode(), headers


async def drive(
    url: str,
    arrivals: Sequence[Arrival],
    *,
    speed: int = 1,
    api_keys: dict[str, str] | None = None,
    on_answer: Callable[[Arrival, int], None] = lambda _arrival, _status: None,
) -> LoadResult:
    """Send every arrival at its time (`at_ns / speed` wall time from now); return when all have ended.

    `api_keys` maps tenants to bearer tokens. `on_answer` hears of each end with its HTTP status."""
    result = LoadResult()
    loop = asyncio.get_running_loop()
    start = loop.time()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)

    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def send(arrival: Arrival) -> None:
            path, body, headers = call_of(arrival)
            if api_keys and arrival.tenant in api_keys:
                headers["authorization"] = f"Bearer {api_keys[arrival.tenant]}"
            status = 0
            try:
                async with session.post(url + path, data=body, headers=headers) as response:
                    status = response.status
                    async for _ in response.content.iter_any():
                        pass
            except aiohttp.ClientError:
                result.broken += 1
            result.statuses[status] += 1
            on_answer(arrival, status)

        async with asyncio.TaskGroup() as group:
            for arrival in arrivals:
                due = start + arrival.at_ns / speed / 1e9
                now = loop.time()
                if due > now:
                    await asyncio.sleep(due - now)
                else:
                    result.late_max_s = max(result.late_max_s, now - due)
                group.create_task(send(arrival))
    return result
