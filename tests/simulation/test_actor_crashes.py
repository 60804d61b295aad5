"""The laws of the actor shell: whatever breaks at whichever await, the log says what it would have said without."""

import asyncio
import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import Cause, Event, Fenced, LogError
from events.control import ActorStarted
from events.decisions import RejectReason, RequestRejected
from events.log.memory import MemoryLog
from events.request import RequestArrived
from policies.decider import Decider, advance, begin
from replay.replayer import BEFORE_ALL, replay
from services.runtime import actor as actor_module
from services.runtime import ownership
from services.runtime.actor import Actor, ActorLimits
from services.runtime.snapshot import MemorySnapshots
from tests.services.runtime import toy

SMALL = ActorLimits(causes_max=3, ahead_max=5, snapshot_every=4, log_down_max_s=5.0)
STARTS_MAX = 300
STARTS_KILLED_MAX = 60
STOPPED_SHARE = 0.3
OWNERS = count()
seeds = given(seed=st.integers(0, 2**32))


def decide_otherwise(state: toy.State, event: Event, now_ns: int) -> list[Event]:
    """Another version of the code: it refuses more, and where the first says nothing it says something."""
    if isinstance(event, RequestArrived) and state.mixed % 3 == 0:
        return [RequestRejected(request_id=event.request_id, reason=RejectReason.QUEUE_FULL)]
    return toy.decide(state, event, now_ns)


CODE: dict[str, Decider[toy.State]] = {"v1": toy.TOY, "v2": dataclasses.replace(toy.TOY, decide=decide_otherwise)}


@pytest.fixture(autouse=True, scope="module")
def _no_pauses() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (ownership, actor_module):
            patch.setattr(module, "RETRY_FIRST_S", 0.0)
            patch.setattr(module, "RETRY_MAX_S", 0.0)
        yield


def an_actor(log: Any, snapshots: MemorySnapshots | None, *, code: str = "v1", factor: int = 31) -> Actor[toy.State]:
    return Actor(
        CODE[code], log, owner=f"o{next(OWNERS)}", settings={"factor": factor}, code_version=code, snapshots=snapshots,
        limits=SMALL,
    )  # fmt: skip


async def spin(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def live_until_quiet(log: MemoryLog, actor: Actor[toy.State], fate: toy.Fate) -> bool:
    """Whether the process lived until all that stands in the log was taken in and answered. Some are asked to stop
    before that, at any moment."""
    stop = asyncio.Event()
    run = asyncio.create_task(actor.run(stop))
    if fate.kill and fate.chance.random() < STOPPED_SHARE:
        await asyncio.wait((run, asyncio.create_task(spin(fate.chance.randrange(60)))), return_when="FIRST_COMPLETED")
        stop.set()
    killed = asyncio.create_task(fate.killed.wait())
    quiet = asyncio.create_task(toy.until(lambda: is_quiet(log, actor)))
    await asyncio.wait((run, killed, quiet), return_when=asyncio.FIRST_COMPLETED)
    lived = quiet.done() and not run.done() and not fate.killed.is_set()
    for task in (run, killed, quiet):
        task.cancel()
    outcomes = await asyncio.gather(run, killed, quiet, return_exceptions=True)
    if isinstance(outcomes[0], Exception) and type(outcomes[0]) is not LogError:
        raise outcomes[0]
    return lived


def is_quiet(log: MemoryLog, actor: Actor[toy.State]) -> bool:
    return actor._seq == len(toy.stored(log)) > 0 and actor._decided == actor._stored and not actor._waiting


async def live_through_crashes(
    log: MemoryLog, chance: random.Random, *, say: int, code: tuple[str, ...] = ("v1",), factors: int = 2
) -> Actor[toy.State]:
    """Processes start and are killed until all is answered; facts come in meanwhile. The last one."""
    kept = {version: MemorySnapshots() for version in code}  # Each version runs on a machine of its own.
    said = 0
    for start in range(STARTS_MAX):
        more = min(say - said, chance.randrange(0, 8))
        await toy.say_some(log, chance, range(said, said + more))
        said += more
        fate = toy.Fate(chance, kill=0.06 if start < STARTS_KILLED_MAX else 0.0, fail=0.1)
        version = chance.choice(code)
        actor = an_actor(
            toy.FatefulLog(log, fate), toy.FatefulSnapshots(kept[version], fate), code=version,
            factor=31 + start % factors,
        )  # fmt: skip
        if await live_until_quiet(log, actor, fate) and said == say:
            return actor
    raise AssertionError(f"{STARTS_MAX} starts were not enough")


def assert_the_log_says_what_follows_from_it(log: MemoryLog, *, code: str = "v1") -> None:
    expected = [
        (str(step.recorded.at), decision)
        for step in replay(toy.stored(log), {"admission": CODE[code]}, code_version=code)
        for decision in step.decisions
    ]
    assert toy.decisions(log) == expected
    places = {(record.cause, record.seq) for record in toy.records(log) if record.cause}
    assert max(Counter(cause for cause, _ in places).values(), default=1) == 1, "one cause, one message"


def assert_every_decision_has_one_owner(log: MemoryLog) -> None:
    """What an instance says stands between its own ActorStarted and the next one's."""
    owner, answered = "", BEFORE_ALL
    for record in toy.records(log):
        if record.actor != "admission":
            continue
        if isinstance(record.event, ActorStarted):
            owner = record.owner
            assert record.event.watermark == ("" if answered == BEFORE_ALL else str(answered))
        assert record.owner == owner
        answered = Cause.parse(record.cause) if record.cause else answered


@seeds
@settings(max_examples=60, deadline=None)
async def test_decisions_after_any_crashes_are_those_of_the_log_replayed_without_them(seed: int) -> None:
    chance = random.Random(seed)
    log = MemoryLog(toy.POOL)
    last = await live_through_crashes(log, chance, say=chance.randrange(20, 60))
    assert toy.decisions(log)
    assert_the_log_says_what_follows_from_it(log)
    assert_every_decision_has_one_owner(log)
    again = begin(toy.TOY)
    for record in toy.records(log):
        advance(toy.TOY, again, record)
    assert last.progress == again, "the state is the replayed one"


@seeds
@settings(max_examples=30, deadline=None)
async def test_decisions_after_any_crashes_are_those_of_a_run_without_crashes(seed: int) -> None:
    facts = MemoryLog(toy.POOL)
    await toy.say_some(facts, random.Random(seed), range(30))
    logs = []
    for crashes in (True, False):
        log = MemoryLog(toy.POOL)
        for message in toy.stored(facts):
            await log.append(message.subject, message.body)
        if crashes:
            await live_through_crashes(log, random.Random(seed), say=0, factors=1)
        else:
            fate = toy.Fate(random.Random(seed))
            assert await live_until_quiet(log, an_actor(log, None), fate)
        logs.append(log)
    assert toy.decisions(logs[0]) == toy.decisions(logs[1])
    assert toy.decisions(logs[0])


@seeds
@settings(max_examples=80, deadline=None)
async def test_other_code_takes_recorded_decisions_as_they_stand_and_decides_the_rest(seed: int) -> None:
    chance = random.Random(seed)
    log = MemoryLog(toy.POOL)
    await live_through_crashes(log, chance, say=chance.randrange(20, 50), code=("v1", "v2"))
    for code in CODE:
        assert_the_log_says_what_follows_from_it(log, code=code)
    assert_every_decision_has_one_owner(log)


@seeds
@settings(max_examples=30, deadline=None)
async def test_of_two_instances_that_fight_one_owns_every_decision(seed: int) -> None:
    chance = random.Random(seed)
    log = MemoryLog(toy.POOL)
    ended = asyncio.Event()
    fenced = 0

    async def keep_starting(factor: int) -> None:
        nonlocal fenced
        while not ended.is_set():
            actor = an_actor(toy.FatefulLog(log, toy.Fate(chance, fail=0.05)), None, factor=factor)
            run = asyncio.create_task(actor.run(ended))
            end = asyncio.create_task(ended.wait())
            await asyncio.wait((run, end), return_when=asyncio.FIRST_COMPLETED)
            outcome = (await asyncio.gather(run, end, return_exceptions=True))[0] if ended.is_set() else None
            if run.done() and not run.cancelled() and isinstance(run.exception(), Fenced):
                fenced += 1
                for _ in range(chance.randrange(40)):
                    await asyncio.sleep(0)
            end.cancel()
            assert outcome is None or isinstance(outcome, LogError), outcome

    fights = [asyncio.create_task(keep_starting(factor)) for factor in (31, 37)]
    for n in range(40):
        await toy.say_some(log, chance, range(n, n + 1))
        for _ in range(chance.randrange(60)):
            await asyncio.sleep(0)
    ended.set()
    await asyncio.gather(*fights)
    assert fenced > 0
    last = an_actor(log, None)
    assert await live_until_quiet(log, last, toy.Fate(chance))
    assert_the_log_says_what_follows_from_it(log)
    assert_every_decision_has_one_owner(log)
