"""The agent between a real NATS and an engine that is only a bridge here: what it brings, what it writes, and what it
does while either is away."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from events import codec, subjects
from events.base import EngineId, Event, HolderId, PoolId, RequestId, SliceId
from events.decisions import CancelReason, EngineDirected, HolderLost, TransferCancelled
from events.log.jetstream import JetStreamLog, connect
from events.slice import (
    ChoiceMade,
    SlicesCleared,
    SlicesHit,
    SlicesRemoved,
    SlicesStored,
    Tier,
    TierMeasured,
    TransferEnd,
    TransferFinished,
)
from replay.choice_journal import files_of
from replay.verify_choices import verify_choices
from services.runtime.config import LogProfile
from services.runtime.embedded import EmbeddedNats, start_nats
from services.vllm_plugin import agent as agents
from services.vllm_plugin.agent import SLICES_PER_FACT_MAX, Agent, merged
from services.vllm_plugin.bridge import Bridge
from services.vllm_plugin.settings import PluginSettings
from tests.services.vllm_plugin.test_bridge import ASKED, ENGINE, fill, hit
from tests.services.vllm_plugin.test_orders import ordered

pytestmark = pytest.mark.integration
OTHER = EngineId("e2")
WAIT_S = 15.0


def stored(*names: str, tier: Tier = Tier.DRAM) -> SlicesStored:
    return SlicesStored(engine_id=ENGINE, tier=tier, slices=tuple(map(SliceId, names)), slice_bytes=7)


def directive(version: int, engine_id: EngineId = ENGINE) -> EngineDirected:
    return EngineDirected(engine_id=engine_id, version=version, eviction="lru", protect_ppm=0)


class Pool:
    """The log, as the rest of the house sees it."""

    def __init__(self, log: JetStreamLog) -> None:
        self.log = log
        self._said = 0

    async def decide(self, event: Event, actor: str = "eviction") -> None:
        self._said += 1
        body = codec.encode(owner="test", ts_ns=time.time_ns(), said=[codec.Said(cause="1.0", event=event)])
        await self.log.append(subjects.decision(self.log.pool, actor, event.event_kind()), body)

    async def messages(self) -> list[list[Event]]:
        """What the agent wrote, message by message."""
        return [
            [each.event for each in codec.decode(message.seq, message.subject, message.body)]
            async for batch in self.log.read(pattern=subjects.fact(self.log.pool, "agent", ">"))
            for message in batch
        ]

    async def facts(self) -> list[Event]:
        """But how the device was measured, which is said each second."""
        return [fact for some in await self.messages() for fact in some if not isinstance(fact, TierMeasured)]


async def until(holds: Callable[[], bool]) -> None:
    """AssertionError when it never does."""
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - what another thread does sets no event here
            await asyncio.sleep(0.02)


async def until_said(pool: Pool, fits: Callable[[list[Event]], bool]) -> list[Event]:
    """The agent's facts, once they fit."""
    facts: list[Event] = []
    async with asyncio.timeout(WAIT_S):
        async for batch in pool.log.read(pattern=subjects.fact(pool.log.pool, "agent", ">"), follow=True):
            for message in batch:
                every = [each.event for each in codec.decode(message.seq, message.subject, message.body)]
                facts += [fact for fact in every if not isinstance(fact, TierMeasured)]
            if fits(facts):
                break
    return facts


def kinds(facts: list[Event]) -> list[str]:
    return [fact.event_kind() for fact in facts]


@pytest.fixture
async def house(nats_server: EmbeddedNats, pool: PoolId, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pool]:
    monkeypatch.setenv("TIDEGATE_NATS__URL", nats_server.url)
    client = await connect(nats_server.url, name="tests")
    log = await JetStreamLog.open(client, pool)
    yield Pool(log)
    await log.close()
    await client.close()


@contextmanager
def working(pool: PoolId, folder: str = "", bridge: Bridge | None = None) -> Iterator[tuple[Bridge, Agent]]:
    """An agent at work, and ended in good order."""
    made = bridge or Bridge()
    made.engine_id = ENGINE
    one = Agent(PluginSettings(engine_id=ENGINE, pool=pool, folder=folder), made, events_config=None, slice_bytes=7)
    one.start()
    try:
        yield made, one
    finally:
        one.stop()
        assert not one._thread.is_alive(), "it ends when it is told to"


@asynccontextmanager
async def connected(house: Pool, folder: str = "") -> AsyncIterator[Bridge]:
    """An agent that has said what was known is void: from now on it hears the log."""
    with working(house.log.pool, folder) as (bridge, _):
        await until_said(house, lambda facts: kinds(facts)[:3] == ["slices_cleared"] * 3)
        yield bridge


async def test_at_the_start_what_was_known_is_void_and_then_what_is_there_is_said(house: Pool) -> None:
    bridge = Bridge()
    bridge.report(Tier.SSD, lambda: [stored("a", "b", tier=Tier.SSD)])
    with working(house.log.pool, bridge=bridge):
        facts = await until_said(house, lambda facts: len(facts) >= 4)

    assert facts[:3] == [SlicesCleared(engine_id=ENGINE, tier=tier, reason="started") for tier in Tier]
    assert facts[3] == stored("a", "b", tier=Tier.SSD)


async def test_facts_stand_in_the_log_in_the_order_in_which_they_were_told(house: Pool) -> None:
    async with connected(house) as bridge:
        bridge.tell(stored("a"))
        bridge.tell(stored("b"))
        bridge.tell(hit())
        bridge.tell(stored("c"))
        facts = await until_said(house, lambda facts: "slices_hit" in kinds(facts) and facts[-1] == stored("c"))

    assert list(merged(facts[3:])) == [stored("a", "b"), hit(), stored("c")]


async def test_no_more_than_twenty_messages_a_second_are_written(house: Pool) -> None:
    async with connected(house) as bridge:
        before, began_s = len(await house.messages()), time.monotonic()
        for number in range(600):
            bridge.tell(hit(str(number)))
            await asyncio.sleep(0.002)
        await until_said(house, lambda facts: kinds(facts).count("slices_hit") == 600)
        took_s = time.monotonic() - began_s
        written = len(await house.messages()) - before

    assert written <= 20 * took_s + 2


async def test_directives_of_its_engine_count_and_those_of_others_do_not(house: Pool) -> None:
    async with connected(house) as bridge:
        await house.decide(directive(9, OTHER))
        await house.decide(directive(3))
        await until(lambda: bridge.directed_version == 3)
        fill(bridge)

    assert bridge.directive == directive(3)


async def test_orders_are_given_to_the_engine_and_answered_in_the_log(house: Pool) -> None:
    async with connected(house) as bridge:
        steps: list[int] = []
        bridge.wakes_by(lambda: steps.append(1))
        bridge.report(Tier.DRAM, list)
        await house.decide(ordered("m1"), "migration")
        await until(lambda: bridge.orders.waiting)
        assert steps == [1], "an idle engine makes a step for it"
        [order] = bridge.orders.take()
        bridge.orders.finish(order, TransferEnd.DONE, slices_done=2)
        facts = await until_said(house, lambda facts: kinds(facts)[-1] == "transfer_finished")

    assert isinstance(facts[-1], TransferFinished)
    assert (facts[-1].order, facts[-1].end) == ("m1", TransferEnd.DONE)


async def test_orders_of_before_its_start_and_of_other_engines_are_passed_over(house: Pool) -> None:
    await house.decide(ordered("m1"), "migration")
    async with connected(house) as bridge:
        bridge.report(Tier.DRAM, list)
        await house.decide(ordered("m2", engine_id=OTHER), "migration")
        await house.decide(ordered("m3"), "migration")
        await until(lambda: bridge.orders.waiting)

        assert [order.said.order for order in bridge.orders.take()] == ["m3"]


async def test_order_that_came_too_late_or_was_cancelled_is_not_begun(house: Pool) -> None:
    async with connected(house) as bridge:
        bridge.report(Tier.DRAM, list)
        await house.decide(ordered("m1", until_ns=1), "migration")
        await house.decide(ordered("m2"), "migration")
        cancelled = TransferCancelled(order="m2", engine_id=ENGINE, reason=CancelReason.NOT_NEEDED)
        await house.decide(cancelled, "migration")
        await until_said(house, lambda facts: "transfer_finished" in kinds(facts))

        assert bridge.orders.take() == []
        facts = await until_said(house, lambda facts: kinds(facts).count("transfer_finished") == 2)

    ends = {fact.order: fact.end for fact in facts if isinstance(fact, TransferFinished)}
    assert ends == {"m1": TransferEnd.NOT_NEEDED, "m2": TransferEnd.CANCELLED}


async def test_engine_without_tiers_says_so_of_each_order(house: Pool) -> None:
    async with connected(house):
        await house.decide(ordered("p1"), "prefetch")
        facts = await until_said(house, lambda facts: kinds(facts)[-1] == "transfer_finished")

    assert isinstance(facts[-1], TransferFinished)
    assert (facts[-1].end, facts[-1].why) == (TransferEnd.FAILED, "this engine has no tiers")


async def test_what_is_open_when_the_engine_ends_is_answered(house: Pool) -> None:
    async with connected(house) as bridge:
        bridge.report(Tier.DRAM, list)
        await house.decide(ordered("m1"), "migration")
        await until(lambda: bridge.orders.waiting)

    facts = await house.facts()
    assert isinstance(facts[-1], TransferFinished)
    assert (facts[-1].end, facts[-1].why) == (TransferEnd.FAILED, "the engine ends")


async def test_requests_of_a_lost_holder_are_given_up(house: Pool) -> None:
    async with connected(house) as bridge:
        await house.decide(HolderLost(holder=HolderId("gw"), requests=(RequestId("r1"),)), "admission")
        await until(lambda: bridge.something_to_do)

        assert bridge.aborts() == (RequestId("r1"),)


async def test_device_is_measured_each_second_with_the_directive_that_it_goes_by(house: Pool) -> None:
    async with connected(house) as bridge:
        bridge.measure(lambda: TierMeasured(engine_id=ENGINE, tier=Tier.HBM, bytes_max=9, bytes_used=1, slice_bytes=7))
        await house.decide(directive(3))

        async with asyncio.timeout(WAIT_S):
            async for batch in house.log.read(pattern=subjects.fact(house.log.pool, "agent", ">"), follow=True):
                if any(b'"directive_version":3' in message.body for message in batch):
                    break


async def test_tiers_of_an_idle_engine_are_said_as_its_last_step_left_them(house: Pool) -> None:
    full = TierMeasured(engine_id=ENGINE, tier=Tier.DRAM, bytes_max=9, bytes_used=9, slice_bytes=1)
    async with connected(house) as bridge:
        bridge.note(full)

        async with asyncio.timeout(WAIT_S):
            async for batch in house.log.read(pattern=subjects.fact(house.log.pool, "agent", ">"), follow=True):
                if any(b'"bytes_used":9' in message.body for message in batch):
                    break


async def test_choices_are_written_down_before_they_are_said(house: Pool, tmp_path: Path) -> None:
    async with connected(house, str(tmp_path)) as bridge:
        fill(bridge)
        bridge.choose(ASKED)
        facts = await until_said(house, lambda facts: "choice_made" in kinds(facts))
        assert verify_choices(files_of(tmp_path)).choices == {"evict": 1}

    [made] = [fact for fact in facts if isinstance(fact, ChoiceMade)]
    report = verify_choices(files_of(tmp_path))
    assert report.identical
    assert report.ended, "the journal is ended with the engine"
    assert made.number == 3


async def test_facts_that_had_to_be_dropped_are_made_good_by_what_is_there(house: Pool) -> None:
    async with connected(house) as bridge:
        bridge.report(Tier.DRAM, lambda: [stored("x")])
        for number in itertools.count():  # The agent takes some away meanwhile.
            bridge.tell(hit(str(number)))
            if bridge.facts_dropped:
                break
        facts = await until_said(house, lambda facts: stored("x") in facts)

    assert [fact.reason for fact in facts if isinstance(fact, SlicesCleared)][3:] == ["facts were dropped"] * 3


@pytest.fixture
def own_nats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedNats]:
    """A server of the test's own, to be taken away."""
    with start_nats(tmp_path / "nats", profile=LogProfile.FAST) as server:
        monkeypatch.setenv("TIDEGATE_NATS__URL", server.url)
        yield server


@asynccontextmanager
async def log_of(server: EmbeddedNats, pool: PoolId) -> AsyncIterator[Pool]:
    client = await connect(server.url, name="tests")
    log = await JetStreamLog.open(client, pool)
    yield Pool(log)
    await log.close()
    await client.close()


async def test_while_nats_is_away_the_engine_goes_on_and_what_it_tells_waits(
    own_nats: EmbeddedNats, pool: PoolId, tmp_path: Path
) -> None:
    async with log_of(own_nats, pool) as house, connected(house, str(tmp_path / "choices")) as bridge:
        own_nats.kill()
        began_s = time.monotonic()
        for number in range(50):
            fill(bridge, str(number))
            bridge.choose(ASKED)
        assert time.monotonic() - began_s < 1.0, "the engine waits for nobody"
        own_nats.start()
        facts = await until_said(house, lambda facts: kinds(facts).count("choice_made") == 50)
        await house.decide(directive(8))
        await until(lambda: bridge.directed_version == 8)

    numbers = [fact.number for fact in facts if isinstance(fact, ChoiceMade)]
    assert numbers == sorted(set(numbers)), "each is said once"


async def test_agent_waits_for_a_nats_that_is_not_there_yet(
    own_nats: EmbeddedNats, pool: PoolId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "RETRY_MAX_S", 0.2)
    monkeypatch.setattr(agents, "RETRY_FIRST_S", 0.1)
    own_nats.kill()
    with working(pool) as (bridge, _):
        bridge.tell(hit())
        own_nats.start()
        async with log_of(own_nats, pool) as house:
            await until_said(house, lambda facts: "slices_hit" in kinds(facts))


async def test_without_a_log_choices_are_journaled_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TIDEGATE_NATS__URL", "NATS_URL"):
        monkeypatch.delenv(name, raising=False)
    with working(PoolId("p"), str(tmp_path)) as (bridge, _):
        fill(bridge)
        bridge.choose(ASKED)

    assert verify_choices(files_of(tmp_path)).choices == {"evict": 1}


async def test_agent_that_fails_is_started_again_and_at_last_stays_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agents, "RETRY_FIRST_S", 0.001)
    bridge = Bridge()
    bridge.measure(_broken)
    with working(PoolId("p"), bridge=bridge) as (_, one):
        await until(lambda: not one._thread.is_alive())
        fill(bridge)
        choice = bridge.choose(ASKED)

    assert one.restarts == agents.RESTARTS_MAX + 1
    assert choice is not None, "the engine goes on"
    assert choice.chosen == ("a",)
    assert bridge.facts(9) == []
    assert "the agent stays away" in caplog.text


def _broken() -> Any:
    raise ZeroDivisionError("a mistake of ours")


MERGED: list[tuple[str, list[Event], list[int]]] = [
    ("the same of more slices", [stored("a"), stored("b"), stored("c", "d")], [4]),
    ("another tier", [stored("a"), stored("b", tier=Tier.SSD), stored("c")], [1, 1, 1]),
    ("another word between", [stored("a"), SlicesRemoved(engine_id=ENGINE, tier=Tier.DRAM, slices=(SliceId("a"),)),
     stored("a")], [1, 1, 1]),
    ("more than fit into one", [stored(*"a" * SLICES_PER_FACT_MAX), stored("b")], [SLICES_PER_FACT_MAX, 1]),
    ("nothing", [], []),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "sizes"), [row[1:] for row in MERGED], ids=[row[0] for row in MERGED])
def test_neighbours_that_say_the_same_are_one(facts: list[Event], sizes: list[int]) -> None:
    found = list(merged(facts))

    assert [len(fact.slices) for fact in found if isinstance(fact, SlicesStored | SlicesRemoved | SlicesHit)] == sizes
