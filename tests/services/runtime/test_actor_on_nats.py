"""The shell on a real server: its process and the server are killed, and the log says what follows from it."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from events import codec
from events.base import PoolId
from events.log.base import Message
from events.log.jetstream import JetStreamLog, connect
from events.subjects import decisions_of
from replay.replayer import replay
from services.runtime.config import LogProfile
from services.runtime.embedded import EmbeddedNats, start_nats
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock
from tests.services.runtime import toy

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
ROUNDS = 6
SERVER_KILLS = (1, 3)
FACTS = 120
TIMEOUT_S = 30.0
ACTOR = """
import asyncio, os, secrets, sys
from pathlib import Path
from events.base import PoolId
from events.log.jetstream import JetStreamLog, connect
from services.runtime.actor import Actor, ActorLimits
from services.runtime.snapshot import FileSnapshots
from tests.services.runtime import toy

async def main():
    client = await connect(os.environ["NATS"], name="toy")
    log = await JetStreamLog.open(client, PoolId("p"), append_timeout_s=1.0)
    actor = Actor(toy.TOY, log, owner=secrets.token_hex(6), settings={}, code_version="v1",
                  snapshots=FileSnapshots(Path(sys.argv[1])), limits=ActorLimits(snapshot_every=50, causes_max=4))
    await actor.run(asyncio.Event())

asyncio.run(main())
"""


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[EmbeddedNats]:
    with start_nats(tmp_path / "nats", profile=LogProfile.FAST) as server:
        yield server


async def start_actor(url: str, folder: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", ACTOR, str(folder), cwd=ROOT, env={**os.environ, "NATS": url, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip


async def write_facts(writer: FactWriter, chance: random.Random, numbers: range) -> None:
    for n in numbers:
        await writer.write(toy.Ticked(n=n) if chance.random() < 0.2 else toy.arrived(n))


async def everything(log: JetStreamLog) -> list[Message]:
    return [message async for batch in log.read() for message in batch]


def answers(messages: list[Message]) -> list[tuple[str, object]]:
    records = [record for m in messages for record in codec.decode(m.seq, m.subject, m.body)]
    return [(record.cause, record.event) for record in records if record.actor == "admission" and record.cause]


async def test_killed_actors_and_servers_lose_double_and_change_nothing(own_nats: EmbeddedNats, tmp_path: Path) -> None:
    chance = random.Random(3)
    client = await connect(own_nats.url, name="test")
    log = await JetStreamLog.open(client, PoolId("p"), append_timeout_s=1.0)
    writer = FactWriter(log, source="gateway", owner="g", clock=PoolClock())
    writing = asyncio.create_task(writer.run())
    for number in range(ROUNDS):
        actor = await start_actor(own_nats.url, tmp_path / "snapshots")
        numbers = range(number * FACTS, (number + 1) * FACTS)
        facts = asyncio.create_task(write_facts(writer, chance, numbers))
        await until_decided(log, after=await last_seq(log), messages=chance.randrange(2, 16))
        actor.send_signal(signal.SIGKILL)
        await actor.wait()
        if number in SERVER_KILLS:
            own_nats.kill()
            own_nats.start()
        await facts
        await writer.write(toy.Ticked(n=number))  # Returns when the server answers again.
    last = await start_actor(own_nats.url, tmp_path / "snapshots")
    async with asyncio.timeout(TIMEOUT_S):
        while not all_answered(await everything(log)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    last.kill()
    await last.wait()
    messages = await everything(log)
    expected = [
        (str(step.recorded.at), decision)
        for step in replay(messages, {"admission": toy.TOY}, code_version="v1")
        for decision in step.decisions
    ]
    assert len(expected) > ROUNDS * FACTS // 2
    assert answers(messages) == expected
    assert sum(".actor_started" in message.subject for message in messages) == ROUNDS + 1
    await writer.close()
    await writing
    await log.close()
    await client.close()


async def last_seq(log: JetStreamLog) -> int:
    newest = await log.last()
    return newest.seq if newest else 0


async def until_decided(log: JetStreamLog, *, after: int, messages: int) -> None:
    """Until the actor that starts now has said so much."""
    async with asyncio.timeout(TIMEOUT_S):
        async for batch in log.read(after=after, pattern=decisions_of(log.pool, "admission"), follow=True):
            messages -= len(batch)
            if messages <= 0:
                return


def all_answered(messages: list[Message]) -> bool:
    steps = replay(messages, {"admission": toy.TOY}, code_version="v1")
    return len(answers(messages)) == sum(len(step.decisions) for step in steps)
