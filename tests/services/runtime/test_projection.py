"""The projector against a store: in memory here, against a real Valkey where marked."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from events.base import PoolId
from events.log.memory import MemoryLog
from services.runtime import projection
from services.runtime.projection import Projection, Replaced
from services.runtime.side_by_side import run_until
from services.runtime.view_rows import View
from services.runtime.view_store import StoreError, ViewStore, Written, key
from services.runtime.views import Views
from tests.services.runtime import toy


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "WRITE_EVERY_S", 0.001)
    monkeypatch.setattr(projection, "RETRY_S", 0.001)


class DownStore:
    """A store that fails so many times, then takes what comes; forgets everything when told to."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.fields: dict[tuple[View, str], bytes] | None = None
        self.tries = 0

    async def write(self, views: Views, changed: list[tuple[View, str]] | None) -> Written:
        self.tries += 1
        if self.tries <= self.failures:
            raise StoreError("down", where="test")
        if changed is not None and self.fields is None:
            return Written.LOST
        if changed is None:
            self.fields, changed = {}, [(view, field) for view in View for field in views.tables[view]]
        assert self.fields is not None
        for view, field in changed:
            value = views.value(view, field)
            self.fields.pop((view, field), None)
            if value is not None:
                self.fields[view, field] = value
        return Written.WRITTEN


def folded(log: MemoryLog) -> dict[tuple[View, str], bytes]:
    views = Views()
    for record in toy.records(log):
        views.take(record)
    return {(view, field): views.value(view, field) or b"" for view in View for field in views.tables[view]}


@contextlib.asynccontextmanager
async def projecting(log: MemoryLog, store: Any) -> AsyncIterator[asyncio.Task[None]]:
    stop = asyncio.Event()
    one = Projection(log, store, views=Views(), from_seq=0)
    task = asyncio.create_task(run_until(stop, one.read(), one.write()))
    yield task
    stop.set()
    await asyncio.wait((task,))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_views_come_through_a_store_that_was_down() -> None:
    log, store = MemoryLog(toy.POOL), DownStore(failures=5)
    await toy.say_some(log, random.Random(1), range(20))
    async with projecting(log, store):
        await until(lambda: store.fields == folded(log))
        await toy.say_some(log, random.Random(2), range(20, 40))
        await until(lambda: store.fields == folded(log))
    assert store.tries > 5


async def test_a_store_that_forgot_everything_gets_everything_again() -> None:
    log, store = MemoryLog(toy.POOL), DownStore(failures=0)
    await toy.say_some(log, random.Random(1), range(20))
    async with projecting(log, store):
        await until(lambda: store.fields == folded(log))
        store.fields = None
        await toy.say(log, toy.arrived(999))
        await until(lambda: store.fields == folded(log))


async def test_nothing_is_written_before_the_place_where_the_log_ended_at_the_start() -> None:
    log, store = MemoryLog(toy.POOL), DownStore(failures=0)
    await toy.say(log, toy.arrived(1))
    stop, views = asyncio.Event(), Views()
    one = Projection(log, store, views=views, from_seq=2)
    run = asyncio.create_task(run_until(stop, one.read(), one.write()))
    await until(lambda: views.seq == 1 and not one._moved.is_set())
    assert store.tries == 0
    await toy.say(log, toy.arrived(2))
    await until(lambda: store.fields == folded(log))
    stop.set()
    await run


async def in_redis(redis: Redis, pool: PoolId) -> dict[tuple[View, str], bytes]:
    return {
        (view, field.decode()): value
        for view in View
        for field, value in (await redis.hgetall(key(pool, view))).items()
    }


async def until_redis_holds(redis: Redis, log: MemoryLog) -> None:
    async with asyncio.timeout(10):
        while await in_redis(redis, log.pool) != folded(log):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.integration
async def test_a_flushed_server_is_filled_again(redis_url: str, pool: PoolId) -> None:
    log = MemoryLog(pool)
    async with Redis.from_url(redis_url) as redis:
        await toy.say_some(log, random.Random(1), range(30))
        async with projecting(log, ViewStore(redis, pool, epoch=1, where="test")):
            await until_redis_holds(redis, log)
            await toy.say_some(log, random.Random(2), range(30, 60))
            await until_redis_holds(redis, log)
            await redis.flushall()
            await toy.say_some(log, random.Random(3), range(60, 70))
            await until_redis_holds(redis, log)
        assert int(await redis.hget(key(pool, "position"), "seq")) == len(toy.stored(log))


@pytest.mark.integration
async def test_every_write_is_guarded_by_epoch_and_seq(redis_url: str, pool: PoolId) -> None:
    async with Redis.from_url(redis_url) as redis:
        old, new = (ViewStore(redis, pool, epoch=epoch, where="test") for epoch in (5, 6))
        views = Views()
        assert await old.write(views, []) is Written.LOST, "nothing stands there yet"
        for seq, n in ((1, 1), (2, 2)):
            views.take(toy.Recorded(seq=seq, item=0, event=toy.arrived(n)))
        assert await old.write(views, None) is Written.WRITTEN
        assert await old.write(views, list(views.changed)) is Written.BEFORE, "a repeat changes nothing"
        views.take(toy.Recorded(seq=3, item=0, event=toy.arrived(3)))
        assert await old.write(views, list(views.changed)) is Written.WRITTEN
        assert await new.write(views, list(views.changed)) is Written.LOST, "a new epoch begins with everything"
        assert await new.write(views, None) is Written.WRITTEN
        views.take(toy.Recorded(seq=4, item=0, event=toy.arrived(4)))
        assert await old.write(views, list(views.changed)) is Written.REPLACED
        assert await old.write(views, None) is Written.REPLACED
        assert int(await redis.hget(key(pool, "position"), "seq")) == 3


@pytest.mark.integration
async def test_a_projector_that_was_replaced_ends(redis_url: str, pool: PoolId) -> None:
    log = MemoryLog(pool)
    async with Redis.from_url(redis_url) as redis:
        await toy.say(log, toy.arrived(1))
        async with projecting(log, ViewStore(redis, pool, epoch=1, where="test")) as first:
            await until_redis_holds(redis, log)
            async with projecting(log, ViewStore(redis, pool, epoch=2, where="test")):
                await toy.say(log, toy.arrived(2))
                await until_redis_holds(redis, log)
                await toy.say(log, toy.arrived(3))
                with pytest.raises(Replaced):
                    await asyncio.wait_for(asyncio.shield(first), 10)
