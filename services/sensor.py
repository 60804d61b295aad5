"""The sensor worker: engines that have an address, and this host's devices, as facts. A gateway tells of the simulated
engines that it hosts."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import partial

from prometheus_client import CollectorRegistry

from events.base import Recorded
from events.control import Ticked
from events.engine import EngineKind
from events.log.base import Log
from services.engines.open import Engines, open_engine
from services.gateway.log_reader import LogReader, clock_of, facts_of
from services.runtime.config import Config, EngineConfig
from services.runtime.device_watch import DeviceWatch
from services.runtime.devices import NvmlDevices, host_name
from services.runtime.engine_watch import EngineWatch
from services.runtime.facts import FactWriter
from services.runtime.health import served
from services.runtime.pool_clock import PoolClock
from services.runtime.side_by_side import run_until

Take = Callable[[Config], Awaitable[object]]
Follow = Callable[[Take], Awaitable[None]]


async def run(config: Config, *, log: Log, stop: asyncio.Event, follow: Follow | None = None) -> None:
    """Watch until `stop`. `follow` hands on changed settings (`runtime.reload`). Raises ConfigError, LogError."""
    clock = await clock_of(log, speed=config.speed)
    engines = Engines(partial(open_engine, clock=clock))
    writer = FactWriter(log, source="sensor", owner=f"sensor-{secrets.token_hex(6)}", clock=clock)
    watch = EngineWatch(log, engines, writer=writer, clock=clock)
    registry = CollectorRegistry()
    devices = DeviceWatch(NvmlDevices(), engines, host=host_name(), writer=writer, registry=registry)
    ticks = LogReader(log, facts_of(log, "clock"), partial(_follow_tick, clock))
    agents = LogReader(log, facts_of(log, "agent"), watch.take)

    async def take(changed: Config) -> None:
        await watch.reloaded(await engines.reload(_addressed(changed)))

    async def take_changes() -> None:
        if follow is not None:
            await follow(take)

    await engines.reload(_addressed(config))
    await ticks.start()
    await agents.start()
    with served(config, "sensor", registry):
        async with asyncio.TaskGroup() as group:
            group.create_task(writer.run())
            try:
                await run_until(stop, ticks.run(), agents.run(), watch.run(), devices.run(), take_changes())
            finally:
                await writer.close()
                await engines.close()


def _addressed(config: Config) -> list[EngineConfig]:
    return [engine for engine in config.engines if engine.kind is not EngineKind.SIMULATED]


def _follow_tick(clock: PoolClock, recorded: Recorded) -> None:
    if isinstance(recorded.event, Ticked):
        clock.follow(recorded.ts_ns)
