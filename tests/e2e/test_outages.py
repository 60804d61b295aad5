"""NATS stopped under load: the gateway does what `on_log_down` says, harms no stream, and recovers by itself."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from events.decisions import HolderLost
from events.request import FirstTokenSeen
from services.runtime.config import OnLogDown
from services.runtime.embedded import EmbeddedNats
from tests.e2e.client import Answer, SteadyLoad, ask, steady_load
from tests.e2e.house import House, running, until
from tests.e2e.settings import house_settings

pytestmark = pytest.mark.integration

OUTAGE_S: Final = float(os.environ.get("E2E_OUTAGE_S", "3"))
REQUESTS_PER_S: Final = 8
STREAMS: Final = 3
STREAM_TOKENS: Final = 200 * (int(OUTAGE_S) + 3)
"""At six milliseconds each, a stream begins before the outage and ends after it."""
STREAM_TIMEOUT_S: Final = 60.0 + 2 * OUTAGE_S
LOG_DOWN_AFTER_S: Final = 1.0
SLOW_S: Final = 1.5
"""What a busy test machine may add to an answer."""
RECOVERED: Final = 5
UNDECIDED: Final = {(503, "log_down"), (503, "expired")}
"""What a client hears who came just before it was clear that the log is away: whichever limit passes first."""


async def test_the_gateway_does_as_it_was_told_while_nats_is_away_and_recovers_by_itself(
    own_nats: EmbeddedNats, tmp_path: Path
) -> None:
    refuse = house_settings(tmp_path, nats_url=own_nats.url, on_log_down=OnLogDown.REFUSE)
    serve = house_settings(tmp_path, nats_url=own_nats.url, on_log_down=OnLogDown.PASS)
    async with running(tmp_path, refuse) as refusing, running(tmp_path, serve) as passing:
        async with streams_in_flight(refusing, passing) as streams:
            down_s, up_s, refused, passed = await outage(own_nats, refusing, passing)
        surely_down = (down_s + LOG_DOWN_AFTER_S + SLOW_S / 2, up_s)

        assert refused.between(*surely_down)
        for answer in refused.between(*surely_down):
            assert (answer.status, answer.reason) == (503, "log_down")
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.took_s < SLOW_S / 2
        assert slow(refused) == []
        assert {(answer.status, answer.reason) for answer in refused.answers} <= {(200, ""), *UNDECIDED}

        assert passed.between(*surely_down)
        assert not any(answer.decided for answer in passed.between(*surely_down))
        assert slow(passed) == []
        assert {(answer.status, answer.reason) for answer in passed.answers} == {(200, "")}
        assert all(answer.decided for answer in passed.between(0, down_s - SLOW_S))

        assert [stream.status for stream in streams] == [200] * 2 * STREAMS
        assert [stream.output_tokens for stream in streams] == [STREAM_TOKENS] * 2 * STREAMS
        assert all(stream.complete for stream in streams)

        for house in (refusing, passing):
            await house.witness.until(partial(all_ended, house), "every request has ended")
            assert house.witness.all(HolderLost) == []
            await house.settle()
            report = await house.verify()
            assert report["identical"], report["first_divergence"]


@asynccontextmanager
async def streams_in_flight(*houses: House) -> AsyncIterator[list[Answer]]:
    """Streams of all houses that have begun when the block does. The list is filled at the end of the block, when they
    are over."""
    answers: list[Answer] = []
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        streams = [
            group.create_task(
                ask(session, house.url, output_tokens=STREAM_TOKENS, stream=True, timeout_s=STREAM_TIMEOUT_S)
            )
            for house in houses
            for _ in range(STREAMS)
        ]
        for house in houses:
            await house.witness.comes(FirstTokenSeen, count=STREAMS)
        yield answers
        answers += await asyncio.gather(*streams)


async def outage(nats: EmbeddedNats, refusing: House, passing: House) -> tuple[float, float, SteadyLoad, SteadyLoad]:
    """NATS away for OUTAGE_S under a load on both gateways: when it went, when it was back, and all answers. Ends when
    both gateways serve as before."""
    load = partial(steady_load, per_s=REQUESTS_PER_S)
    async with load(refusing.url) as refused, load(passing.url) as passed:
        await until(lambda: min(len(refused.answers), len(passed.answers)) > REQUESTS_PER_S, "answers at first")
        nats.kill()
        down_s = time.monotonic()
        await until(lambda: time.monotonic() > down_s + OUTAGE_S, "the outage is over", timeout_s=2 * OUTAGE_S)
        up_s = time.monotonic()
        nats.restart()
        for served in (refused, passed):
            await until(partial(has_recovered, served, up_s), "decided answers after the outage")
    return down_s, up_s, refused, passed


def has_recovered(load: SteadyLoad, up_s: float) -> bool:
    newest = load.answers[-RECOVERED:]
    return all(answer.sent_s > up_s and answer.status == 200 and answer.decided for answer in newest)


def slow(load: SteadyLoad) -> list[Answer]:
    """Who was left waiting."""
    return [answer for answer in load.answers if answer.took_s > LOG_DOWN_AFTER_S + SLOW_S]


def all_ended(house: House) -> bool:
    return house.witness.arrived <= house.witness.ended
