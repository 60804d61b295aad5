"""Whoever is killed, whenever: every request ends, every client gets an answer, every decision stands once."""

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import pytest

from events.base import NS_PER_MS, RequestKind
from events.control import ActorStarted
from events.decisions import RequestAdmitted, RequestRejected
from replay.workloads.base import Arrival
from services.load import drive
from services.runtime.embedded import EmbeddedNats
from tests.e2e.client import MODEL
from tests.e2e.house import House, running, until
from tests.e2e.settings import house_settings

pytestmark = pytest.mark.integration

ADMISSION_KILLS: Final = 10
NATS_KILLS: Final = 3
CRASHES: Final = ADMISSION_KILLS + NATS_KILLS
NATS_KILL_EVERY: Final = 4
"""Every fourth crash is the server's."""
REQUESTS_PER_CRASH: Final = 154
REQUESTS: Final = CRASHES * REQUESTS_PER_CRASH
SPEED: Final = 10
WALL_MS_PER_CRASH: Final = 1_000
LOAD_TIMEOUT_S: Final = 180.0
PATIENT_MS: Final = 40_000
"""Four seconds of the wall's: what is asked while admission is away waits for its next start."""
EMBEDDING_SHARE: Final = 0.1
ANSWERS_WITHOUT_LOG: Final = 10
"""So many clients are answered while NATS is down, before it comes back."""


def workload(random: Random, name: str) -> list[Arrival]:
    """Small prompts that share prefixes, at random times; now and then an embedding."""
    span_ns = WALL_MS_PER_CRASH * SPEED * NS_PER_MS
    times = sorted(random.randrange(span_ns) for _ in range(REQUESTS_PER_CRASH))
    return [_arrival(random, f"{name}-{number}", at_ns) for number, at_ns in enumerate(times)]


def _arrival(random: Random, name: str, at_ns: int) -> Arrival:
    embedding = random.random() < EMBEDDING_SHARE
    output = 0 if embedding else random.randrange(8, 400)
    return Arrival(
        at_ns=at_ns, request_id=name, kind=RequestKind.EMBEDDING if embedding else RequestKind.LLM, model=MODEL,
        prompt_tokens=random.randrange(64, 1_024), output_tokens=output, tokens_max=output and 400,
        prefix=(random.randrange(4), random.randrange(40)), prefix_tokens=256,
    )  # fmt: skip


async def test_a_log_full_of_crashes_replays_to_the_same_decisions(own_nats: EmbeddedNats, tmp_path: Path) -> None:
    config = house_settings(tmp_path, nats_url=own_nats.url, speed=SPEED, kv_tokens=8_192, slo_ttft_ms=PATIENT_MS)
    random = Random(7)
    async with running(tmp_path, config) as house:
        statuses: Counter[int] = Counter()
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            for number in range(1, CRASHES + 1):
                victim = house if number % NATS_KILL_EVERY else own_nats
                statuses += await serve_through_a_crash(house, victim, workload(random, f"r{number}"))
        assert set(statuses) <= {200, 429, 503}, statuses
        assert statuses.total() == REQUESTS
        assert statuses[200] > REQUESTS // 2, statuses
        await house.witness.until(lambda: house.witness.arrived <= house.witness.ended, "every request has ended")
        await house.settle()
        report = await house.verify()

    assert report["identical"], report["first_divergence"]
    assert report["differences"] == {}
    assert report["pending"] == report["two_owners"] == report["taken_in"] == 0
    assert house.witness.answered_twice() == {}
    assert len(house.witness.all(ActorStarted)) == ADMISSION_KILLS + 1 == len(report["epochs"])
    admitted, rejected = house.witness.all(RequestAdmitted), house.witness.all(RequestRejected)
    verdicts = Counter((one.request_id, one.attempt) for one in admitted)
    verdicts += Counter((one.request_id, one.attempt) for one in rejected)
    assert verdicts.total() > REQUESTS // 2
    assert set(verdicts.values()) == {1}


async def serve_through_a_crash(house: House, victim: House | EmbeddedNats, arrivals: list[Arrival]) -> Counter[int]:
    """Send all arrivals; kill admission (of `house`) or NATS while they are under way. The statuses that came back."""
    answered: list[int] = []

    def reached(count: int) -> bool:
        return len(answered) >= count

    async with asyncio.TaskGroup() as group:
        driving = group.create_task(
            drive(house.url, arrivals, speed=SPEED, on_answer=lambda _, status: answered.append(status))
        )
        await until(partial(reached, len(arrivals) // 4), "answers before the crash")
        if isinstance(victim, House):
            owners = len(house.witness.all(ActorStarted))
            await house.kill("admission")
            await house.witness.comes(ActorStarted, count=owners + 1)
        else:
            victim.kill()
            await until(partial(reached, len(answered) + ANSWERS_WITHOUT_LOG), "answers without a log")
            victim.restart()
    result = driving.result()
    assert result.broken == 0
    return result.statuses
