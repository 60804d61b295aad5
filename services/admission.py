"""The admission worker: the shell of `services.runtime.actor` around `policies.admission`."""

import asyncio
import secrets
from pathlib import Path

from prometheus_client import CollectorRegistry

from events.log.base import Log
from policies.catalog import ACTORS
from replay.code_version import code_version
from services.runtime.actor import Actor
from services.runtime.config import Config
from services.runtime.health import served
from services.runtime.metrics import ActorMetrics
from services.runtime.snapshot import FileSnapshots

ACTOR = "admission"


async def run(config: Config, *, log: Log, stop: asyncio.Event) -> None:
    """Decide until `stop`. Raises what `Actor.run` raises."""
    registry = CollectorRegistry()
    actor = Actor(
        ACTORS[ACTOR], log, owner=f"{ACTOR}-{secrets.token_hex(6)}", settings=config.policies.get(ACTOR, {}),
        code_version=code_version(), metrics=ActorMetrics(ACTOR, registry),
        snapshots=FileSnapshots(Path(config.state_dir) / config.pool / "snapshots"),
    )  # fmt: skip
    with served(config, ACTOR, registry):
        await actor.run(stop)
