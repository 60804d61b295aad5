"""What every kind of log promises (events/log/base.py), asked of all of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

import pytest

from events.base import LogDamaged, LogError, PoolId
from events.log.base import Fence, FenceBroken, Log, Message
from events.log.jetstream import JetStreamLog, connect
from events.log.journal import JournalLog
from events.log.memory import MemoryLog
from events.subjects import decision, decisions_of, fact
from services.runtime.embedded import EmbeddedNats

READ_TIMEOUT_S = 10.0


class Kind(NamedTuple):
    """One kind of log, open; `reopen` closes it and opens it again where it survives that."""

    log: Log
    reopen: Callable[[], Awaitable[Log]] | None


@pytest.fixture(params=["memory", "journal", pytest.param("jetstream", marks=pytest.mark.integration)])
async def kind(request: pytest.FixtureRequest, pool: PoolId, tmp_path: Path) -> AsyncIterator[Kind]:
    match request.param:
        case "memory":
            yield Kind(MemoryLog(pool), None)
        case "journal":
            log = JournalLog.create(tmp_path / "log.jsonl.zst", pool)

            async def reopen_journal() -> Log:
                await log.close()
                return JournalLog.open(tmp_path / "log.jsonl.zst")

            yield Kind(log, reopen_journal)
            await log.close()
        case _:
            server: EmbeddedNats = request.getfixturevalue("nats_server")
            client = await connect(server.url, name="contract")
            stream = await JetStreamLog.open(client, pool)

            async def reopen_stream() -> Log:
                await stream.close()
                return await JetStreamLog.open(client, pool, create=False)

            yield Kind(stream, reopen_stream)
            await client.close()


@pytest.fixture
def log(kind: Kind) -> Log:
    return kind.log


async def said(log: Log, *, after: int = 0, pattern: str = ">") -> list[Message]:
    """Everything from `after` to the end."""
    async with asyncio.timeout(READ_TIMEOUT_S):
        return [message async for batch in log.read(after=after, pattern=pattern) for message in batch]


async def three(log: Log) -> list[str]:
    """A fact, a decision of admission, a decision of quota: their subjects."""
    subjects = [
        fact(log.pool, "gateway", "request_arrived"),
        decision(log.pool, "admission", "request_admitted"),
        decision(log.pool, "quota", "quota_moved"),
    ]
    for number, subject in enumerate(subjects):
        await log.append(subject, b"%d" % number)
    return subjects


async def test_messages_are_numbered_from_one_without_gaps(log: Log) -> None:
    subject = fact(log.pool, "clock", "ticked")
    assert [await log.append(subject, b"%d" % number) for number in range(5)] == [1, 2, 3, 4, 5]


async def test_what_was_appended_is_read_back_byte_for_byte_in_order(log: Log) -> None:
    subjects = await three(log)
    headers = {"Tg-Trace": "00-ab-cd-01"}
    bodies = [b"", b'{"a": 1}', b'{"a":1}', b"not json", bytes(range(256)), "\N{SNOWMAN}\r\n".encode()]
    for body in bodies:
        await log.append(subjects[0], body, headers=headers)
    wanted = [Message(seq, subject, b"%d" % (seq - 1), {}) for seq, subject in enumerate(subjects, 1)]
    wanted += [Message(seq, subjects[0], body, headers) for seq, body in enumerate(bodies, 4)]
    assert await said(log) == wanted


async def test_an_empty_log_has_nothing_to_read_and_no_last_message(log: Log) -> None:
    assert await said(log) == []
    assert await log.last() is None
    assert await log.get(1) is None


async def test_the_same_msg_id_stands_once_even_under_another_subject(log: Log) -> None:
    fact_of, decision_of, _ = await three(log)
    first = await log.append(fact_of, b"x", msg_id="gateway:g1:1")
    assert await log.append(fact_of, b"x", msg_id="gateway:g1:1") == first
    assert await log.append(decision_of, b"y", msg_id="gateway:g1:1") == first
    assert await log.append(fact_of, b"x", msg_id="gateway:g1:2") == first + 1
    assert len(await said(log)) == 5


async def test_a_fence_that_holds_lets_the_next_decision_in(log: Log) -> None:
    mine = decisions_of(log.pool, "admission")
    first = await log.append(decision(log.pool, "admission", "actor_started"), b"a", fence=Fence(mine, 0))
    await log.append(fact(log.pool, "clock", "ticked"), b"t")
    assert await log.append(decision(log.pool, "admission", "several"), b"b", fence=Fence(mine, first)) == 3


@pytest.mark.parametrize("last_seq", [0, 1, 4, 99])
async def test_a_fence_that_does_not_hold_appends_nothing(log: Log, last_seq: int) -> None:
    await three(log)
    with pytest.raises(FenceBroken):
        await log.append(
            decision(log.pool, "admission", "request_admitted"),
            b"stale",
            fence=Fence(decisions_of(log.pool, "admission"), last_seq),
        )
    assert len(await said(log)) == 3


async def test_a_stale_owner_cannot_write_a_kind_that_was_never_written(log: Log) -> None:
    mine = decisions_of(log.pool, "admission")
    old = await log.append(decision(log.pool, "admission", "actor_started"), b"old", fence=Fence(mine, 0))
    await log.append(decision(log.pool, "admission", "actor_started"), b"new", fence=Fence(mine, old))
    with pytest.raises(FenceBroken):
        await log.append(decision(log.pool, "admission", "holder_lost"), b"stale", fence=Fence(mine, old))


async def test_an_append_said_again_stands_once_although_its_own_fence_broke(log: Log) -> None:
    mine = decisions_of(log.pool, "admission")
    subject = decision(log.pool, "admission", "several")
    first = await log.append(subject, b"a", msg_id="admission:1", fence=Fence(mine, 0))
    assert await log.append(subject, b"a", msg_id="admission:1", fence=Fence(mine, 0)) == first
    assert len(await said(log)) == 1


async def test_reading_begins_after_the_given_seq_and_takes_only_the_pattern(log: Log) -> None:
    subjects = await three(log)
    await log.append(subjects[1], b"3")
    assert [message.seq for message in await said(log, after=1)] == [2, 3, 4]
    assert [message.seq for message in await said(log, pattern=decisions_of(log.pool, "admission"))] == [2, 4]
    pattern = f"tg.v1.{log.pool}.decision.*.*"
    assert [message.seq for message in await said(log, after=2, pattern=pattern)] == [3, 4]
    assert await said(log, after=4) == []


async def test_a_log_that_ends_before_what_was_already_read_is_damaged(log: Log) -> None:
    await three(log)
    with pytest.raises(LogDamaged, match="ends at 3"):
        await said(log, after=4)


async def test_the_last_message_is_found_by_pattern_and_any_by_seq(log: Log) -> None:
    subjects = await three(log)
    await log.append(subjects[1], b"3")
    assert await log.last() == Message(4, subjects[1], b"3", {})
    assert await log.last(decisions_of(log.pool, "quota")) == Message(3, subjects[2], b"2", {})
    assert await log.last(decisions_of(log.pool, "eviction")) is None
    assert await log.get(1) == Message(1, subjects[0], b"0", {})
    assert await log.get(5) is None
    assert await log.get(0) is None


async def test_a_follower_waits_at_the_end_and_gets_what_comes(log: Log) -> None:
    subjects = await three(log)
    got: list[bytes] = []
    waiting = asyncio.Event()

    async def follow() -> None:
        async with aclosing(log.read(after=1, follow=True)) as batches:
            async for batch in batches:
                got.extend(message.body for message in batch)
                waiting.set()
                if len(got) == 4:
                    return

    async with asyncio.timeout(READ_TIMEOUT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        await waiting.wait()
        await log.append(subjects[0], b"3")
        await log.append(subjects[0], b"4")
    assert got == [b"1", b"2", b"3", b"4"]


async def test_a_follower_that_is_cancelled_leaves_the_log_as_it_was(log: Log) -> None:
    await three(log)
    started = asyncio.Event()

    async def follow() -> None:
        async for _ in log.read(follow=True):
            started.set()

    task = asyncio.create_task(follow())
    async with asyncio.timeout(READ_TIMEOUT_S):
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(await said(log)) == 3


async def test_what_was_acknowledged_is_there_after_closing_and_opening_again(kind: Kind) -> None:
    if kind.reopen is None:
        assert isinstance(kind.log, MemoryLog), "only memory may forget"
        return
    await three(kind.log)
    before = await said(kind.log)
    again = await kind.reopen()
    assert again.pool == kind.log.pool
    assert await said(again) == before
    await again.close()


async def test_a_full_log_says_so_and_keeps_what_it_has(pool: PoolId) -> None:
    log = MemoryLog(pool, messages_max=1)
    await log.append(fact(pool, "clock", "ticked"), b"1")
    with pytest.raises(LogError, match="full"):
        await log.append(fact(pool, "clock", "ticked"), b"2")
    assert len(await said(log)) == 1
