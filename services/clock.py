"""The clock worker: one per pool says what time it is."""

import asyncio
import secrets

from prometheus_client import CollectorRegistry

from events.log.base import Log
from services.runtime.config import Config
from services.runtime.health import served
from services.runtime.ticker import Ticker


async def run(config: Config, *, log: Log, stop: asyncio.Event) -> None:
    """Tick until `stop`. Raises LogError."""
    ticker = Ticker(log, owner=f"clock-{secrets.token_hex(6)}", speed=config.speed)
    with served(config, "clock", CollectorRegistry()):
        await ticker.run(stop)
