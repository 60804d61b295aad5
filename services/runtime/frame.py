"""What every process of the house stands in: a connection, the pool's log, and a word that says stop."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from events.base import PoolId
from events.log.jetstream import JetStreamLog, NatsClient, connect
from services.runtime import servers
from services.runtime.config import Config

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Frame:
    """Set up for one process. `stop` is set by SIGTERM and Ctrl-C: whoever waits for it ends in good order."""

    client: NatsClient
    log: JetStreamLog
    stop: asyncio.Event


@asynccontextmanager
async def framed(config: Config, name: str) -> AsyncIterator[Frame]:
    """The frame of one process, shown to NATS as `name`; taken down at the end. Raises LogError."""
    client = await connect(servers.nats_url(config), name=f"tidegate-{name}", creds=config.nats.creds)
    try:
        log = await JetStreamLog.open(client, PoolId(config.pool), replicas=config.nats.replicas)
        try:
            loop = asyncio.get_running_loop()
            stop = asyncio.Event()
            for each in STOP_SIGNALS:
                loop.add_signal_handler(each, stop.set)
            try:
                yield Frame(client, log, stop)
            finally:
                for each in STOP_SIGNALS:
                    loop.remove_signal_handler(each)
        finally:
            await log.close()
    finally:
        await client.close()


def log_to_stderr(config: Config, name: str) -> None:
    """Remarks of this process, one line each, with the name of what runs in it."""
    logging.basicConfig(level=config.log_level.upper(), format=f"%(asctime)s {name} %(levelname)s %(message)s")
