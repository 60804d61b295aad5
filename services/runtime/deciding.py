"""The process of one actor: the shell around its decider, its snapshots and metrics, and a word on how far it is."""

import asyncio
import secrets
from pathlib import Path

from prometheus_client import CollectorRegistry

from events.log.jetstream import JetStreamLog
from policies.catalog import ACTORS
from replay.code_version import code_version
from services.runtime.actor import Actor
from services.runtime.actor_position import Position, answering
from services.runtime.config import Config
from services.runtime.health import served
from services.runtime.metrics import ActorMetrics
from services.runtime.snapshot import FileSnapshots


async def run(name: str, config: Config, *, log: JetStreamLog, stop: asyncio.Event) -> None:
    """Decide as the actor `name` until `stop`. Raises what `Actor.run` raises."""
    registry = CollectorRegistry()
    owner = f"{name}-{secrets.token_hex(6)}"
    actor = Actor(
        ACTORS[name], log, owner=owner, settings=config.policies.get(name, {}),
        code_version=code_version(), metrics=ActorMetrics(name, registry),
        snapshots=FileSnapshots(Path(config.state_dir) / config.pool / "snapshots"),
    )  # fmt: skip

    settled_seq = 0

    def position() -> Position:
        nonlocal settled_seq
        if actor.is_settled:
            settled_seq = actor.progress.seq
        return Position(actor=name, owner=owner, seq=settled_seq)

    with served(config, name, registry):
        async with answering(log.client, log.pool, position, actor=name):
            await actor.run(stop)
