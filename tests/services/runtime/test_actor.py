"""The shell by itself: taking over, grouping, stopping, poison, damage."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest

from events import codec, subjects
from events.base import Cause, Fenced, LogDamaged
from events.control import ActorStarted, EventQuarantined, PolicyConfigured, Ticked
from events.decisions import RequestRejected
from events.log.base import Fence, Message
from events.log.memory import MemoryLog
from replay.replayer import replay
from services.runtime import snapshot
from services.runtime.actor import Actor, ActorLimits, PolicyFailed
from services.runtime.ownership import Ownership
from services.runtime.snapshot import MemorySnapshots
from tests.services.runtime import toy
from tests.services.runtime.toy import arrived, decisions, records, say, stored

OWNERS = count()
SECRET = "the text that must not get into the log"


class SlowLog(MemoryLog):
    """Appends of decisions wait at a gate; `sizes` are their numbers of causes."""

    def __init__(self) -> None:
        super().__init__(toy.POOL)
        self.gate = asyncio.Event()
        self.in_flight = self.in_flight_max = 0

    async def append(
        self, subject: str, body: bytes, *, msg_id: str = "", fence: Fence | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:  # fmt: skip
        if fence is not None and not subject.endswith("actor_started"):
            self.in_flight += 1
            self.in_flight_max = max(self.in_flight_max, self.in_flight)
            await self.gate.wait()
            self.in_flight -= 1
        return await super().append(subject, body, msg_id=msg_id, fence=fence, headers=headers)


def an_actor(log: MemoryLog, snapshots: MemorySnapshots | None = None, **rest: Any) -> Actor[toy.State]:
    rest = {"owner": f"o{next(OWNERS)}", "settings": {}, "code_version": "v1", **rest}
    return Actor(toy.TOY, log, snapshots=snapshots, **rest)


def is_quiet(log: MemoryLog, actor: Actor[toy.State]) -> bool:
    return actor._seq == len(stored(log)) > 0 and actor._decided == actor._stored and not actor._waiting


@contextlib.asynccontextmanager
async def running(log: MemoryLog, actor: Actor[toy.State]) -> AsyncIterator[None]:
    """The actor while it runs; at the end all is answered and it is asked to stop."""
    stop = asyncio.Event()
    run = asyncio.create_task(actor.run(stop))
    try:
        yield
        await toy.until(lambda: run.done() or is_quiet(log, actor))
    finally:
        stop.set()
        await run


def notes(log: MemoryLog, kind: type) -> list[Any]:
    return [r.event for r in records(log) if isinstance(r.event, kind)]


def assert_replay_agrees(log: MemoryLog) -> None:
    steps = replay(stored(log), {"admission": toy.TOY}, code_version="v1")
    assert decisions(log) == [(str(s.recorded.at), d) for s in steps for d in s.decisions]


class StubbornLog(MemoryLog):
    """Swallows the first cancellation of a reader, as a client library was seen to while it sets one up."""

    def __init__(self) -> None:
        super().__init__(toy.POOL)
        self.swallowed = 0

    async def read(self, *, after: int = 0, pattern: str = ">", follow: bool = False) -> AsyncIterator[list[Message]]:
        while follow and not self.swallowed:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.swallowed += 1
        async for batch in super().read(after=after, pattern=pattern, follow=follow):
            yield batch


async def test_an_actor_stops_although_its_reader_swallows_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.runtime.actor.CANCEL_AGAIN_S", 0.01)
    log, stop = StubbornLog(), asyncio.Event()
    run = asyncio.create_task(an_actor(log).run(stop))
    await toy.until(lambda: len(stored(log)) == 1)
    stop.set()
    async with asyncio.timeout(10):
        await run
    assert log.swallowed == 1


async def test_a_state_that_outgrew_its_limit_is_not_kept_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "STATE_BYTES_MAX", 1)
    log, snapshots = MemoryLog(toy.POOL), MemorySnapshots()
    actor = an_actor(log, snapshots, limits=ActorLimits(snapshot_every=1))
    async with running(log, actor):
        await say(log, *(arrived(n) for n in range(3)))
    assert_replay_agrees(log)
    assert await snapshots.load(toy.TOY.name) is None


async def test_the_first_word_of_an_owner_names_itself_its_code_and_its_settings() -> None:
    log = MemoryLog(toy.POOL)
    async with running(log, an_actor(log, owner="a", settings={"factor": 5})):
        pass
    started = notes(log, ActorStarted)
    assert [(s.instance, s.code_version, s.settings, s.watermark) for s in started] == [("a", "v1", {"factor": 5}, "")]
    assert started[0].tags == toy.TOY.tags()
    assert stored(log)[0].subject == "tg.v1.p.decision.admission.actor_started"


async def test_settings_of_the_actor_hold_from_its_start_in_the_log_on() -> None:
    log = MemoryLog(toy.POOL)
    await say(log, arrived(1), arrived(2))
    first = an_actor(log, settings={"factor": 5})
    async with running(log, first):
        await toy.until(lambda: is_quiet(log, first))
        assert first.progress.state.factor == 5
        await say(log, PolicyConfigured(actor="admission", settings={"factor": 11}), source="policy")
    assert first.progress.state.factor == 11
    assert_replay_agrees(log)


async def test_bad_settings_are_refused_before_anything_is_written() -> None:
    log = MemoryLog(toy.POOL)
    with pytest.raises(ValueError, match="colour"):
        await an_actor(log, settings={"colour": 1}).run(asyncio.Event())
    assert not stored(log)


async def test_what_is_decided_while_one_message_is_in_flight_makes_up_the_next() -> None:
    log = SlowLog()
    actor = an_actor(log, limits=ActorLimits(causes_max=10, ahead_max=25))
    async with running(log, actor):
        for n in range(100):
            await say(log, arrived(n))
        await toy.until(lambda: len(actor._waiting) >= 25)
        assert actor._seq < 101, "reading waits when too much is unanswered"
        log.gate.set()
    assert log.in_flight_max == 1
    causes = [len({r.cause for r in codec.decode(m.seq, m.subject, m.body)}) for m in stored(log)[1:] if m.seq > 100]
    assert max(causes) == 10
    assert_replay_agrees(log)


async def test_a_stop_stores_what_is_decided_and_keeps_a_snapshot() -> None:
    log, kept = MemoryLog(toy.POOL), MemorySnapshots()
    async with running(log, an_actor(log, kept)):
        for n in range(20):
            await say(log, arrived(n))
    taken = await kept.load("admission")
    assert taken is not None
    assert taken.seq == len(stored(log))
    second = an_actor(log, kept)
    async with running(log, second):
        await say(log, arrived(21), Ticked(n=1), ts_ns=5)
    assert notes(log, ActorStarted)[1].snapshot_seq == taken.seq
    assert_replay_agrees(log)


@pytest.mark.parametrize(
    ("limits", "step_ns"), [(ActorLimits(snapshot_every=5), 0), (ActorLimits(snapshot_span_ns=100), 50)]
)
async def test_snapshots_are_kept_while_it_runs_by_count_and_by_time(limits: ActorLimits, step_ns: int) -> None:
    log, kept = MemoryLog(toy.POOL), MemorySnapshots()
    actor = an_actor(log, kept, limits=limits)
    run = asyncio.create_task(actor.run(asyncio.Event()))
    for n in range(12):
        await say(log, arrived(n), ts_ns=step_ns * n)
        await toy.until(lambda: is_quiet(log, actor))
    run.cancel()
    await asyncio.wait([run])
    taken = await kept.load("admission")
    assert taken is not None
    assert 5 <= taken.seq <= len(stored(log))


async def test_a_snapshot_of_another_code_version_is_not_used() -> None:
    log, kept = MemoryLog(toy.POOL), MemorySnapshots()
    async with running(log, an_actor(log, kept)):
        await say(log, arrived(1))
    async with running(log, an_actor(log, kept, code_version="v2")):
        pass
    assert [started.snapshot_seq for started in notes(log, ActorStarted)] == [0, 0]


async def test_an_owner_that_is_only_reading_stops_when_another_takes_over() -> None:
    log = MemoryLog(toy.POOL)
    first = asyncio.create_task(an_actor(log).run(asyncio.Event()))
    await toy.until(lambda: len(stored(log)) == 1)
    async with running(log, an_actor(log)):
        with pytest.raises(Fenced):
            await first


@pytest.mark.parametrize("kinds", [("request_rejected", "request_admitted"), ("request_admitted", "request_rejected")])
async def test_a_stale_owner_is_fenced_whatever_kind_it_writes(kinds: tuple[str, str]) -> None:
    log = MemoryLog(toy.POOL)
    await say(log, arrived(1))
    old, new = (Ownership(log, actor="admission", owner=name, log_down_max_s=1) for name in ("old", "new"))
    event = {"request_rejected": RequestRejected(request_id=arrived(1).request_id, reason="rejected_kv_budget"),
             "request_admitted": toy.admitted("r1", 1)}  # fmt: skip
    for each in (old, new):
        await each.take_over(code_version="v1", policy_digest="", snapshot_seq=0, settings={}, tags=())
    with pytest.raises(Fenced):
        await old.say([codec.Said(cause="1.0", event=event[kinds[0]])], ts_ns=0, name="1.0")
    assert await new.say([codec.Said(cause="1.0", event=event[kinds[1]])], ts_ns=0, name="1.0") == 4
    with pytest.raises(Fenced):
        await old.say([codec.Said(cause="1.0", event=event[kinds[0]])], ts_ns=0, name="again")
    assert [r.owner for r in records(log) if r.cause] == ["new"]


async def test_a_quarantine_does_not_hide_what_was_answered_before_it() -> None:
    log = MemoryLog(toy.POOL)
    await say(log, arrived(1), arrived(2))
    first, second = (Ownership(log, actor="admission", owner=name, log_down_max_s=1) for name in ("first", "second"))
    for each in (first, second):
        await each.take_over(code_version="v1", policy_digest="", snapshot_seq=0, settings={}, tags=())
        if each is first:
            await each.say([codec.Said(cause="1.0", event=toy.admitted("r1", 1))], ts_ns=0, name="1.0")
            await each.quarantine(Cause(1, 1), "ValueError", ts_ns=0)
    assert second.history.watermark == Cause(1, 0)
    assert second.history.quarantined == {Cause(1, 1)}


async def fail(log: MemoryLog, kept: MemorySnapshots, *, code: str = "v1") -> PolicyFailed:
    with pytest.raises(PolicyFailed) as failed:
        await asyncio.wait_for(an_actor(log, kept, code_version=code).run(asyncio.Event()), timeout=5)
    return failed.value


async def test_poison_is_quarantined_by_the_third_start_and_the_rest_goes_on() -> None:
    log, kept = MemoryLog(toy.POOL), MemorySnapshots()
    await say(log, arrived(1), arrived(2))
    await say(log, arrived(3), arrived(4, toy.POISON), arrived(5))
    await say(log, arrived(7))
    assert (await fail(log, kept)).position == Cause(2, 1)
    answered_before = decisions(log)
    assert answered_before, "what was decided before the poison is stored before the process ends"
    await fail(log, kept)
    assert not notes(log, EventQuarantined)
    async with running(log, an_actor(log, kept)):
        pass
    quarantined = notes(log, EventQuarantined)
    assert [note.position for note in quarantined] == ["2.1"]
    assert quarantined[0].error.startswith("ValueError at runtime/toy.py:")
    assert not any(SECRET.encode() in message.body for message in stored(log))
    assert await kept.crash_note("admission") is None
    assert len(decisions(log)) > len(answered_before)
    assert_replay_agrees(log)
    async with running(log, an_actor(log)):
        await say(log, arrived(9))
    assert len(notes(log, EventQuarantined)) == 1, "a later start reads the note and skips the record"
    assert_replay_agrees(log)


async def test_other_code_gets_its_own_tries_at_a_poisoned_record() -> None:
    log, kept = MemoryLog(toy.POOL), MemorySnapshots()
    await say(log, arrived(4, toy.POISON))
    await fail(log, kept)
    await fail(log, kept)
    await fail(log, kept, code="v2")
    assert not notes(log, EventQuarantined)


async def test_settings_that_nobody_validated_are_quarantined_too() -> None:
    log, kept = MemoryLog(toy.POOL), MemorySnapshots()
    await say(log, PolicyConfigured(actor="admission", settings={"colour": 1}), source="policy")
    await fail(log, kept)
    await fail(log, kept)
    async with running(log, an_actor(log, kept)):
        await say(log, arrived(1))
    assert_replay_agrees(log)


async def test_records_of_unknown_kinds_change_nothing() -> None:
    bodies = [
        b'{"owner":"x","ts_ns":0,"said":[{"event":{"type":"from_the_future.v9","n":3}}]}',
        b'{"owner":"x","ts_ns":0,"said":[]}',
        b"not even JSON",
        b'{"owner":"x","ts_ns":0,"said":[{"event":{"type":"request_arrived.v1","prompt_tokens":"many"}}]}',
    ]
    with_them, without = MemoryLog(toy.POOL), MemoryLog(toy.POOL)
    actors = []
    for log, strange in ((with_them, True), (without, False)):
        actor = an_actor(log)
        actors.append(actor)
        async with running(log, actor):
            for n in range(12):
                await say(log, arrived(n))
                for body in bodies if strange else []:
                    await log.append(subjects.fact(toy.POOL, "gateway", "several"), body)
    assert [event for _, event in decisions(with_them)] == [event for _, event in decisions(without)]
    assert actors[0].progress.state == actors[1].progress.state
    assert_replay_agrees(with_them)


def cut(log: MemoryLog, last: int) -> None:
    del log._messages[last:]


def edit(log: MemoryLog, seq: int) -> None:
    message = log._messages[seq - 1]
    log._messages[seq - 1] = Message(seq, message.subject, message.body.replace(b'"r', b'"R'), {})


@pytest.mark.parametrize("harm", ["cut", "edited"])
async def test_a_log_that_is_not_the_one_the_snapshot_was_taken_of_is_not_read_on(harm: str) -> None:
    log, kept = MemoryLog(toy.POOL), MemorySnapshots()
    async with running(log, an_actor(log, kept)):
        await say(log, *[arrived(n) for n in range(9)])
    taken = await kept.load("admission")
    assert taken is not None
    if harm == "cut":
        cut(log, taken.seq - 1)
    else:
        edit(log, taken.seq)
    size = len(stored(log))
    with pytest.raises(LogDamaged, match="restore the log"):
        await an_actor(log, kept).run(asyncio.Event())
    assert len(stored(log)) == size, "nothing is written behind the damage"


async def test_a_log_that_lost_stored_decisions_is_not_written_on() -> None:
    log, kept = SlowLog(), MemorySnapshots()
    actor = an_actor(log, kept, limits=ActorLimits(snapshot_every=1))
    run = asyncio.create_task(actor.run(asyncio.Event()))
    await say(log, *[arrived(n) for n in range(9)])
    await toy.until(lambda: actor._held is not None and actor._decided > 0 and log.in_flight == 1)
    position = actor._held.snapshot.seq if actor._held else 0
    log.gate.set()
    await toy.until(lambda: is_quiet(log, actor))
    run.cancel()
    await asyncio.wait([run])
    taken = await kept.load("admission")
    assert taken is not None
    if taken.seq > position:
        pytest.fail("the snapshot under test must lie before its own decisions")
    cut(log, position)
    with pytest.raises(LogDamaged, match="is gone"):
        await an_actor(log, kept).run(asyncio.Event())
