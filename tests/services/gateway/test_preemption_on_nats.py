"""A stream is taken off its engine for an urgent request, on a real NATS server with the real admission: both end with
every token, and the log verifies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
import pytest

from events import codec
from events.base import Event, PoolId
from events.decisions import RequestAdmitted, RequestPreempted
from events.engine import EngineKind
from events.log.jetstream import JetStreamLog, connect
from events.request import RequestFinished
from policies.catalog import ACTORS
from replay.verify import verify
from services.gateway.main import Gateway, open_gateway
from services.runtime.actor import Actor
from services.runtime.config import EngineConfig
from services.runtime.embedded import EmbeddedNats
from services.runtime.snapshot import MemorySnapshots
from services.runtime.ticker import Ticker
from tests.services.gateway.http_rig import CHAT, config_of

pytestmark = pytest.mark.integration

SMALL = EngineConfig(
    id="e1", kind=EngineKind.SIMULATED, models=["tiny"], kv_blocks=80, context_tokens_max=1_280, batch_tokens_max=512
)
SPEED = 5
LONG, SHORT = 1_100, 1_000
"""Output tokens: each fits the 1,280 of the engine alone; both would not even if they grew side by side."""
URGENT = {"x-llm-d-inference-objective": "urgent", "x-llm-d-slo-ttft-ms": "1500"}


class House(NamedTuple):
    """A gateway, admission and clock over one log."""

    gateway: Gateway
    log: JetStreamLog
    session: aiohttp.ClientSession

    async def tokens(self, wanted: int, begun: asyncio.Event, headers: dict[str, str] | None = None) -> int:
        """Tokens that a client gets of one streamed answer."""
        body = {**CHAT, "stream": True, "max_tokens": wanted}
        hints = {"x-tidegate-output-tokens": str(wanted), **(headers or {})}
        words = 0
        async with self.session.post(f"{self.gateway.url}/v1/chat/completions", json=body, headers=hints) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    begun.set()
                    words += sum(len(_text(choice).split()) for choice in msgspec.json.decode(line[6:])["choices"])
        return words

    async def events(self) -> list[Event]:
        return [
            recorded.event
            async for batch in self.log.read()
            for message in batch
            for recorded in codec.decode(message.seq, message.subject, message.body)
        ]


def _text(choice: dict[str, Any]) -> str:
    return str(choice["delta"].get("content", ""))


@asynccontextmanager
async def house(url: str, pool: PoolId, folder: Path) -> AsyncIterator[House]:
    config = config_of(
        folder, engines=[SMALL], speed=SPEED, gateway={"objectives": {"urgent": 10}, "workload_hints": True}
    )  # fmt: skip
    config.pool = pool
    client = await connect(url, name="test")
    log = await JetStreamLog.open(client, pool)
    stop = asyncio.Event()
    actor = Actor(
        ACTORS["admission"], log, owner="a1", settings={"ttft_margin_ppm": 1_000_000}, code_version="v1",
        snapshots=MemorySnapshots(),
    )  # fmt: skip
    working = [
        asyncio.create_task(actor.run(stop)),
        asyncio.create_task(Ticker(log, owner="c1", speed=SPEED).run(stop)),
    ]
    try:
        async with open_gateway(config, log=log) as gateway, aiohttp.ClientSession() as session:
            yield House(gateway, log, session)
    finally:
        stop.set()
        await asyncio.gather(*working)
        await log.close()
        await client.close()


async def test_a_stream_makes_room_for_an_urgent_request_and_both_end_with_every_token(
    nats_server: EmbeddedNats, pool: PoolId, tmp_path: Path
) -> None:
    async with asyncio.timeout(30), house(nats_server.url, pool, tmp_path) as there:
        begun = asyncio.Event()
        patient = asyncio.create_task(there.tokens(LONG, begun))
        await begun.wait()
        urgent = await there.tokens(SHORT, asyncio.Event(), URGENT)
        got = await patient
        events = await there.events()
        messages = [message async for batch in there.log.read() for message in batch]

    assert (urgent, got) == (SHORT, LONG)
    [order] = [event for event in events if isinstance(event, RequestPreempted)]
    finished = [event for event in events if isinstance(event, RequestFinished)]
    assert [event.request_id for event in finished] == [order.for_request, order.request_id], "the urgent one first"
    assert [event.output_tokens for event in finished] == [SHORT, LONG]
    assert finished[1].preemptions >= 1
    again = [event for event in events if isinstance(event, RequestAdmitted) and event.resumed]
    assert [event.request_id for event in again] == [order.request_id]
    kinds = [event.event_kind() for event in events if getattr(event, "request_id", "") == order.request_id]
    assert [kind for kind in kinds if kind != "request_deferred"] == [
        "request_arrived", "request_admitted", "dispatch_started", "first_token_seen", "request_preempted",
        "request_admitted", "dispatch_started", "request_finished",
    ]  # fmt: skip
    report = verify(messages, pool, ACTORS, code_version="v1")
    assert report.identical
    assert not report.differences
    assert report.compared > 0
