"""A log without room: admission stops with 503, nothing is lost, and it goes on when there is room again."""

import asyncio
import time
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from events.base import PoolId
from events.log.jetstream import JetStreamLog, connect
from services.runtime.embedded import EmbeddedNats
from tests.e2e.client import SteadyLoad, steady_load
from tests.e2e.house import POLL_S, READY_TIMEOUT_S, running, until
from tests.e2e.settings import house_settings

pytestmark = pytest.mark.integration

BYTES_MAX: Final = 192 * 1024
REQUESTS_PER_S: Final = 20
RECOVERED: Final = 5


async def test_a_full_log_stops_admission_until_there_is_room(nats_server: EmbeddedNats, tmp_path: Path) -> None:
    config = house_settings(tmp_path, nats_url=nats_server.url)
    client = await connect(nats_server.url, name="operator")
    log = await JetStreamLog.open(client, PoolId(config.pool), bytes_max=BYTES_MAX)
    async with running(tmp_path, config) as house:
        async with steady_load(house.url, per_s=REQUESTS_PER_S) as load:
            await until(lambda: [answer for answer in load.answers if answer.reason == "log_down"], "the log is full")
            await until_health_says(house.url, 503, "the event log takes nothing")

            stored = await log.info()
            assert stored.config.max_bytes == BYTES_MAX
            stored.config.max_bytes = -1
            await log.js.update_stream(stored.config)
            room_s = time.monotonic()
            await until(lambda: has_recovered(load, room_s), "decided answers")
        refused = [answer for answer in load.answers if answer.status != 200]
        assert {(answer.status, answer.reason) for answer in refused} <= {(503, "log_down"), (503, "expired")}
        assert "log_down" in {answer.reason for answer in refused}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        await house.witness.until(lambda: house.witness.arrived <= house.witness.ended, "every request has ended")
        await house.settle()
        report = await house.verify()
    await log.close()
    await client.close()
    assert report["identical"], report["first_divergence"]


async def until_health_says(url: str, status: int, reason: str) -> None:
    """A small message may still fit where a larger one did not, and then the log is well again for a moment."""
    async with asyncio.timeout(READY_TIMEOUT_S), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/health") as health:
                if health.status == status and reason in (await health.json())["reasons"]:
                    return
            await asyncio.sleep(POLL_S)


def has_recovered(load: SteadyLoad, room_s: float) -> bool:
    return all(answer.sent_s > room_s and answer.status == 200 for answer in load.answers[-RECOVERED:])
