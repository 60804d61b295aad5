"""Looks after engines that have an address: what they are, whether they answer, what they measure, as facts."""

import asyncio
import logging
from typing import Final

import msgspec

from events import codec, subjects
from events.base import NS_PER_S, EngineId, Event, LogError, Recorded
from events.engine import EngineHealthChanged, EngineKind, EngineMeasured, EngineRegistered, EngineRemoved, Health
from events.log.base import Log
from events.slice import Tier, TierMeasured
from services.engines.base import EngineError, InferenceBackend
from services.engines.open import Engines, Reloaded
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock

FAILURES_MAX: Final = 3
"""So many looks in a row without an answer, and the engine counts as lost."""
DESCRIBE_EVERY: Final = 30
"""Looks between two questions what an engine is."""
_COMING_AND_GOING: Final = tuple(kind.event_kind().encode() for kind in (EngineRegistered, EngineRemoved))

logger = logging.getLogger(__name__)


class EngineWatch:
    """Watches every engine of `engines` that is not simulated, each in a task of its own, so that one that hangs
    holds up no other. Writes with the source `sensor`."""

    def __init__(self, log: Log, engines: Engines, *, writer: FactWriter, clock: PoolClock) -> None:
        self._log, self._engines, self._writer, self._clock = log, engines, writer, clock
        self._group = asyncio.TaskGroup()
        self._watching: dict[EngineId, asyncio.Task[None]] = {}
        self._told: dict[EngineId, TierMeasured] = {}

    async def run(self) -> None:
        """Say which engines left while nobody watched, then watch. Never ends. Raises LogError at its start."""
        for engine_id in await _registered(self._log):
            if engine_id not in self._engines:
                self._say(EngineRemoved(engine_id=engine_id))
        async with self._group:
            self._watch(tuple(self._engines))
            await asyncio.Future()

    async def reloaded(self, reloaded: Reloaded) -> None:
        """The engine list was exchanged: those that left are said to be removed, changed ones are asked anew."""
        for engine_id in (*reloaded.removed, *reloaded.added):
            watching = self._watching.pop(engine_id, None)
            if watching is None:
                continue
            watching.cancel()
            await asyncio.wait((watching,))
            if engine_id in reloaded.removed:
                self._say(EngineRemoved(engine_id=engine_id))
        self._watch(reloaded.added)

    def take(self, recorded: Recorded) -> None:
        """What an engine's agent says and no server tells: the directive that it goes by, and what left its device."""
        event = recorded.event
        if isinstance(event, TierMeasured) and event.tier is Tier.HBM:
            self._told[event.engine_id] = event

    def _watch(self, engine_ids: tuple[EngineId, ...]) -> None:
        for engine_id in engine_ids:
            if self._engines.config(engine_id).kind is not EngineKind.SIMULATED:
                self._watching[engine_id] = self._group.create_task(self._look_after(engine_id), name=engine_id)

    async def _look_after(self, engine_id: EngineId) -> None:
        one = _One(self._engines[engine_id])
        while True:
            for event in await one.look():
                if isinstance(event, EngineHealthChanged):
                    logger.info("engine %s is %s %s", engine_id, event.health, event.reason)
                if isinstance(event, EngineMeasured) and engine_id in self._told:
                    told = self._told[engine_id]
                    event = msgspec.structs.replace(
                        event, directive_version=told.directive_version, evictions_total=told.evictions_total
                    )
                self._say(event)
            await asyncio.sleep(self._clock.wall_s(NS_PER_S))

    def _say(self, event: Event) -> None:
        try:
            self._writer.say(event)
        except LogError as error:
            logger.warning("not said: %s", error)


async def _registered(log: Log) -> list[EngineId]:
    """Engines with an address that stand in the log as part of the pool."""
    there: dict[EngineId, None] = {}
    async for batch in log.read(pattern=subjects.fact(log.pool, "sensor", ">")):
        for message in batch:
            if not any(word in message.body for word in _COMING_AND_GOING):
                continue
            for recorded in codec.decode(message.seq, message.subject, message.body):
                match recorded.event:
                    case EngineRegistered(kind=kind, engine_id=engine_id) if kind is not EngineKind.SIMULATED:
                        there[engine_id] = None
                    case EngineRemoved(engine_id=engine_id):
                        there.pop(engine_id, None)
                    case _:
                        pass
    return list(there)


class _One:
    """What is known of one engine. A look gives what is new."""

    def __init__(self, backend: InferenceBackend) -> None:
        self._backend = backend
        self._said: EngineRegistered | None = None
        self._health: Health | None = None
        self._failures = 0
        self._looks = 0

    async def look(self) -> list[Event]:
        """Ask it once. An engine is said to be ready when it first answers and when it answers again, and to be lost
        also when it never answered: whoever goes by the settings or by an older record takes it for ready."""
        new: list[Event] = []
        try:
            if self._said is None or self._failures or self._looks % DESCRIBE_EVERY == 0:
                described = await self._backend.describe()
                if described != self._said:
                    new.append(described)
                    self._said = described
            measured = await self._backend.metrics()
        except EngineError as error:
            return new + self._failed(error)
        self._looks += 1
        self._failures = 0
        if self._health is not Health.READY:
            self._health = Health.READY
            new.append(EngineHealthChanged(engine_id=self._backend.engine_id, health=Health.READY))
        new.append(measured)
        return new

    def _failed(self, error: EngineError) -> list[Event]:
        self._failures += 1
        if self._failures < FAILURES_MAX or self._health is Health.LOST:
            return []
        self._health = Health.LOST
        return [EngineHealthChanged(engine_id=self._backend.engine_id, health=Health.LOST, reason=error.what)]
