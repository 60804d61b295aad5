"""What every process of the house stands in: a connection, the pool's log, and a word that says stop."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from events.base import PoolId
from events.log.jetstream import JetStreamLog, NatsClient, connect
from services.runtime import servers, state_dir
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
    """The frame of one process, shown to NATS as `name`; taken down at the end. Raises LogError, and ConfigError for
    the state dir."""
    state_dir.claim(config)
    async with AsyncExitStack() as stack:
        client = await connect(servers.nats_url(config), name=f"tidegate-{name}", creds=config.nats.creds)
        stack.push_async_callback(client.close)
        log = await JetStreamLog.open(client, PoolId(config.pool), replicas=config.nats.replicas)
        stack.push_async_callback(log.close)
        yield Frame(client, log, stack.enter_context(stop_by_signal()))


@contextmanager
def stop_by_signal() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and Ctrl-C set, instead of ending the process, for as long as the block runs."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for each in STOP_SIGNALS:
        loop.add_signal_handler(each, stop.set)
    try:
        yield stop
    finally:
        for each in STOP_SIGNALS:
            loop.remove_signal_handler(each)


def log_to_stderr(config: Config, name: str) -> None:
    """Remarks of this process, one line each, with the name of what runs in it."""
    logging.basicConfig(level=config.log_level.upper(), format=f"%(asctime)s {name} %(levelname)s %(message)s")
