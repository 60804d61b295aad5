"""A second policy beside real actors on a real log: what it would say is compared, heard by whoever listens, and
carried out by nobody; promoted, it is the live one."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg

from events import codec, subjects
from events.base import Event, LogError, PoolId, Recorded
from events.control import PolicyConfigured, ShadowCompared
from events.log.base import Message
from events.log.jetstream import JetStreamLog, connect
from policies.catalog import ACTORS
from replay.chain import chain_of
from replay.code_version import code_version
from replay.tried import Candidate, candidate
from replay.verify import verify
from replay.whatif import open_loop
from services import admission, cli, eviction, quota
from services import shadow as shadows
from services.runtime.actor_position import taken_in
from services.runtime.config import Config, LogProfile
from services.runtime.embedded import EmbeddedNats, start_nats
from services.runtime.orders import Refused, taking_orders
from services.runtime.output import Exit
from services.shadow import ShadowRuns, ShadowStatus, status_of, stop_of
from tests.policies.words import arrived, engine, measured, tick

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
START_NS = 1_000 * 10**9
TIMEOUT_S = 20.0
OBSERVE = candidate("first_come")
PROMPT: dict[str, dict[str, Any]] = {"admission": {"late_max_ns": 0}}
"""One word for each request, at once: none waits to be served late."""
FEWER = candidate("recorded", {"admission": {"placement": "round_robin", "mode": "observe"}})


class House:
    """A pool with some actors, facts, and shadows, each in a task of its own."""

    def __init__(self, log: JetStreamLog, config: Config) -> None:
        self.log, self.config = log, config
        self._running: list[tuple[asyncio.Event, asyncio.Task[None]]] = []
        self._said = self._requests = 0

    def start(self, run: Any) -> None:
        stop = asyncio.Event()
        self._running.append((stop, asyncio.create_task(run(self.config, log=self.log, stop=stop))))

    async def stop(self) -> None:
        for stop, task in reversed(self._running):
            stop.set()
            await task
        self._running.clear()

    async def stop_first(self) -> None:
        stop, task = self._running.pop(0)
        stop.set()
        await task

    async def shadow(self, of: Candidate) -> asyncio.Task[None]:
        """Start a shadow; its task, once it answers."""
        begun, stop = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(
            shadows.run(self.config, of, log=self.log, stop=stop, on_start=lambda _status: begun.set())
        )
        self._running.append((stop, task))
        async with asyncio.timeout(TIMEOUT_S):
            await begun.wait()
        return task

    async def say(self, *events: Event, at_s: float) -> int:
        """Facts of one source at a pool time; where the last one stands."""
        seq = 0
        for event in events:
            self._said += 1
            body = codec.encode(owner="t", ts_ns=START_NS + int(at_s * 10**9), said=[codec.Said(event=event)])
            source = "clock" if event.event_kind() == "ticked" else "sensor"
            subject = subjects.fact(self.log.pool, source, event.event_kind())
            seq = await self._stored(subject, body)
        return seq

    async def _stored(self, subject: str, body: bytes) -> int:
        """Until the log takes it, as a writer of facts does."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    return await self.log.append(subject, body, msg_id=f"test:{self._said}")
                except LogError:
                    await asyncio.sleep(0.05)

    async def day(self, seconds: int, *, from_s: int) -> int:
        """A few requests a second on two engines; where it ends."""
        seq = 0
        for n in range(from_s, from_s + seconds):
            for _ in range(3):
                self._requests += 1
                seq = await self.say(arrived(f"r{self._requests}"), at_s=n)
            seq = await self.say(measured("e1"), measured("e2"), tick(n), at_s=n)
        return seq

    async def messages(self) -> list[Message]:
        return [message async for batch in self.log.read() for message in batch]

    async def records(self) -> list[Recorded]:
        return [one for m in await self.messages() for one in codec.decode(m.seq, m.subject, m.body)]

    async def reports(self) -> list[Recorded]:
        return [one for one in await self.records() if isinstance(one.event, ShadowCompared)]

    async def answered(self, seq: int, *actors: str) -> None:
        """All that the actors decide because of the log up to here is stored."""
        async with asyncio.timeout(TIMEOUT_S):
            for actor in actors:
                while not await taken_in(self.log.client, self.log.pool, actor, seq):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    async def until(self, holds: Callable[[ShadowStatus], bool]) -> ShadowStatus:
        """How the shadow stands as soon as something holds of it."""
        async with asyncio.timeout(TIMEOUT_S):
            while (found := await status_of(self.log.client, self.log.pool)) is None or not holds(found):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return found

    async def command(self, *argv: str) -> int:
        where = (f"nats.url={self.config.nats.url}", f"pool={self.log.pool}", f"state_dir={self.config.state_dir}")
        return await asyncio.to_thread(cli.run, [*argv, *(word for each in where for word in ("--set", each))])


@pytest.fixture
async def house(jetstream_log: JetStreamLog, nats_server: EmbeddedNats, tmp_path: Path) -> AsyncIterator[House]:
    config = Config(pool=jetstream_log.pool, state_dir=str(tmp_path / "state"), policies=PROMPT)
    config.nats.url = nats_server.url
    found = House(jetstream_log, config)
    for run in (admission.run, quota.run, eviction.run):
        found.start(run)
    yield found
    await found.stop()


async def begun(house: House) -> int:
    """Two engines, and a second that everybody took in."""
    seq = await house.say(engine("e1"), engine("e2"), measured("e1"), measured("e2"), tick(0), at_s=0)
    await house.answered(seq, "admission", "quota", "eviction")
    return seq


@asynccontextmanager
async def listening(house: House, subject: str) -> AsyncIterator[list[Msg]]:
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    subscription = await house.log.client.subscribe(subject, cb=hear)
    yield heard
    await subscription.unsubscribe()


@pytest.mark.parametrize("of", [OBSERVE, FEWER])
async def test_a_shadow_counts_what_the_log_tried_afterwards_counts(house: House, of: Candidate) -> None:
    await house.shadow(of)
    await begun(house)
    await house.day(6, from_s=1)
    seq = await house.say(arrived("the last one"), at_s=6)  # Always answered: so the log tells up to here.
    await house.answered(seq, "admission")
    status = await house.until(lambda found: found.actors[0].seq >= seq)
    messages = await house.messages()
    assert not [one for one in messages if one.seq > seq and ".fact." in one.subject and ".shadow." not in one.subject]
    (_, offline) = open_loop(messages, house.log.pool, [of]).tried
    live, later = (msgspec.to_builtins(one) for one in (status.actors[0].found, offline.actors[0]))
    assert live["outcomes"] > 0
    assert live == later


async def test_an_actor_that_is_replaced_and_a_server_that_dies_cost_no_difference(
    tmp_path: Path, pool: PoolId
) -> None:
    with start_nats(tmp_path / "nats", profile=LogProfile.FAST) as server:
        config = Config(pool=pool, state_dir=str(tmp_path / "state"), policies=PROMPT)
        config.nats.url = server.url
        client = await connect(server.url, name="tests")
        house = House(await JetStreamLog.open(client, pool, append_timeout_s=1.0), config)
        house.start(admission.run)
        await house.shadow(FEWER)
        await house.say(engine("e1"), engine("e2"), tick(0), at_s=0)
        await house.day(3, from_s=1)
        await house.stop_first()  # What comes while nobody runs admission is answered by the next.
        await house.day(2, from_s=4)
        server.kill()
        server.start()
        await house.day(1, from_s=6)  # Stored once the server is back.
        house.start(admission.run)
        await house.day(2, from_s=7)
        seq = await house.say(arrived("the last one"), at_s=9)
        await house.answered(seq, "admission")
        (status,) = (await house.until(lambda found: found.actors[0].seq >= seq)).actors
        (_, offline) = open_loop(await house.messages(), pool, [FEWER]).tried
        assert status.found.words == 25
        assert msgspec.to_builtins(status.found) == msgspec.to_builtins(offline.actors[0])
        await house.stop()
        await house.log.close()
        await client.close()


async def test_what_a_shadow_says_is_heard_beside_the_log_and_stands_nowhere_in_it(house: House) -> None:
    await begun(house)
    pool = house.log.pool
    async with listening(house, f"tg.shadow.{pool}.>") as heard:
        await house.shadow(FEWER)
        seq = await house.day(4, from_s=1)
        await house.answered(seq, "admission")
        await house.until(lambda found: all(one.seq >= seq for one in found.actors))
        await house.log.client.flush()
    decided = [message for message in heard if ".decision." in message.subject]
    differing = [message for message in heard if ".difference." in message.subject]
    assert {message.subject for message in differing} == {f"tg.shadow.{pool}.difference.admission"}
    said = [one for m in decided for one in codec.decode(0, m.subject, m.data)]
    assert all(one.event.event_kind() == "request_admitted" for one in said)
    assert len(said) == 12
    (first, *_) = msgspec.json.decode(differing[0].data)
    assert (first["actor"], [word["verb"] for word in first["tried"]]) == ("admission", ["admit"])
    log = await house.messages()
    assert not any("shadow" in message.subject for message in log if "fact.shadow" not in message.subject)
    assert verify(log, pool, ACTORS, code_version=code_version()).identical


async def test_a_shadow_begins_where_the_actor_stands(house: House) -> None:
    await begun(house)
    before = await house.day(3, from_s=1)
    await house.answered(before, "admission")
    await house.shadow(FEWER)
    seq = await house.day(2, from_s=4)
    await house.answered(seq, "admission")
    (found,) = (await house.until(lambda found: all(one.seq >= seq for one in found.actors))).actors
    assert found.since_seq >= before
    assert found.settings == FEWER.settings["admission"]
    assert found.found.tenants["t"].words == 6, "two seconds of three requests"


async def test_its_reports_are_facts_that_nobody_decides_by_and_its_last_word_says_so(house: House) -> None:
    await begun(house)
    task = await house.shadow(FEWER)
    seq = await house.day(3, from_s=1)
    await house.answered(seq, "admission")
    await house.until(lambda found: all(one.seq >= seq for one in found.actors))
    stopped = await stop_of(house.log.client, house.log.pool)
    assert stopped is not None
    await task
    assert await status_of(house.log.client, house.log.pool) is None
    first, *_, last = [one.event for one in await house.reports()]
    assert isinstance(first, ShadowCompared)
    assert isinstance(last, ShadowCompared)
    assert (first.words, first.ended, last.ended) == (0, False, True)
    assert last.words == last.same + last.amounts + last.outcomes + last.standing + last.wakes > 0
    assert (last.policy, last.settings) == (FEWER.name, FEWER.settings["admission"])
    assert sum(one.count for one in last.changes) >= last.outcomes > 0
    assert verify(await house.messages(), house.log.pool, ACTORS, code_version=code_version()).identical


async def test_promoting_writes_what_was_tried_with_its_report_as_the_cause(house: House) -> None:
    await begun(house)
    task = await house.shadow(FEWER)
    seq = await house.day(3, from_s=1)
    await house.answered(seq, "admission")
    await house.until(lambda found: all(one.seq >= seq for one in found.actors))
    await stop_of(house.log.client, house.log.pool)
    await task
    async with taking_orders(house.log, speed=1) as orders:
        with pytest.raises(Refused, match="--least"):
            await orders.promote(words_min=1_000_000)
        done = await orders.promote(words_min=3)
    assert await taken_in(house.log.client, house.log.pool, "admission", done.seq)
    (written,) = [one for one in await house.records() if one.seq == done.seq]
    assert written.event == PolicyConfigured(actor="admission", settings=FEWER.settings["admission"])
    report = (await house.reports())[-1]
    assert written.cause == str(report.at)
    seq = await house.day(1, from_s=4)
    await house.answered(seq, "admission")
    log = await house.messages()
    assert [link.event["type"] for link in chain_of(str(written.at), log)] == [
        "policy_configured.v1", "shadow_compared.v1",
    ]  # fmt: skip
    admitted = [one.event for one in await house.records() if one.event.event_kind() == "request_admitted"]
    assert getattr(admitted[-1], "would", None) is not None, "observe mode says what it would have done"
    assert verify(log, house.log.pool, ACTORS, code_version=code_version()).identical


async def test_a_preset_is_promoted_whole_also_where_an_actor_does_not_run(house: House) -> None:
    await begun(house)
    await house.shadow(OBSERVE)
    seq = await house.day(2, from_s=1)
    await house.answered(seq, "admission")
    await house.until(lambda found: found.actors[0].seq >= seq)
    await stop_of(house.log.client, house.log.pool)
    async with taking_orders(house.log, speed=1) as orders:
        done = await orders.promote(words_min=0)
        written = {one.event.actor: one.event.settings for one in await house.records() if one.seq == done.seq
                   if isinstance(one.event, PolicyConfigured)}  # fmt: skip
        assert {actor: OBSERVE.wanted(decider) for actor, decider in ACTORS.items()} == written
        assert await taken_in(house.log.client, house.log.pool, "admission", done.seq)
        for told in await orders.policies():
            assert told.settings == OBSERVE.wanted(ACTORS[told.actor])


async def test_what_was_promoted_differs_no_more(house: House) -> None:
    await begun(house)
    await house.shadow(FEWER)
    seq = await house.day(2, from_s=1)
    await house.answered(seq, "admission")
    (before,) = (await house.until(lambda found: all(one.seq >= seq for one in found.actors))).actors
    async with taking_orders(house.log, speed=1) as orders:
        await orders.configure("admission", FEWER.settings["admission"])
    seq = await house.day(3, from_s=3)
    await house.answered(seq, "admission")
    (after,) = (await house.until(lambda found: all(one.seq >= seq for one in found.actors))).actors
    assert (after.found.outcomes, after.found.words) == (before.found.outcomes, before.found.words + 9)


async def test_a_pool_has_one_shadow_at_a_time(house: House) -> None:
    await begun(house)
    await house.shadow(FEWER)
    with pytest.raises(ShadowRuns, match="tries recorded admission"):
        await shadows.run(house.config, OBSERVE, log=house.log, stop=asyncio.Event())


async def test_of_shadows_that_start_at_one_time_one_runs(house: House) -> None:
    await begun(house)
    stop, started = asyncio.Event(), list[ShadowStatus]()

    async def start(of: Candidate) -> None:
        await shadows.run(house.config, of, log=house.log, stop=stop, on_start=begins)

    def begins(status: ShadowStatus) -> None:
        started.append(status)
        stop.set()

    ended = await asyncio.gather(start(OBSERVE), start(FEWER), start(OBSERVE), return_exceptions=True)
    refused = [one for one in ended if one is not None]
    assert [type(one) for one in refused] == [ShadowRuns, ShadowRuns], refused
    (status,) = started
    reports = [one.event for one in await house.reports() if isinstance(one.event, ShadowCompared)]
    assert {one.shadow for one in reports} == {status.name}, "who was refused said nothing"


async def test_a_shadow_that_began_unheard_of_refuses_the_next_by_the_log_alone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begun(house)
    asked = asyncio.Event()

    async def nobody(_client: object, _pool: object) -> None:
        if not asked.is_set():
            asked.set()
            await house.shadow(FEWER)

    monkeypatch.setattr(shadows, "status_of", nobody)
    with pytest.raises(ShadowRuns, match="another shadow wrote"):
        await shadows.run(house.config, OBSERVE, log=house.log, stop=asyncio.Event())


async def test_it_is_a_process_that_ends_in_good_order(house: House) -> None:
    await begun(house)
    where = (f"nats.url={house.config.nats.url}", f"pool={house.log.pool}", f"state_dir={house.config.state_dir}")
    argv = ["policy", "shadow", "start", "--json", "--policy", "fifo", "--set", "admission.queue_max=7"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", *argv, *(word for each in where for word in ("--set", each)),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    async with asyncio.timeout(TIMEOUT_S):
        assert process.stdout is not None
        told = json.loads(await process.stdout.readline())
        assert told["policy"] == "fifo admission.queue_max=7"
        assert [one["actor"] for one in told["actors"]] == list(ACTORS)
        process.terminate()
        _, err = await process.communicate()
    assert process.returncode == Exit.FINE, err.decode()
    reports = [one.event for one in await house.reports() if isinstance(one.event, ShadowCompared)]
    assert {one.actor for one in reports if one.ended} == set(ACTORS)
    assert {one.settings["queue_max"] for one in reports if one.actor == "admission"} == {7}


async def test_without_a_shadow_nothing_is_promoted(house: House) -> None:
    async with taking_orders(house.log, speed=1) as orders:
        with pytest.raises(Refused, match="no shadow was ever run here"):
            await orders.promote(words_min=0)


async def test_the_same_by_command(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    await begun(house)
    assert await house.command("policy", "shadow", "status") == Exit.NO
    assert "no shadow runs" in capsys.readouterr().err
    await house.shadow(FEWER)
    seq = await house.day(3, from_s=1)
    await house.answered(seq, "admission")
    await house.until(lambda found: all(one.seq >= seq for one in found.actors))
    assert await house.command("policy", "shadow", "status", "--json") == Exit.FINE
    assert json.loads(capsys.readouterr().out)["policy"] == FEWER.name
    assert await house.command("replay", "whatif", "--pool", house.log.pool, "--policy", "recorded") == Exit.FINE
    assert "first difference" not in capsys.readouterr().out
    assert await house.command("policy", "shadow", "stop") == Exit.FINE
    assert "admission" in capsys.readouterr().out
    async with asyncio.timeout(TIMEOUT_S):
        while not any(getattr(one.event, "ended", False) for one in await house.reports()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await house.command("policy", "promote") == Exit.BAD_INPUT
    assert "--least" in capsys.readouterr().err
    assert await house.command("policy", "promote", "--least", "5", "--json") == Exit.FINE
    told = json.loads(capsys.readouterr().out)
    assert told["reports"][0]["settings"] == FEWER.settings["admission"]
