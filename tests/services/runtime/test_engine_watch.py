"""What the sensor says of engines: once, when it changes, when they are lost, ready again, or gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from events.base import EngineId, Event, ModelId, Recorded
from events.engine import EngineHealthChanged, EngineKind, EngineMeasured, EngineRegistered, EngineRemoved, Health
from events.log.memory import MemoryLog
from events.slice import Tier, TierMeasured
from services.engines.base import EngineError
from services.engines.open import Engines
from services.runtime.config import EngineConfig
from services.runtime.engine_watch import EngineWatch
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock
from tests.services.runtime import toy

SPEED = 1_000


class Backend:
    """An engine whose answers a test sets."""

    def __init__(self, config: EngineConfig) -> None:
        self.engine_id = EngineId(config.id)
        self.blocks = 10
        self.answers = True
        self.hangs = False
        self.closed = False

    async def describe(self) -> EngineRegistered:
        await self._answer()
        return EngineRegistered(
            engine_id=self.engine_id, kind=EngineKind.VLLM, models=(ModelId("m"),), kv_blocks=self.blocks,
            block_tokens=16, block_bytes=1,
        )  # fmt: skip

    async def metrics(self) -> EngineMeasured:
        await self._answer()
        return EngineMeasured(engine_id=self.engine_id, running=1, waiting=0, kv_used_ppm=5)

    async def close(self) -> None:
        self.closed = True

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.Future()
        if not self.answers:
            raise EngineError("does not answer", engine_id=self.engine_id, lost=True)


class House:
    """Engines, the watch over them, and what it says."""

    def __init__(self, *ids: str, log: MemoryLog | None = None) -> None:
        self.log = log or MemoryLog(toy.POOL)
        self.configs = [engine(each) for each in ids]
        self.backends: dict[str, Backend] = {}
        self.engines = Engines(self.open_one)
        self.clock = PoolClock(speed=SPEED)
        self.writer = FactWriter(self.log, source="sensor", owner=f"s{len(toy.stored(self.log))}", clock=self.clock)
        self.watch = EngineWatch(self.log, self.engines, writer=self.writer, clock=self.clock)

    def open_one(self, config: EngineConfig) -> Any:
        self.backends[config.id] = Backend(config)
        return self.backends[config.id]

    def said(self, engine_id: str, *kinds: type[Event]) -> list[Any]:
        events = [record.event for record in toy.records(self.log)]
        return [each for each in events if getattr(each, "engine_id", "") == engine_id and isinstance(each, kinds)]

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        await self.engines.reload(self.configs)
        tasks = [asyncio.create_task(work) for work in (self.writer.run(), self.watch.run())]
        yield
        await self.writer.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.engines.close()


def engine(engine_id: str, **settings: Any) -> EngineConfig:
    return EngineConfig(id=engine_id, models=["m"], url="http://127.0.0.1:1", **settings)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_an_engine_is_registered_once_ready_once_and_measured_every_second() -> None:
    house = House("a", "b")
    async with house.watching():
        await until(lambda: all(len(house.said(each, EngineMeasured)) >= 4 for each in "ab"))
    assert len(house.said("a", EngineRegistered)) == 1
    assert [each.health for each in house.said("a", EngineHealthChanged)] == [Health.READY]


async def test_an_engine_is_measured_with_the_directive_that_its_agent_names() -> None:
    house = House("a", "b")
    for tier, version in ((Tier.HBM, 4), (Tier.DRAM, 0)):
        fact = TierMeasured(
            engine_id=EngineId("a"), tier=tier, bytes_max=1, bytes_used=0, slice_bytes=1, directive_version=version,
            evictions_total=2 * version,
        )  # fmt: skip
        house.watch.take(Recorded(seq=1, item=0, event=fact))
    async with house.watching():
        await until(lambda: all(house.said(each, EngineMeasured) for each in "ab"))
    said = {name: house.said(name, EngineMeasured)[0] for name in "ab"}
    assert (said["a"].directive_version, said["a"].evictions_total) == (4, 8)
    assert (said["b"].directive_version, said["b"].evictions_total) == (0, 0)


async def test_a_changed_engine_is_registered_again() -> None:
    house = House("a")
    async with house.watching():
        await until(lambda: len(house.said("a", EngineMeasured)) > 0)
        house.backends["a"].blocks = 20
        await until(lambda: len(house.said("a", EngineRegistered)) == 2)
    assert [each.kv_blocks for each in house.said("a", EngineRegistered)] == [10, 20]


async def test_an_engine_is_lost_after_so_many_failures_and_ready_when_it_answers_again() -> None:
    house = House("a")
    async with house.watching():
        await until(lambda: len(house.said("a", EngineMeasured)) > 0)
        house.backends["a"].answers = False
        await until(lambda: len(house.said("a", EngineHealthChanged)) == 2)
        house.backends["a"].answers = True
        await until(lambda: len(house.said("a", EngineHealthChanged)) == 3)
    health = [(each.health, each.reason) for each in house.said("a", EngineHealthChanged)]
    assert health == [(Health.READY, ""), (Health.LOST, "does not answer"), (Health.READY, "")]


async def test_an_engine_that_is_away_when_the_sensor_starts_is_lost_too() -> None:
    first = House("a")
    async with first.watching():
        await until(lambda: len(first.said("a", EngineMeasured)) > 0)
    second = House("a", log=first.log)
    async with second.watching():
        second.backends["a"].answers = False
        await until(lambda: second.said("a", EngineHealthChanged)[-1].health is Health.LOST)
        second.backends["a"].answers = True
        await until(lambda: second.said("a", EngineHealthChanged)[-1].health is Health.READY)


async def test_one_engine_that_hangs_holds_up_no_other() -> None:
    house = House("a", "b")
    async with house.watching():
        house.backends["a"].hangs = True
        await until(lambda: len(house.said("b", EngineMeasured)) >= 3)
    assert not house.said("a", EngineMeasured)


async def test_an_engine_that_leaves_the_list_is_removed_and_a_new_one_is_watched() -> None:
    house = House("a", "b")
    async with house.watching():
        await until(lambda: len(house.said("a", EngineMeasured)) > 0)
        await house.watch.reloaded(await house.engines.reload([engine("b"), engine("c")]))
        await until(lambda: len(house.said("c", EngineMeasured)) > 0)
    assert house.said("a", EngineRegistered, EngineRemoved)[-1] == EngineRemoved(engine_id=EngineId("a"))
    assert house.backends["a"].closed
    assert not house.said("b", EngineRemoved)


async def test_an_engine_that_left_while_nobody_watched_is_removed_at_the_start() -> None:
    first = House("a", "b")
    async with first.watching():
        await until(lambda: all(len(first.said(each, EngineMeasured)) > 0 for each in "ab"))
    second = House("b", log=first.log)
    async with second.watching():
        await until(lambda: len(second.said("a", EngineRemoved)) == 1)
    assert not second.said("b", EngineRemoved)


async def test_simulated_engines_are_left_to_who_hosts_them() -> None:
    house = House("a")
    house.configs.append(engine("s", kind=EngineKind.SIMULATED))
    async with house.watching():
        await until(lambda: len(house.said("a", EngineMeasured)) >= 2)
    assert not house.said("s", EngineRegistered, EngineMeasured)
