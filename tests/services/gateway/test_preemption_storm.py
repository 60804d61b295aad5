"""Many streams of every priority on one small engine, clients that leave, the real admission: however often requests
are taken off, each ends in one way, every answer is whole, and nothing stays behind."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events.base import EngineId, Event
from events.decisions import HolderLost, RequestPreempted, RequestRejected
from events.engine import EngineKind
from events.request import RequestAborted, RequestArrived, RequestExpired, RequestFinished
from policies.admission import ADMISSION
from policies.decider import advance, begin
from services.runtime.config import EngineConfig
from tests.services.gateway.http_rig import CHAT, House, config_of, house
from tests.services.gateway.rig import records

SMALL = EngineConfig(
    id="e1", kind=EngineKind.SIMULATED, models=["tiny"], kv_blocks=80, context_tokens_max=1_280, batch_tokens_max=512
)
REQUESTS = 60
SLO_MS = {"low": 20_000, "middle": 5_000, "high": 1_000}
"""By priority, lowest first: the higher, the less it can wait."""
LEAVES = 0.15
"""The part of the clients that leave in the middle."""


async def one_client(there: House, chance: random.Random, number: int) -> tuple[int, int]:
    """What it asked for, and the tokens that it got; (0, 0) where it was refused or left."""
    wanted = chance.randrange(20, 700)
    stream, leaves = chance.random() < 0.8, chance.random() < LEAVES
    priority = chance.choice(list(SLO_MS))
    headers = {
        "x-llm-d-inference-objective": priority,
        "x-llm-d-slo-ttft-ms": str(SLO_MS[priority]),
        "x-tidegate-output-tokens": str(wanted),
    }
    body = {**CHAT, "stream": stream, "max_tokens": wanted}
    await asyncio.sleep(number * 0.03)
    url = f"{there.gateway.url}/v1/chat/completions"
    async with there.session.post(url, json=body, headers=headers) as response:
        if response.status != 200:
            assert response.status in (429, 503), await response.text()
            return 0, 0
        if not stream:
            answer = msgspec.json.decode(await response.read())
            return wanted, words(answer["choices"][0]["message"])
        got = 0
        async for line in response.content:
            if line.startswith(b"data: {"):
                got += sum(words(choice["delta"]) for choice in msgspec.json.decode(line[6:])["choices"])
                if leaves:
                    response.close()
                    return 0, 0
        return wanted, got


def words(message: dict[str, Any]) -> int:
    return len(str(message.get("content", "")).split())


@pytest.mark.parametrize("seed", [1, 2, 5])
async def test_every_request_ends_once_and_nothing_stays_behind(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    config = config_of(tmp_path, engines=[SMALL], gateway={
        "workload_hints": True, "objectives": {name: rank for rank, name in enumerate(SLO_MS)},
    })  # fmt: skip
    async with asyncio.timeout(60), house(config, speed=20) as there:
        answered = await asyncio.gather(*(
            one_client(there, random.Random(chance.random()), number) for number in range(REQUESTS)
        ))  # fmt: skip
        async with asyncio.timeout(10):
            while there.gateway.holder.holding:  # noqa: ASYNC110 - who left is noticed when its stream goes on
                await asyncio.sleep(0.01)
        measured = await there.gateway.engines[EngineId("e1")].metrics()
        stored = await records(there.log)

    events = [record.event for record in stored]
    admission = begin(ADMISSION)
    for record in stored:
        advance(ADMISSION, admission, record)
    assert not any(account.residents for account in admission.state.accounts.values()), f"seed {seed}"
    assert not admission.state.lines.group_of, f"seed {seed}"
    assert all(wanted == got for wanted, got in answered), f"seed {seed}"
    assert (measured.running, measured.waiting, measured.kv_used_ppm) == (0, 0, 0), f"seed {seed}"
    assert Counter(ends(events)) == Counter(each.request_id for each in events if isinstance(each, RequestArrived))
    assert not [each for each in events if isinstance(each, HolderLost)]
    assert [each for each in events if isinstance(each, RequestPreempted)], "or nothing was shown"


def ends(events: list[Event]) -> list[str]:
    return [
        each.request_id
        for each in events
        if isinstance(each, RequestFinished | RequestRejected | RequestExpired)
        or (isinstance(each, RequestAborted) and each.final)
    ]
