"""A gateway that hosts simulated engines is their sensor: says what they are, whether they answer, what they measure.
It is their effector too: it hands them what the eviction actor directs, and what migration and prefetch order.

Engines that have an address of their own are the `sensor` worker's."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import Final

from events.base import NS_PER_S, EngineId, Event, LogError, Recorded
from events.decisions import EngineDirected, TransferCancelled, TransferOrdered
from events.engine import EngineHealthChanged, EngineKind, EngineRemoved, Health
from events.slice import TransferFinished
from services.engines.base import EngineError
from services.engines.open import Engines, Reloaded
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock

REPORT_S: Final = 0.05
"""Wall time between two looks whether an order has ended, while there are any."""

logger = logging.getLogger(__name__)


class HostedEngines:
    """Writes with the source `sensor`."""

    def __init__(self, engines: Engines, *, writer: FactWriter, clock: PoolClock) -> None:
        self._engines, self._writer, self._clock = engines, writer, clock
        self._ready: dict[EngineId, bool] = {}
        self._directed: dict[EngineId, EngineDirected] = {}
        self._to_direct: dict[EngineId, None] = {}
        self._ordered: deque[TransferOrdered | TransferCancelled] = deque()
        self._unanswered: dict[EngineId, dict[str, None]] = {}
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
        """A record of what the eviction actor says, or who orders slices to be moved: of each engine's directives the
        newest counts, of orders each, once. What is ordered of an engine that is not here is somebody else's."""
        match recorded.event:
            case EngineDirected(engine_id=engine_id) as directive:
                known = self._directed.get(engine_id)
                if known is None or known.version < directive.version:
                    self._directed[engine_id] = directive
                    self._to_direct[engine_id] = None
                    self._moved.set()
            case TransferOrdered(engine_id=engine_id) | TransferCancelled(engine_id=engine_id) as order:
                if engine_id in self._ready:
                    self._ordered.append(order)
                    self._moved.set()
            case _:
                pass

    async def carry_out(self) -> None:
        """Hand directives and orders to the engines that are here, and say what became of orders. Never ends."""
        while True:
            try:
                async with asyncio.timeout(REPORT_S if self._unanswered else None):
                    await self._moved.wait()
            except TimeoutError:
                pass  # Nothing new; some orders may have ended.
            self._moved.clear()
            for engine_id in [each for each in self._to_direct if each in self._ready]:
                del self._to_direct[engine_id]
                await self._direct(engine_id)
            while self._ordered:
                await self._order(self._ordered.popleft())
            for engine_id in list(self._unanswered):
                await self._tell_slices(engine_id, measure=False)

    async def _direct(self, engine_id: EngineId) -> None:
        backend = self._engines.get(engine_id)
        try:
            if backend is not None:
                await backend.direct(self._directed[engine_id])
        except EngineError as error:
            logger.info("%s", error)  # It is gone: what is measured next says so.

    async def _order(self, order: TransferOrdered | TransferCancelled) -> None:
        backend = self._engines.get(order.engine_id)
        try:
            if backend is not None:
                await backend.order(order)
                if isinstance(order, TransferOrdered) and backend.get_capability().reports_slices:
                    self._unanswered.setdefault(order.engine_id, {})[order.order] = None
        except EngineError as error:
            logger.info("%s", error)

    async def _tell_slices(self, engine_id: EngineId, *, measure: bool) -> None:
        """Changes are only asked for while the log takes them: what is asked for is not said a second time."""
        backend = self._engines.get(engine_id)
        if self._writer.down_since is not None:
            return
        try:
            facts = await backend.slice_facts(measure=measure) if backend is not None else []
        except EngineError:
            self._unanswered.pop(engine_id, None)  # What it was doing went with it.
            return
        for fact in facts:
            self._say(fact)
            if isinstance(fact, TransferFinished):
                self._unanswered.get(engine_id, {}).pop(fact.order, None)
        if not self._unanswered.get(engine_id, True):
            del self._unanswered[engine_id]

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
            self._unanswered.pop(engine_id, None)
            await self._tell_slices(engine_id, measure=True)
            if engine_id in self._directed:
                self._to_direct[engine_id] = None
                self._moved.set()

    async def _measure(self, engine_id: EngineId) -> None:
        backend = self._engines.get(engine_id)
        if backend is None:
            return
        try:
            self._say(await backend.metrics())
            await self._tell_slices(engine_id, measure=True)
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
