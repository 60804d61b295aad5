"""The ingest worker: plain events of clients with their own data plane, without an HTTP front door."""

import asyncio

from prometheus_client import CollectorRegistry

from events.log.jetstream import JetStreamLog
from services.gateway.main import run_ingest
from services.runtime.config import Config
from services.runtime.health import served
from services.runtime.metrics import IngestMetrics


async def run(config: Config, *, log: JetStreamLog, stop: asyncio.Event) -> None:
    """Take events in until `stop`. Raises LogError."""
    registry = CollectorRegistry()
    with served(config, "ingest", registry):
        await run_ingest(config, log=log, nats=log.client, stop=stop, metrics=IngestMetrics(registry))
