"""Streams through the gateway beside streams through a naive proxy, from the same engine to the same clients.

Ours is everything: tokens counted and fingerprinted, each request a fact in a real log, decided by the admission
worker, dispatched and ended in the log. What the log grew by is told at the end.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple

import msgspec

from events import codec
from events.base import EngineId, ModelId
from events.engine import Capability, EngineKind, EngineRegistered
from events.log.base import Log, Message
from events.request import RequestArrived
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock
from tests.bench.follower import Follower
from tests.bench.lockstep import Answer, Client, Engine
from tests.bench.place import Place
from tests.bench.replaying import runs
from tests.bench.rounds import Figures, Row, Way, compared, interleave, measured, percentile

POOL, MODEL = "streams", "bench"
STREAMS, PROMPT_TOKENS = 32, 600
TOKENS, TOKENS_LONG, TOKENS_SHORT = 50, 400, 2
REQUESTS = {TOKENS: 8, TOKENS_LONG: 1, TOKENS_SHORT: 16}
"""Requests per stream and round, by the length of the answer."""
ALONE_REQUESTS = 100
PROMPT = [number * 31 % 30_000 for number in range(PROMPT_TOKENS)]


async def measure(place: Place) -> list[Row]:
    """Chunks, requests, added TTFT; then the log's size."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine.serving(STREAMS))
        naive = await stack.enter_async_context(place.child("naive-proxy", "tests.bench.naive_proxy", engine.url))
        log = await stack.enter_async_context(place.log(POOL))
        ours = await _house(place, stack, log, engine.url)
        urls = {"floor": naive, "ours": ours, "direct": engine.url}
        ways: dict[str, Way] = {name: partial(_round, url, engine) for name, url in urls.items()}
        values = await interleave(ways, rounds=place.rounds)
        sizes = await _sizes(log)
    house, floor, direct = values["ours"], values["floor"], values["direct"]
    usual, long, short = (f"{STREAMS} streams of {tokens}" for tokens in REQUESTS)
    return [
        compared(f"{usual}: chunks", "/s", house["chunks"], floor["chunks"], at_least=1),
        measured("  the same without a proxy", "/s", direct["chunks"]),
        compared(f"{long}: chunks", "/s", house["chunks_long"], floor["chunks_long"]),
        compared(f"{short}: requests", "/s", house["requests"], floor["requests"]),
        compared(f"{short}: TTFT p50", "ms", house["ttft"], floor["ttft"]),
        _added("TTFT added, one at a time, p50", house["alone"], floor["alone"], direct["alone"]),
        *sizes,
    ]


def _added(what: str, ours: list[float], floor: list[float], direct: list[float]) -> Row:
    """What each proxy adds to the upstream's own, round by round."""
    return compared(
        what, "ms",
        [a - b for a, b in zip(ours, direct, strict=True)], [a - b for a, b in zip(floor, direct, strict=True)],
    )  # fmt: skip


async def _house(place: Place, stack: AsyncExitStack, log: Log, upstream: str) -> str:
    """Clock, admission and gateway, as processes; the gateway's address once admission decides for it."""
    engine = {"id": "e1", "kind": "vllm", "models": [MODEL], "url": upstream}
    model = {"name": MODEL, "slo_ttft_ms": 60_000, "slo_tpot_ms": 60_000}
    settings = {"gateway": {"port": 0}, "models": [model], "engines": [engine]}
    await _register(log)
    follower = Follower(log)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follower.run())
        for worker in ("clock", "admission"):
            await stack.enter_async_context(place.tidegate(POOL, "worker", worker, settings=settings))
        await follower.started()
        following.cancel()
    said = await stack.enter_async_context(place.tidegate(POOL, "gateway", "--json", settings=settings, speaks=True))
    return str(msgspec.json.decode(said)["url"])


async def _register(log: Log) -> None:
    """What the sensor would say of the upstream."""
    writer = FactWriter(log, source="sensor", owner="bench", clock=PoolClock())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(writer.run())
        await writer.write(
            EngineRegistered(
                engine_id=EngineId("e1"), kind=EngineKind.VLLM, models=(ModelId(MODEL),),
                kv_blocks=100_000, block_tokens=16, block_bytes=1, capability=Capability(),
            )
        )  # fmt: skip
        await writer.close()


async def _round(url: str, engine: Engine) -> Figures:
    clients = [await Client.connect(url, number, engine) for number in range(STREAMS)]
    alone = [(await clients[0].ask(MODEL, PROMPT, TOKENS_SHORT)).ttft_s for _ in range(ALONE_REQUESTS)]
    usual, long, short = [await _all(clients, tokens) for tokens in REQUESTS]
    for client in clients:
        client.close()
    return {
        "chunks": usual.chunks_per_s,
        "chunks_long": long.chunks_per_s,
        "requests": short.chunks_per_s / TOKENS_SHORT,
        "ttft": percentile(short.ttfts_s, 50) * 1e3,
        "alone": percentile(alone, 50) * 1e3,
    }


class _Answers(NamedTuple):
    chunks_per_s: float
    ttfts_s: list[float]


async def _all(clients: Sequence[Client], tokens: int) -> _Answers:
    """All streams at once, each with its requests one after another."""

    async def work(client: Client) -> list[Answer]:
        return [await client.ask(MODEL, PROMPT, tokens) for _ in range(REQUESTS[tokens])]

    start = time.perf_counter()
    by_stream = await asyncio.gather(*map(work, clients))
    elapsed_s = time.perf_counter() - start
    answers = [answer for some in by_stream for answer in some]
    return _Answers(len(answers) * tokens / elapsed_s, [answer.ttft_s for answer in answers])


async def _sizes(log: Log) -> list[Row]:
    """The log per 1,000 requests, by the kind in the subject: of this live run, and of one in virtual time."""
    live = [message async for batch in log.read() for message in batch]
    name, run = next(runs())
    return [*_size_of("live streams", live), *_size_of(name, run.messages)]


def _size_of(name: str, messages: Sequence[Message]) -> list[Row]:
    counts, sizes, requests = Counter[str](), Counter[str](), 0
    for message in messages:
        kind = message.subject.rpartition(".")[2]
        counts[kind] += 1
        sizes[kind] += len(message.subject) + len(message.body)
        records = codec.decode(message.seq, message.subject, message.body)
        requests += sum(type(recorded.event) is RequestArrived for recorded in records)
    per = 1_000 / requests
    return [
        measured(f"log of 1,000 requests, {name}: messages", "", [counts.total() * per]),
        measured(f"log of 1,000 requests, {name}: bytes", "B", [sizes.total() * per]),
        *(
            measured(f"  {kind}, {counts[kind] * per:,.0f} messages", "B", [size * per])
            for kind, size in sizes.most_common()
        ),
    ]
