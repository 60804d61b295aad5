"""The projector worker: the log as views and as a registry of slices in Redis, for people and dashboards."""

import asyncio
import secrets
import time

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from events.log.base import Log
from kvstore.registry.redis import RedisRegistry
from services.runtime.config import Config, without_password
from services.runtime.health import served
from services.runtime.projection import Projection
from services.runtime.registry_book import RegistryBook
from services.runtime.registry_feed import RegistryFeed
from services.runtime.servers import redis_url
from services.runtime.side_by_side import run_until
from services.runtime.tier_metrics import TiersCollector
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
    where = without_password(url)
    store = ViewStore(redis, log.pool, epoch=from_seq, where=where)
    slices = RedisRegistry.open(url, log.pool, where=where, timeout_s=TIMEOUT_S)
    views, book = Views(), RegistryBook()
    owner = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    feed = RegistryFeed(slices, book=book, pool=log.pool, epoch=from_seq, owner=owner, from_seq=from_seq)
    projection = Projection(log, store, views=views, from_seq=from_seq, beside=(feed.take,))
    registry = CollectorRegistry()
    registry.register(ViewsCollector(views))
    registry.register(TiersCollector(book))
    try:
        with served(config, "projector", registry):
            await run_until(stop, projection.read(), projection.write(), feed.write())
    finally:
        await slices.close()
        await redis.aclose()
