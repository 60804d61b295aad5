"""The projector worker: the log as views in Redis, for people and dashboards."""

import asyncio

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from events.log.base import Log
from services.runtime.config import Config, without_password
from services.runtime.health import served
from services.runtime.projection import Projection
from services.runtime.servers import redis_url
from services.runtime.side_by_side import run_until
from services.runtime.view_metrics import ViewsCollector
from services.runtime.view_store import ViewStore
from services.runtime.views import Views

TIMEOUT_S = 2.0


async def run(config: Config, *, log: Log, stop: asyncio.Event) -> None:
    """Project until `stop`. Redis may be away, also at the start. Raises LogError, Replaced."""
    url = redis_url(config)
    redis = Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
    newest = await log.last()
    from_seq = newest.seq if newest is not None else 0
    # The later a projector starts, the further the log has come: that orders them.
    store = ViewStore(redis, log.pool, epoch=from_seq, where=without_password(url))
    views = Views()
    projection = Projection(log, store, views=views, from_seq=from_seq)
    registry = CollectorRegistry()
    registry.register(ViewsCollector(views))
    try:
        with served(config, "projector", registry):
            await run_until(stop, projection.read(), projection.write())
    finally:
        await redis.aclose()
