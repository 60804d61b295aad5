"""Fixtures that several parts share: real servers as child processes, and a pool of one's own per test."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from events.base import PoolId
from events.log.jetstream import JetStreamLog, connect
from services.runtime.config import LogProfile
from services.runtime.embedded import EmbeddedNats, EmbeddedValkey, start_nats, start_valkey


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNats]:
    """One NATS server for the whole run: each test has its own pool, so its own stream."""
    with start_nats(tmp_path_factory.mktemp("nats"), profile=LogProfile.FAST) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """One Valkey server for the whole run: keys are named by pool."""
    with start_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def pool() -> PoolId:
    """A pool that nobody else uses."""
    return PoolId(f"test-{secrets.token_hex(6)}")


@pytest.fixture
async def jetstream_log(nats_server: EmbeddedNats, pool: PoolId) -> AsyncIterator[JetStreamLog]:
    """The log of a fresh pool on the run's NATS server."""
    client = await connect(nats_server.url, name="tests")
    log = await JetStreamLog.open(client, pool)
    yield log
    await log.close()
    await client.close()
