"""The registry of slices in a real Redis-compatible server: the longest prefix of an 8K prompt, many in flight on one
connection and one after another; what filling it costs, and what a slice weighs there. The floor is HMGET of as many
fields on the same connection: the least that a look-up in a server can be."""

import time
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import count, islice
from typing import Any

from redis.asyncio import Redis

from events.base import EngineId, PoolId, Recorded, SliceId
from events.slice import SlicesStored, Tier
from kvstore.fingerprint import fingerprints
from kvstore.registry.base import Table, Write, Written, field_of
from kvstore.registry.redis import RedisRegistry, key
from services.runtime.embedded import start_valkey
from services.runtime.registry_book import RegistryBook
from services.runtime.registry_feed import ITEMS_MAX
from tests.bench.place import Place
from tests.bench.rounds import Figures, Row, interleave, measured, percentile

PROMPTS, SLICES = 31_250, 32
"""Prompts of 8K tokens: a million slices, each in two tiers."""
ENGINES = 4
DEPTH = 100
"""Look-ups in one flight."""
FLIGHTS = 20
ALONE = 300
LOOKUPS_PER_S = 10_000
BYTES_PER_SLICE = 250
POOL = PoolId("bench")


async def measure(place: Place) -> list[Row]:
    """Look-ups per second, and what a slice costs."""
    prompts = [fingerprints([number] * SLICES, key=b"bench", slice_tokens=1) for number in range(PROMPTS)]
    with start_valkey(place.folder / "registry") as server:
        registry = RedisRegistry.open(server.url, POOL, where=server.where)
        async with Redis.from_url(server.url, max_connections=1) as redis:
            fill_us, slice_bytes = await _fill(registry, redis, prompts)
            ways = {
                "functions": partial(_flights, registry.longest_prefixes, prompts),
                "hmget": partial(_flights, partial(_plain, redis), prompts),
                "alone": partial(_one_by_one, registry, prompts),
            }
            values = await interleave(ways, rounds=place.rounds)
            assert "connected_clients" in await redis.info("clients"), "the server is still there"
        await registry.close()
    return [
        measured(f"longest prefix of {SLICES} slices, {DEPTH} in flight, one connection", "/s",
                 values["functions"]["per_s"], at_least=LOOKUPS_PER_S),
        measured(f"  HMGET of {SLICES} fields, the same", "/s", values["hmget"]["per_s"]),
        measured("  longest prefix, one after another, p50", "us", values["alone"]["p50"]),
        measured(f"registry filled, writes of {ITEMS_MAX}, per slice", "us", [fill_us]),
        measured("memory of the server, per slice with two holders", "bytes", [slice_bytes], at_most=BYTES_PER_SLICE),
    ]  # fmt: skip


async def _fill(registry: RedisRegistry, redis: Redis, prompts: list[tuple[SliceId, ...]]) -> tuple[float, float]:
    """Every slice in two tiers of one engine; microseconds and bytes per slice."""
    book = RegistryBook()
    for seq, slices in enumerate(prompts, start=1):
        engine_id = EngineId(f"e{seq % ENGINES}")
        for item, tier in enumerate((Tier.HBM, Tier.DRAM)):
            event = SlicesStored(engine_id=engine_id, tier=tier, slices=slices, slice_bytes=2**25)
            book.take(Recorded(seq=seq, item=item, event=event, ts_ns=seq))
    items = book.items()
    before = (await redis.info("memory"))["used_memory"]
    start = time.perf_counter()
    for number in count(1):
        piece = list(islice(items, ITEMS_MAX))
        if not piece:
            break
        write = Write(epoch=1, owner="bench", number=number, seq=1, now_ns=1, items=piece, anew=number == 1)
        assert await registry.write(write) is Written.WRITTEN, "nobody else writes here"
    spent_us = (time.perf_counter() - start) * 1e6
    after = (await redis.info("memory"))["used_memory"]
    slices_known = book.slices_known
    return spent_us / slices_known, (after - before) / slices_known


Look = Callable[[list[tuple[SliceId, ...]]], Coroutine[Any, Any, list[Any]]]


async def _flights(look: Look, prompts: list[tuple[SliceId, ...]]) -> Figures:
    start = time.perf_counter()
    for flight in range(FLIGHTS):
        first = flight * len(prompts) // FLIGHTS
        answers = await look(prompts[first : first + DEPTH])
        assert len(answers) == DEPTH, "every prompt is answered"
    return {"per_s": FLIGHTS * DEPTH / (time.perf_counter() - start)}


async def _plain(redis: Redis, prompts: list[tuple[SliceId, ...]]) -> list[Any]:
    pipeline = redis.pipeline(transaction=False)
    for slices in prompts:
        pipeline.hmget(key(POOL, Table.SLICES), list(map(field_of, slices)))
    answers: list[Any] = await pipeline.execute()
    return answers


async def _one_by_one(registry: RedisRegistry, prompts: list[tuple[SliceId, ...]]) -> Figures:
    waits = []
    for slices in prompts[:ALONE]:
        start = time.perf_counter()
        [found] = await registry.longest_prefixes([slices])
        waits.append(time.perf_counter() - start)
        assert found[0].slices == SLICES, "every slice is there"
    return {"p50": percentile(waits, 50) * 1e6}
