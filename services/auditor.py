"""The auditor worker: is the log what was written, and do its decisions follow from it?"""

import asyncio
import logging
from pathlib import Path

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import RedisError

from events.log.base import Log
from policies.catalog import ACTORS
from replay.code_version import code_version
from services.runtime.audit import Audit, Checkpoint, CheckpointFile
from services.runtime.config import Config
from services.runtime.health import served
from services.runtime.metrics import AuditMetrics
from services.runtime.servers import redis_url
from services.runtime.side_by_side import run_until
from services.runtime.view_store import key

TIMEOUT_S = 0.5
"""Redis holds a copy for people to look at: nothing waits for it longer."""

logger = logging.getLogger(__name__)


class _RedisCopy:
    def __init__(self, redis: Redis, name: str) -> None:
        self._redis, self._name = redis, name

    async def save(self, checkpoint: Checkpoint) -> None:
        try:
            await self._redis.hset(self._name, mapping={"seq": checkpoint.seq, "digest": checkpoint.digest})
        except (RedisError, OSError) as error:
            logger.debug("no copy of the checkpoint: %s", error)


async def run(config: Config, *, log: Log, stop: asyncio.Event) -> None:
    """Audit until `stop`. Raises LogDamaged: stop and restore; LogError when the log is not there."""
    registry = CollectorRegistry()
    redis = Redis.from_url(redis_url(config), socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
    audit = Audit(
        log, deciders=ACTORS, code_version=code_version(), metrics=AuditMetrics(registry),
        kept=CheckpointFile(Path(config.state_dir) / config.pool / "audit.json"),
        copy=_RedisCopy(redis, key(log.pool, "audit")),
    )  # fmt: skip
    try:
        with served(config, "auditor", registry):
            await audit.start()
            await run_until(stop, audit.read(), audit.store())
            await audit.store_once()
    finally:
        await redis.aclose()
