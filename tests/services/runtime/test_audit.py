"""The auditor notices what was cut, changed or decided otherwise, and goes on where nothing is wrong."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from events import codec
from events.base import LogDamaged
from events.log.base import Message
from events.log.memory import MemoryLog
from services.runtime.audit import Audit, Checkpoint, CheckpointFile
from services.runtime.metrics import AuditMetrics
from services.runtime.side_by_side import run_until
from services.runtime.snapshot import MemorySnapshots
from tests.services.runtime import toy
from tests.services.runtime.test_actor import an_actor, fail, running


class AuditedLog:
    """A log, and one audit of it after the other, sharing one checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.log = MemoryLog(toy.POOL)
        self.kept = CheckpointFile(folder / "audit.json")

    def audit(self, *, code: str = "v1") -> Audit:
        return Audit(
            self.log, deciders={"admission": toy.TOY}, code_version=code, kept=self.kept,
            metrics=AuditMetrics(CollectorRegistry()),
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def auditing(self, audit: Audit | None = None) -> AsyncIterator[Audit]:
        """An audit while it runs; at the end it has read everything and stored a checkpoint."""
        audit = audit or self.audit()
        stop = asyncio.Event()
        await audit.start()
        task = asyncio.create_task(run_until(stop, audit.read()))
        try:
            yield audit
            await toy.until(lambda: task.done() or audit._seq == len(toy.stored(self.log)))
        finally:
            stop.set()
            await task
        await audit.store_once()

    async def decide(self, numbers: range, **actor: Any) -> None:
        """Some facts, and an actor that answers them."""
        async with running(self.log, an_actor(self.log, **actor)):
            await toy.say_some(self.log, random.Random(1), numbers)


@pytest.fixture
def audited(tmp_path: Path) -> AuditedLog:
    return AuditedLog(tmp_path)


async def test_a_log_in_order_is_held_live_and_again_from_its_start(audited: AuditedLog) -> None:
    async with audited.auditing() as live:
        await audited.decide(range(30))
        await audited.decide(range(30, 50), settings={"factor": 5})
    async with audited.auditing() as again:
        pass
    for audit in (live, again):
        assert (audit.actors["admission"].divergences, audit.actors["admission"].ended) == (0, "")
        assert not audit.actors["admission"]._expected
    checkpoint = await audited.kept.load()
    assert checkpoint is not None
    assert checkpoint.seq == len(toy.stored(audited.log))


async def test_a_log_that_was_cut_is_refused(audited: AuditedLog) -> None:
    async with audited.auditing():
        await audited.decide(range(20))
    audited.log._messages.pop()
    with pytest.raises(LogDamaged, match="the log ends at"):
        await audited.audit().start()


async def test_a_log_that_was_cut_and_written_on_is_refused(audited: AuditedLog) -> None:
    async with audited.auditing():
        await audited.decide(range(20))
    audited.log._messages.pop()
    await toy.say(audited.log, toy.arrived(77))
    with pytest.raises(LogDamaged, match="not what was written"):
        async with audited.auditing():
            pass


@pytest.mark.parametrize("seq", [1, 5, 20])
async def test_one_changed_byte_anywhere_is_noticed(audited: AuditedLog, seq: int) -> None:
    async with audited.auditing():
        await audited.decide(range(20))
    before = await audited.kept.load()
    message = audited.log._messages[seq - 1]
    audited.log._messages[seq - 1] = Message(seq, message.subject, message.body[:-1] + b" ", {})
    with pytest.raises(LogDamaged, match="not what was written"):
        async with audited.auditing():
            pass
    assert await audited.kept.load() == before, "the checkpoint is not moved by a damaged log"


async def test_a_checkpoint_that_cannot_be_read_is_no_reason_to_go_on(audited: AuditedLog) -> None:
    audited.kept.file.write_bytes(b'{"pool":')
    with pytest.raises(LogDamaged, match="cannot be read"):
        await audited.audit().start()


async def test_a_checkpoint_is_stored_only_when_the_log_has_grown(audited: AuditedLog) -> None:
    await audited.kept.save(Checkpoint(pool="p", seq=3, digest="00"))
    audit = audited.audit()
    await audit.store_once()
    assert await audited.kept.load() == Checkpoint(pool="p", seq=3, digest="00")


def rewrite(log: MemoryLog, change: str) -> None:
    """Change the last decisions that the log holds, as somebody would who writes past the actor."""
    index, message = next((i, m) for i, m in reversed(list(enumerate(log._messages))) if b'"cause":"' in m.body)
    records = codec.decode(message.seq, message.subject, message.body)
    said = [codec.Said(cause=record.cause, event=record.event) for record in records]
    match change:
        case "changed":
            said[-1] = codec.Said(cause=said[-1].cause, event=toy.admitted("r1", 12345))
        case "missing":
            said = [each for each in said if each.cause != said[0].cause]
        case "twice":
            said += [said[0]]
        case "not asked for":
            said.insert(0, codec.Said(cause="1.0", event=toy.admitted("r1", 1)))
    body = codec.encode(owner=records[0].owner, ts_ns=records[0].ts_ns, said=said)
    log._messages[index] = Message(message.seq, message.subject, body, {})


@pytest.mark.parametrize("change", ["changed", "missing", "twice", "not asked for"])
async def test_decisions_that_do_not_follow_are_counted(audited: AuditedLog, change: str) -> None:
    await toy.say(audited.log, *[toy.arrived(n) for n in range(20)])
    async with running(audited.log, an_actor(audited.log)):
        pass
    rewrite(audited.log, change)
    async with audited.auditing() as audit, running(audited.log, an_actor(audited.log)):
        await toy.say(audited.log, *[toy.arrived(n) for n in range(20, 40)])
    assert audit.actors["admission"].divergences > 0


async def test_what_other_code_decided_is_taken_in_as_it_stands(audited: AuditedLog) -> None:
    await audited.decide(range(20), code_version="v0")
    async with audited.auditing() as audit:
        await audited.decide(range(20, 40))
    held = audit.actors["admission"]
    assert held.ended.endswith("another version of the code"), "the newest owner ran v0 when the audit began"
    async with audited.auditing() as again:
        await audited.decide(range(40, 60))
    assert (again.actors["admission"].divergences, again.actors["admission"].ended) == (0, "")


async def test_other_code_that_takes_over_ends_the_comparison_but_not_the_digest(audited: AuditedLog) -> None:
    async with audited.auditing() as audit:
        await audited.decide(range(20))
        await audited.decide(range(20, 40), code_version="v9")
    assert "another version" in audit.actors["admission"].ended
    checkpoint = await audited.kept.load()
    assert checkpoint is not None
    assert checkpoint.seq == len(toy.stored(audited.log))


async def test_a_poisoned_record_ends_the_comparison_until_it_is_quarantined(audited: AuditedLog) -> None:
    kept = MemorySnapshots()
    await toy.say(audited.log, toy.arrived(1), toy.arrived(2, toy.POISON))
    async with audited.auditing() as audit:
        for _ in range(2):
            await fail(audited.log, kept)
        async with running(audited.log, an_actor(audited.log, kept)):
            pass
    assert "failed on record 1.1" in audit.actors["admission"].ended
    async with audited.auditing() as again:
        await audited.decide(range(40, 60))
    assert (again.actors["admission"].divergences, again.actors["admission"].ended) == (0, "")
