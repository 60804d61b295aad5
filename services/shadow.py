"""The shadow process: a second policy beside the actors of a pool, and its micro service.

A pool has one at a time, and the log keeps it so, as it does with actors (`runtime.ownership`): a shadow begins with
one message, its first reports, fenced on the newest report of any shadow. It answers before it writes that, so of those
that start at one time one gets in, and whoever comes later is answered by it.

tg.rpc.<pool>.shadow.status      {} -> what is tried since when, and what differs, by actor
tg.rpc.<pool>.shadow.stop        {} -> it ends
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar, Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from prometheus_client import CollectorRegistry

from events import codec, subjects
from events.base import LogError, PoolId
from events.control import ShadowCompared, Ticked
from events.log.base import Fence, FenceBroken, Message
from events.log.jetstream import JetStreamLog
from policies.catalog import ACTORS
from replay.code_version import code_version
from replay.tried import Candidate
from services.runtime.config import Config
from services.runtime.facts import FactWriter
from services.runtime.health import served
from services.runtime.pool_clock import PoolClock
from services.runtime.shadowing import ActorStatus, Shadowing

SOURCE: Final = "shadow"
ASK_TIMEOUT_S: Final = 2.0
STATUS, STOP = "shadow.status", "shadow.stop"


class ShadowRuns(LogError):
    """A pool has one shadow at a time, and another one is there."""

    exit_code: ClassVar[int] = 2


class ShadowSpeaksOtherwise(LogError):
    """The pool's shadow is of another version of the program, and its answer cannot be read here."""

    exit_code: ClassVar[int] = 2


class ShadowStatus(msgspec.Struct, kw_only=True):
    """A running shadow: its start (`name`), what it tries, and how every actor compares."""

    name: str
    pool: str
    policy: str
    actors: list[ActorStatus]


async def run(
    config: Config, of: Candidate, *, log: JetStreamLog, stop: asyncio.Event,
    on_start: Callable[[ShadowStatus], None] = lambda _status: None,
) -> None:  # fmt: skip
    """Run a shadow until `stop`, or until it is told to stop. Raises ShadowRuns, LogError, LogDamaged."""
    reported = await log.last(_reports(log.pool))
    other = await status_of(log.client, log.pool)
    if other is not None:
        mend = "tidegate policy shadow stop"
        raise ShadowRuns(f"a shadow tries {other.policy} already", where=f"pool {log.pool}", mend=mend)
    newest = await log.last()
    tick = await log.last(subjects.fact(log.pool, "clock", Ticked.event_kind()))
    name, clock = f"{SOURCE}-{secrets.token_hex(6)}", PoolClock(speed=config.speed)
    if tick is not None:
        clock.follow(codec.decode(tick.seq, tick.subject, tick.body)[-1].ts_ns)
    writer = FactWriter(log, source=SOURCE, owner=name, clock=clock)
    shadows = [
        Shadowing(
            log, ACTORS[actor], of, name=name, since_seq=newest.seq if newest is not None else 0,
            code_version=code_version(), writer=writer, clock=clock,
        )
        for actor in of.actors()
    ]  # fmt: skip

    def status() -> ShadowStatus:
        return ShadowStatus(name=name, pool=log.pool, policy=of.name, actors=[one.status for one in shadows])

    writing = asyncio.create_task(writer.run(), name="writing")
    try:
        with served(config, SOURCE, CollectorRegistry()):
            async with _answering(log.client, log.pool, status, stop):
                await _begin(log, shadows, name=name, ts_ns=clock.now_ns(), after=reported)
                on_start(status())
                await _work(shadows, stop)
    finally:
        await writer.close()
        await writing


async def status_of(client: Client, pool: PoolId) -> ShadowStatus | None:
    """How the pool's shadow stands; None when there is none. Raises ShadowSpeaksOtherwise."""
    return await _asked(client, pool, STATUS)


async def stop_of(client: Client, pool: PoolId) -> ShadowStatus | None:
    """Tell the pool's shadow to end; how it stood. None when there is none. Raises ShadowSpeaksOtherwise."""
    return await _asked(client, pool, STOP)


def _reports(pool: PoolId) -> str:
    """Where the reports of shadows stand in the log."""
    return subjects.fact(pool, SOURCE, ShadowCompared.event_kind())


async def _begin(log: JetStreamLog, shadows: list[Shadowing], *, name: str, ts_ns: int, after: Message | None) -> None:
    """Write the first reports of all actors behind `after`, the newest of anybody's. Raises ShadowRuns, LogError."""
    said = [codec.Said(event=one.first_report()) for one in shadows]
    subject, fence = _reports(log.pool), Fence(_reports(log.pool), after.seq if after is not None else 0)
    try:
        await log.append(
            subject, codec.encode(owner=name, ts_ns=ts_ns, said=said), msg_id=f"{name}:begins", fence=fence
        )
    except FenceBroken as broken:
        mend = "tidegate policy shadow status, then start this one again"
        raise ShadowRuns("another shadow wrote to the log meanwhile", where=f"pool {log.pool}", mend=mend) from broken


async def _asked(client: Client, pool: PoolId, name: str) -> ShadowStatus | None:
    try:
        answer = await client.request(subjects.rpc(pool, name), b"", timeout=ASK_TIMEOUT_S)
    except (NatsError, TimeoutError):
        return None
    try:
        return msgspec.json.decode(answer.data, type=ShadowStatus)
    except msgspec.DecodeError as error:
        mend = "ask it with the version that it was started with; `stop` has ended it all the same"
        what = f"the shadow runs another version of the program ({error})"
        raise ShadowSpeaksOtherwise(what, where=f"pool {pool}", mend=mend) from error


async def _work(shadows: list[Shadowing], stop: asyncio.Event) -> None:
    """All of them side by side; the first that fails ends all."""
    ended = asyncio.Event()
    tasks = [asyncio.create_task(one.run(ended)) for one in shadows]
    stopping: asyncio.Task[object] = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        ended.set()
        await asyncio.wait(tasks)
    for task in tasks:
        task.result()


@asynccontextmanager
async def _answering(
    client: Client, pool: PoolId, status: Callable[[], ShadowStatus], stop: asyncio.Event
) -> AsyncIterator[None]:
    async def tell(message: Msg) -> None:
        await message.respond(msgspec.json.encode(status()))

    async def end(message: Msg) -> None:
        await tell(message)
        stop.set()

    wanted = ((STATUS, tell), (STOP, end))
    subscriptions = [await client.subscribe(subjects.rpc(pool, name), cb=answer) for name, answer in wanted]
    await client.flush()
    try:
        yield
    finally:
        for one in subscriptions if client.is_connected else ():
            await one.unsubscribe()
