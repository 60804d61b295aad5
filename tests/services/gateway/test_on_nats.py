"""Both front doors on a real NATS server."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from nats.errors import NoRespondersError

from events import codec
from events.base import Event, PoolId
from events.control import IngestRefused
from events.decisions import RequestAdmitted
from events.log.base import Log
from events.log.jetstream import JetStreamLog, connect
from events.request import HolderBeat, HolderStopped, RequestArrived, RequestFinished
from policies import catalog
from services.gateway.gateway_metrics import GatewayMetrics
from services.gateway.main import Gateway, run, run_ingest
from services.runtime.config import TenantConfig
from services.runtime.embedded import EmbeddedNats
from services.runtime.pool_clock import PoolClock
from tests.services.gateway.http_rig import CHAT, config_of
from tests.services.gateway.rig import admit_for_real

pytestmark = pytest.mark.integration


class OnNats:
    """A gateway with its ingest on NATS, the real admission beside it, and a client's own connection."""

    def __init__(self, log: JetStreamLog, client: Any, gateway: Gateway) -> None:
        self.log, self.client, self.gateway = log, client, gateway

    async def ask(self, subject: str, body: Any) -> Any:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        answer = await self.client.request(f"tg.in.{self.log.pool}.{subject}", data, timeout=5)
        return msgspec.json.decode(answer.data)


@pytest.fixture
async def on_nats(nats_server: EmbeddedNats, pool: PoolId, tmp_path: Path) -> AsyncIterator[OnNats]:
    ours, theirs = await connect(nats_server.url, name="test"), await connect(nats_server.url, name="test")
    log = await JetStreamLog.open(ours, pool)
    config = config_of(tmp_path, tenants=[TenantConfig(name="acme", api_keys=["k"], clients=["app"])])
    config.pool = pool
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    admission = asyncio.create_task(admit_for_real(log, catalog.ACTORS["admission"]))  # type: ignore[arg-type]
    running = asyncio.create_task(
        run(config, log=log, nats=ours, stop=stop, clock=PoolClock(speed=20), on_ready=ready.set_result)
    )
    await asyncio.wait((ready, running), return_when=asyncio.FIRST_COMPLETED)
    try:
        yield OnNats(log, theirs, ready.result())
    finally:
        stop.set()
        await running
        admission.cancel()
        await asyncio.gather(admission, return_exceptions=True)
        last_word = await last_holder_word(log)
        await log.close()
        await ours.close()
        await theirs.close()
    assert isinstance(last_word, HolderStopped)


async def events_of(log: Log) -> list[Event]:
    return [
        recorded.event
        async for batch in log.read()
        for message in batch
        for recorded in codec.decode(message.seq, message.subject, message.body)
    ]


async def last_holder_word(log: Log) -> Event:
    words = [each for each in await events_of(log) if isinstance(each, HolderBeat | HolderStopped)]
    return [each for each in words if each.holder.startswith("gateway")][-1]


async def until_said(log: Log, kind: type[Event], **fields: Any) -> Event:
    async with asyncio.timeout(10):
        async for batch in log.read(follow=True):
            for message in batch:
                for recorded in codec.decode(message.seq, message.subject, message.body):
                    event = recorded.event
                    if isinstance(event, kind) and all(getattr(event, key) == value for key, value in fields.items()):
                        return event
    raise AssertionError("a followed log does not end")


async def test_http_request_makes_its_round_through_the_log(on_nats: OnNats) -> None:
    async with (
        aiohttp.ClientSession(headers={"authorization": "Bearer k"}) as session,
        session.post(f"{on_nats.gateway.url}/v1/chat/completions", json={**CHAT, "stream": True}) as response,
    ):
        assert response.status == 200
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
        request_id = response.headers["x-request-id"]

    await until_said(on_nats.log, RequestFinished, request_id=request_id)
    told = [each for each in await events_of(on_nats.log) if getattr(each, "request_id", "") == request_id]
    assert [each.event_kind() for each in told] == [
        "request_arrived", "request_admitted", "dispatch_started", "first_token_seen", "request_finished",
    ]  # fmt: skip


async def test_client_with_its_own_data_plane_is_decided_for(on_nats: OnNats) -> None:
    watched = await on_nats.client.subscribe(f"watch.tg.v1.{on_nats.log.pool}.decision.admission.>")
    arrival = {"request_id": "r1", "model": "tiny", "prompt_tokens": 100, "tokens_max": 10, "prompt": "never kept"}
    answer = await on_nats.ask("app.request_arrived", arrival)

    assert answer["ok"]
    assert answer["request_id"] == "app/r1"
    arrived = await until_said(on_nats.log, RequestArrived)
    assert isinstance(arrived, RequestArrived)
    assert (arrived.tenant, arrived.holder) == ("acme", "client-app")
    decision = codec.decode(1, "", (await watched.next_msg(timeout=5)).data)[0]
    assert decision.cause == f"{answer['seq']}.{answer['item']}"
    assert isinstance(decision.event, RequestAdmitted)
    assert decision.event.request_id == "app/r1"
    assert (await on_nats.ask("app.dispatch_started", {"request_id": "r1", "engine_id": "e1"}))["ok"]
    await until_said(on_nats.log, HolderBeat, holder="client-app")
    assert b"never kept" not in b"".join([message.body async for batch in on_nats.log.read() for message in batch])


@pytest.mark.parametrize(
    ("subject", "body", "reason"),
    [
        ("app.request_arrived", b"{nope", "not_json"),
        ("app.request_arrived", {"model": "tiny"}, "invalid"),
        ("app.nonsense", {}, "unknown_kind"),
        ("app.request_arrived", {"model": "tiny", "prompt_tokens": 1, "holder": "gateway-1"}, "foreign"),
    ],
)
async def test_bad_message_is_refused_counted_and_the_rest_goes_on(
    on_nats: OnNats, subject: str, body: Any, reason: str
) -> None:
    answer = await on_nats.ask(subject, body)
    assert answer["ok"] is False
    assert answer["reason"] == reason
    assert answer["error"]
    assert answer["mend"]
    await on_nats.client.publish(f"tg.in.{on_nats.log.pool}.{subject}", b"{")
    refused = await until_said(on_nats.log, IngestRefused, client="app")
    assert isinstance(refused, IngestRefused)
    assert refused.count >= 1
    assert (await on_nats.ask("app.request_arrived", {"model": "tiny", "prompt_tokens": 1}))["ok"]
    async with aiohttp.ClientSession() as session, session.get(f"{on_nats.gateway.url}/metrics") as response:
        assert f'tidegate_gateway_ingest_refused_total{{reason="{reason}"}}' in await response.text()


async def test_nats_micro_finds_the_gateway(on_nats: OnNats) -> None:
    pong = msgspec.json.decode((await on_nats.client.request("$SRV.PING.tidegate", b"", timeout=5)).data)
    status = await on_nats.client.request(f"tg.rpc.{on_nats.log.pool}.status", b"", timeout=5)
    models = await on_nats.client.request(f"tg.rpc.{on_nats.log.pool}.models", b"", timeout=5)

    assert pong["name"] == "tidegate"
    assert msgspec.json.decode(status.data) == {"status": "ok", "reasons": [], "engines_ready": ["e1"]}
    assert msgspec.json.decode(models.data) == ["tiny"]


async def test_ingest_runs_alone_as_a_worker(nats_server: EmbeddedNats, pool: PoolId, tmp_path: Path) -> None:
    client = await connect(nats_server.url, name="test")
    log = await JetStreamLog.open(client, pool)
    config, stop, metrics = config_of(tmp_path, speed=20), asyncio.Event(), GatewayMetrics()
    running = asyncio.create_task(run_ingest(config, log=log, nats=client, stop=stop, metrics=metrics))
    try:
        answer = await answered(client, f"tg.in.{pool}.app.request_arrived", b'{"model":"tiny","prompt_tokens":1}')
        assert answer["ok"]
    finally:
        stop.set()
        await running
        await log.close()
        await client.close()


async def answered(client: Any, subject: str, body: bytes) -> Any:
    """Asks until somebody listens."""
    async with asyncio.timeout(5):
        while True:
            try:
                return msgspec.json.decode((await client.request(subject, body, timeout=5)).data)
            except NoRespondersError:
                await asyncio.sleep(0.01)
