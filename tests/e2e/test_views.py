"""Redis emptied, and Redis gone: the views come back, and nothing else notices."""

import json
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.runtime.embedded import EmbeddedNats, EmbeddedValkey
from services.runtime.view_rows import View
from services.runtime.view_store import POSITION, key
from tests.e2e.client import SteadyLoad, steady_load
from tests.e2e.house import House, running, until
from tests.e2e.settings import house_settings

pytestmark = pytest.mark.integration

WORKERS: Final = ("clock projector auditor", "admission")
REQUESTS_PER_S: Final = 10
ANSWERS: Final = 10


async def test_without_redis_nothing_but_the_views_suffers(
    nats_server: EmbeddedNats, own_valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    config = house_settings(tmp_path, nats_url=nats_server.url, redis_url=own_valkey.url)
    async with running(tmp_path, config, workers=WORKERS) as house:
        with redis.Redis.from_url(own_valkey.url, retry=Retry(NoBackoff(), 0)) as store:
            position = partial(position_of, house, store)
            async with steady_load(house.url, per_s=REQUESTS_PER_S) as load:
                first = await until(position, "the views are there")

                store.flushall()
                emptied = await until(position, "the views are there again")
                engines = store.hgetall(key(house.pool, View.ENGINES))
                assert {json.loads(row)["health"] for row in engines.values()} == {"ready"}
                assert set(engines) == {b"e1", b"e2"}

                own_valkey.kill()
                await until(partial(has_answered, load, len(load.answers) + ANSWERS), "answers without Redis")
                own_valkey.restart()
                again = await until(position, "the views are back")
        assert first <= emptied < again
        assert {(answer.status, answer.decided) for answer in load.answers} == {(200, True)}
        assert [house.restarts(name) for name in (*WORKERS, "gateway")] == [0] * 3
        await house.settle()
        report = await house.verify()
    assert report["identical"], report["first_divergence"]


def position_of(house: House, store: redis.Redis) -> int:
    """The seq up to which the views go; 0 where there are none."""
    return int(store.hget(key(house.pool, POSITION), "seq") or 0)


def has_answered(load: SteadyLoad, count: int) -> bool:
    return len(load.answers) >= count
