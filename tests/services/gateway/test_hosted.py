"""Engines that a gateway hosts go by what the eviction actor directs, whenever it was said."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from events import codec, subjects
from events.base import EngineId, PoolId, Recorded, SliceId
from events.decisions import CancelReason, EngineDirected, Move, MoveReason, TransferCancelled, TransferOrdered
from events.engine import EngineKind
from events.log.memory import MemoryLog
from events.slice import Tier, TierMeasured, TransferEnd, TransferFinished
from services.engines.open import Engines
from services.gateway.hosted import HostedEngines
from services.runtime.config import EngineConfig
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock
from tests.services.gateway.http_rig import config_of, house
from tests.services.gateway.rig import MODEL, ScriptedEngine, SwitchLog, heard, lost, records

E1 = EngineId("e1")


@asynccontextmanager
async def hosting(*backends: ScriptedEngine) -> AsyncIterator[tuple[HostedEngines, Engines]]:
    by_id = {backend.engine_id: backend for backend in backends}
    engines = Engines(lambda config: by_id[EngineId(config.id)])
    clock = PoolClock()
    writer = FactWriter(MemoryLog(PoolId("p")), source="sensor", owner="g1", clock=clock)
    hosted = HostedEngines(engines, writer=writer, clock=clock)
    tasks = [asyncio.create_task(writer.run()), asyncio.create_task(hosted.carry_out())]
    try:
        yield hosted, engines
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def directed(version: int, engine_id: str = "e1") -> Recorded:
    event = EngineDirected(engine_id=EngineId(engine_id), version=version, eviction="lru", protect_ppm=1)
    return Recorded(seq=version, item=0, event=event, actor="eviction")


def config(engine_id: str = "e1") -> EngineConfig:
    return EngineConfig(id=engine_id, kind=EngineKind.SIMULATED, models=[MODEL])


async def until_told(engine: ScriptedEngine, told: list[str]) -> None:
    async with asyncio.timeout(5):
        while engine.told != told:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_the_newest_directive_of_an_engine_counts_and_each_is_handed_on_once() -> None:
    engine = ScriptedEngine("e1", [])
    async with hosting(engine) as (hosted, engines):
        await engines.reload([config()])
        await hosted.start()
        for version in (1, 3, 2, 3):
            hosted.take(directed(version))
        await until_told(engine, ["direct 3"])
        hosted.take(directed(4))
        await until_told(engine, ["direct 3", "direct 4"])


async def test_an_engine_that_starts_anew_gets_what_was_said_before_it_was_there() -> None:
    engine = ScriptedEngine("e1", [])
    async with hosting(engine) as (hosted, engines):
        hosted.take(directed(7))
        hosted.take(directed(9, "elsewhere"))
        await hosted.reloaded(await engines.reload([config()]))
        await until_told(engine, ["direct 7"])


async def test_an_engine_that_is_gone_keeps_no_other_from_its_directive() -> None:
    gone, there = ScriptedEngine("e1", []), ScriptedEngine("e2", [])

    async def fails(directive: EngineDirected) -> None:
        raise lost()

    gone.direct = fails  # type: ignore[method-assign]
    async with hosting(gone, there) as (hosted, engines):
        await engines.reload([config("e1"), config("e2")])
        await hosted.start()
        hosted.take(directed(1))
        hosted.take(directed(2, "e2"))
        await until_told(there, ["direct 2"])


async def test_a_gateways_engine_says_which_directive_it_goes_by_also_one_from_before_its_start(tmp_path: Path) -> None:
    log = SwitchLog(PoolId("p"))

    async def direct(version: int) -> None:
        said = [codec.Said(cause="1.0", event=directed(version).event)]
        body = codec.encode(owner="test", ts_ns=1, said=said)
        await log.append(subjects.decision(log.pool, "eviction", "engine_directed"), body)

    await direct(4)
    async with house(config_of(tmp_path), log=log, decide=lambda _event: []):
        for version in (4, 5):
            await direct(version)
            async with asyncio.timeout(10):
                await heard(
                    log, lambda event, wanted=version: getattr(event, "directive_version", 0) == wanted  # type: ignore[misc]
                )  # fmt: skip


async def test_orders_reach_an_engine_in_turn_and_those_of_others_do_not() -> None:
    engine = ScriptedEngine("e1", [])
    async with hosting(engine) as (hosted, engines):
        hosted.take(ordered("m0"))
        await engines.reload([config()])
        await hosted.start()
        for each in (ordered("m1"), ordered("m7", "elsewhere"), ordered("p1"), cancelled("m1")):
            hosted.take(each)
        await until_told(engine, ["order m1", "order p1", "cancel m1"])


async def test_a_gateways_engine_says_what_its_tiers_hold_and_what_became_of_an_order(tmp_path: Path) -> None:
    log = SwitchLog(PoolId("p"))
    settings = config_of(tmp_path)
    [tiered] = settings.engines
    settings.engines = [msgspec.structs.replace(tiered, dram_bytes=1 << 30)]
    async with house(settings, log=log, decide=lambda _event: []):
        async with asyncio.timeout(10):
            await heard(log, lambda event: isinstance(event, TierMeasured) and event.tier is Tier.DRAM)
        said = [codec.Said(cause="1.0", event=ordered("m1", tiered.id).event)]
        body = codec.encode(owner="test", ts_ns=1, said=said)
        await log.append(subjects.decision(log.pool, "migration", "transfer_ordered"), body)
        async with asyncio.timeout(10):
            answer = await heard(log, lambda event: isinstance(event, TransferFinished))
    assert isinstance(answer.event, TransferFinished)
    assert (answer.event.order, answer.event.end, answer.event.why) == ("m1", TransferEnd.FAILED, "not_held")
    assert len([one for one in await records(log) if isinstance(one.event, TransferFinished)]) == 1


def ordered(name: str, engine_id: str = "e1") -> Recorded:
    event = TransferOrdered(
        order=name, engine_id=EngineId(engine_id), move=Move.DROP, reason=MoveReason.WORTHLESS,
        slices=(SliceId("s"),), from_tier=Tier.DRAM,
    )  # fmt: skip
    return Recorded(seq=1, item=0, event=event, actor="migration")


def cancelled(name: str) -> Recorded:
    event = TransferCancelled(order=name, engine_id=E1, reason=CancelReason.NOT_NEEDED)
    return Recorded(seq=2, item=0, event=event, actor="migration")
