"""A gateway that hosts simulated engines is their sensor: says what they are, whether they answer, what they measure.
It is their effector too: it hands them what the eviction actor directs.

Engines that have an address of their own are the `sensor` worker's."""

import asyncio
import logging
from collections.abc import Iterable

from events.base import NS_PER_S, EngineId, Event, LogError, Recorded
from events.decisions import EngineDirected
from events.engine import EngineHealthChanged, EngineKind, EngineRemoved, Health
from services.engines.base import EngineError
from services.engines.open import Engines, Reloaded
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock

logger = logging.getLogger(__name__)


class HostedEngines:
    """Writes with the source `sensor`."""

    def __init__(self, engines: Engines, *, writer: FactWriter, clock: PoolClock) -> None:
        self._engines, self._writer, self._clock = engines, writer, clock
        self._ready: dict[EngineId, bool] = {}
        self._directed: dict[EngineId, EngineDirected] = {}
        self._to_direct: dict[EngineId, None] = {}
        self._moved = asyncio.Event()

    async def start(self) -> None:
        """Returns once all hosted engines stand in the log. Raises LogError."""
        await self._register(self._engines)

    async def reloaded(self, reloaded: Reloaded) -> None:
        """The engine list was exchanged. Raises LogError."""
        for engine_id in reloaded.removed:
            if self._ready.pop(engine_id, None) is not None:
                await self._writer.write(EngineRemoved(engine_id=engine_id))
        await self._register(reloaded.added)

    async def run(self) -> None:
        """Measure every pool second. Never ends."""
        while True:
            await asyncio.sleep(self._clock.wall_s(NS_PER_S))
            for engine_id in list(self._ready):
                await self._measure(engine_id)

    def take(self, recorded: Recorded) -> None:
        """A record of what the eviction actor says: of each engine's directives the newest counts."""
        match recorded.event:
            case EngineDirected(engine_id=engine_id) as directive:
                known = self._directed.get(engine_id)
                if known is None or known.version < directive.version:
                    self._directed[engine_id] = directive
                    self._to_direct[engine_id] = None
                    self._moved.set()
            case _:
                pass

    async def direct(self) -> None:
        """Hand directives to the engines that are here. Never ends."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            for engine_id in [each for each in self._to_direct if each in self._ready]:
                del self._to_direct[engine_id]
                backend = self._engines.get(engine_id)
                try:
                    if backend is not None:
                        await backend.direct(self._directed[engine_id])
                except EngineError as error:
                    logger.info("%s", error)  # It is gone: what is measured next says so.

    def stop(self) -> None:
        """They end with this process."""
        for engine_id in self._ready:
            self._say(EngineHealthChanged(engine_id=engine_id, health=Health.LOST, reason="gateway stopped"))

    async def _register(self, engine_ids: Iterable[EngineId]) -> None:
        for engine_id in engine_ids:
            if self._engines.config(engine_id).kind is not EngineKind.SIMULATED:
                continue
            await self._writer.write(await self._engines[engine_id].describe())
            await self._writer.write(EngineHealthChanged(engine_id=engine_id, health=Health.READY))
            self._ready[engine_id] = True
            if engine_id in self._directed:
                self._to_direct[engine_id] = None
                self._moved.set()

    async def _measure(self, engine_id: EngineId) -> None:
        backend = self._engines.get(engine_id)
        if backend is None:
            return
        try:
            self._say(await backend.metrics())
        except EngineError as error:
            if self._ready.get(engine_id):
                self._ready[engine_id] = False
                self._say(EngineHealthChanged(engine_id=engine_id, health=Health.LOST, reason=error.what))

    def _say(self, event: Event) -> None:
        if self._writer.down_since is not None:
            return  # What was measured while nobody listened is worth nothing later.
        try:
            self._writer.say(event)
        except LogError:
            return  # The writer has ended: so do we.
