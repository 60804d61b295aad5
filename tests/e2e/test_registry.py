"""Redis flushed, killed, and the projector killed, in the middle of a run: the registry of slices comes to hold what
the log says, and look-ups meanwhile are misses that hold nobody up."""

import asyncio
import json
import random
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from events import codec, subjects
from events.base import EngineId, Event
from events.log.jetstream import JetStreamLog
from events.slice import SlicesCleared, SlicesHit, SlicesRemoved, SlicesStored, Tier, TierMeasured
from kvstore.fingerprint import fingerprints
from kvstore.registry.reader import RegistryReader
from kvstore.registry.redis import RedisRegistry
from services import cli, journals
from services.runtime import servers
from services.runtime.embedded import EmbeddedNats, EmbeddedValkey
from services.runtime.output import Exit
from tests.e2e.house import READY_TIMEOUT_S, House, running
from tests.e2e.settings import house_settings

pytestmark = pytest.mark.integration

WORKERS: Final = ("projector", "clock")
E9: Final = EngineId("e9")
IDS: Final = fingerprints(range(400), key=b"e2e", slice_tokens=1)
FACTS_EVERY_S: Final = 0.02
READ_TIMEOUT_S: Final = 0.25


class Agent:
    """Says what an engine's agent would, for as long as it is let."""

    def __init__(self, log: JetStreamLog) -> None:
        self.log, self.said, self.chance = log, 0, random.Random(5)

    async def say(self) -> None:
        tier, slices = self.chance.choice(list(Tier)), tuple(self.chance.sample(IDS, 20))
        at = self.chance.randrange(380)
        fact: Event = self.chance.choice([
            SlicesStored(engine_id=E9, tier=tier, slices=IDS[at : at + 20], slice_bytes=100),
            SlicesStored(engine_id=E9, tier=tier, slices=IDS[:20], slice_bytes=100),
            SlicesRemoved(engine_id=E9, tier=tier, slices=slices[:5]),
            SlicesHit(engine_id=E9, tier=tier, slices=slices),
            TierMeasured(engine_id=E9, tier=tier, bytes_max=40_000, bytes_used=at, slice_bytes=100),
            SlicesCleared(engine_id=E9, tier=tier) if self.said % 50 == 49 else SlicesHit(
                engine_id=E9, tier=tier, slices=slices),
        ])  # fmt: skip
        self.said += 1
        body = codec.encode(owner="agent", ts_ns=self.said * 10**8, said=[codec.Said(event=fact)])
        subject = subjects.fact(self.log.pool, "agent", fact.event_kind())
        await self.log.append(subject, body, msg_id=f"agent:{self.said}")

    async def run(self) -> None:
        while True:
            await self.say()
            await asyncio.sleep(FACTS_EVERY_S)


@asynccontextmanager
async def busy(agent: Agent) -> AsyncIterator[None]:
    """The agent says something all the while."""
    task = asyncio.create_task(agent.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until_it_reads(registry: RedisRegistry, log: JetStreamLog) -> None:
    """Wait until it is whole, up to the log's end or beyond what that was now."""
    newest = await log.last()
    seq = newest.seq if newest is not None else 1
    reader = RegistryReader(registry, timeout_s=READ_TIMEOUT_S, pause_s=0.0)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        rows = await reader.tiers()
        position = await registry.position() if rows else None
        if position is not None and position.complete and position.seq >= seq:
            return
        assert time.monotonic() < deadline, f"the registry does not come back: {reader.why}"
        await asyncio.sleep(0.05)


async def said_by(house: House, capsys: pytest.CaptureFixture[str], *where: str) -> list[Any]:
    """What the commands say of the registry, without how far it is."""
    told = []
    for command in (("stats",), ("top", "-n", "50"), ("lookup", *IDS[:20])):
        argv = ["cache", *command, *where, "--config", str(house.file), "--json"]
        assert await asyncio.to_thread(cli.run, argv) == Exit.FINE
        out = json.loads(capsys.readouterr().out)
        for name in ("position", "now_ns"):
            out.pop(name, None)  # The last tick may be another.
        told.append(out)
    return told


async def test_whatever_happens_to_redis_the_registry_comes_to_hold_what_the_log_says(
    nats_server: EmbeddedNats, own_valkey: EmbeddedValkey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = house_settings(tmp_path, nats_url=nats_server.url, redis_url=own_valkey.url)
    async with running(tmp_path, config, workers=WORKERS, gateway=False) as house:
        registry = RedisRegistry.open(own_valkey.url, house.pool, where="test", timeout_s=1.0)
        reader = RegistryReader(registry, timeout_s=READ_TIMEOUT_S, pause_s=0.0)
        async with servers.open_log(config, house.pool) as log, busy(Agent(log)):
            await until_it_reads(registry, log)
            with redis.Redis.from_url(own_valkey.url) as store:
                store.flushall()
                store.function_flush()
            await reader.longest_prefix(IDS[:20])
            assert reader.failures == 0, "what is not there yet is a miss, not a failure"
            await until_it_reads(registry, log)

            own_valkey.kill()
            start = time.monotonic()
            assert await reader.longest_prefix(IDS[:20]) == []
            assert time.monotonic() - start < 4 * READ_TIMEOUT_S, "a look-up holds nobody up"
            assert reader.failures == 1
            own_valkey.restart()
            await until_it_reads(registry, log)

            await house.kill("projector")
            await until_it_reads(registry, log)
        async with servers.open_log(config, house.pool) as log:
            # The first slices once more, so that the look-up finds something; then all is still but the clock.
            first = SlicesStored(engine_id=E9, tier=Tier.DRAM, slices=IDS[:20], slice_bytes=100)
            body = codec.encode(owner="agent", ts_ns=10**12, said=[codec.Said(event=first)])
            subject = subjects.fact(house.pool, "agent", first.event_kind())
            await log.append(subject, body, msg_id=secrets.token_hex(8))
            await until_it_reads(registry, log)
        await house.stop("clock")
        live = await said_by(house, capsys)
        journal = tmp_path / "log.jsonl.zst"
        await journals.export(config, house.pool, journal)
        offline = await said_by(house, capsys, "--log", str(journal))
        for told in (live, offline):
            for one in told[1]["hot"]:
                one.pop("heat")  # It cools down with time.
        assert live == offline
        assert live[2]["prefixes"][0]["by_tier"]["dram"] == 20
        assert house.restarts("projector") == 1
        await registry.close()
