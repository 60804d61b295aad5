"""`tidegate up`: the whole house on this machine: servers, workers and gateway, each a process of its own."""

import asyncio
import sys
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING

import click
import msgspec

from services.commands.options import Settings, with_output, with_settings
from services.runtime.output import Exit, Output, table

if TYPE_CHECKING:
    from services.runtime.config import Config
    from services.runtime.servers import Servers, Started
    from services.runtime.supervisor import Supervisor

GATEWAY = "gateway"
LOOK_EVERY_S = 0.05
WORKERS = (
    ("clock",),
    ("admission",),
    ("quota", "eviction", "migration", "prefetch"),
    ("sensor",),
    ("projector", "auditor", "desk"),
)
"""One process each, in this order. What others wait for stands alone; what decides once a second shares one, and so
does what only looks on or waits for orders. The gateway comes last, when there is something that decides."""
PROFILES = {
    "durable": "durable: every message is on disk before it is acknowledged",
    "fast": "fast: synced every 2 minutes; a power loss may cost as much (nats.profile = durable syncs every message)",
}


class _Up(msgspec.Struct, frozen=True, kw_only=True):
    """What runs where, for `--json`: one line when the gateway serves."""

    gateway: str
    pool: str
    nats: str
    redis: str
    log_profile: str
    state_dir: str
    workers: tuple[str, ...]


@click.command()
@with_settings
@with_output
def command(settings: Settings, out: Output) -> int:
    """Start everything, and keep it up until SIGTERM or Ctrl-C.

    NATS and Valkey are started as children, each unless its URL is given (NATS_URL, REDIS_URL), and kept up like the
    workers. Those learn addresses and credentials from their environment only.
    """
    from services.gateway import http_server
    from services.runtime import servers
    from services.runtime.aio import run
    from services.runtime.config import ConfigError
    from services.runtime.frame import log_to_stderr

    config = settings.load()
    log_to_stderr(config, "up")
    if not config.engines:
        mend = "name some in a file (--config FILE), or take --preset laptop"
        raise ConfigError("there is no engine to serve with", where="settings", key="engines", allowed=mend)
    # One clear line now is worth more than a gateway that is started again and again.
    http_server.listen(config.gateway).close()
    with servers.start(config) as started:
        run(_keep_up(config, started, settings.for_children() | started.addresses.environment(), out))
    return Exit.FINE


async def _keep_up(config: "Config", started: "Started", env: Mapping[str, str], out: Output) -> None:
    from services.runtime import servers
    from services.runtime.frame import stop_by_signal
    from services.runtime.supervisor import Child, Supervisor

    addresses = started.addresses
    with stop_by_signal() as stop:
        # One clear line now is worth more than six processes that cannot start.
        await servers.probe(config, addresses)
        program = (sys.executable, "-m", "services.cli")
        children = [Child(name="+".join(names), command=(*program, "worker", *names), env=env) for names in WORKERS]
        children.append(Child(name=GATEWAY, command=(*program, GATEWAY, "--quiet"), env=env))
        supervisor = Supervisor(children)
        async with asyncio.TaskGroup() as group:
            said = group.create_task(_say_when_open(config, addresses, supervisor, out))
            keeping = group.create_task(servers.keep_up(started.children))
            await supervisor.run(stop)
            said.cancel()
            keeping.cancel()


async def _say_when_open(config: "Config", addresses: "Servers", supervisor: "Supervisor", out: Output) -> None:
    """Look for what the gateway leaves in the run folder as soon as it serves; then say what runs where."""
    from services.runtime import servers

    # Another process opens it: there is no event to wait for.
    while (door := servers.door(config)) is None or door.pid != supervisor.states[GATEWAY].pid:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_EVERY_S)
    _show(config, addresses, door.url, out)


def _show(config: "Config", addresses: "Servers", url: str, out: Output) -> None:
    """What runs where."""
    value = _Up(
        gateway=url, pool=config.pool, nats=addresses.nats_where, redis=addresses.redis_where,
        log_profile=config.nats.profile, state_dir=config.state_dir, workers=tuple(chain(*WORKERS)),
    )  # fmt: skip
    rows = [
        ("gateway", f"{url}/v1"),
        ("pool", config.pool),
        ("nats", addresses.nats_where),
        ("redis", addresses.redis_where),
        ("log", PROFILES[config.nats.profile]),
        ("state dir", config.state_dir),
        ("engines", ", ".join(f"{engine.id} ({engine.kind})" for engine in config.engines)),
    ]
    out.result(value, lambda console: console.print(table(("up", "Ctrl-C stops everything"), rows)))
