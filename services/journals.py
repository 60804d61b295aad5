"""Logs between JetStream and files: byte for byte, with the running digest as proof."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from events.base import LogDamaged, LogError, PoolId
from events.log import digest
from events.log.base import Log, Message
from events.log.journal import JournalWriter
from replay.journal_source import JournalSource
from services.runtime.config import Config
from services.runtime.servers import open_log

PROGRESS_EVERY = 1_000
RETRIES_MAX = 5


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written where."""

    pool: str
    journal: str
    messages: int
    digest: str


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What came into which pool. The digest is keyed by the pool's name: it is the journal's own (`journal_digest`)
    when the pool kept its name."""

    pool: str
    journal_pool: str
    messages: int
    digest: str
    journal_digest: str


async def export(
    config: Config, pool: PoolId, path: Path, *, on_progress: Callable[[int], None] = lambda _done: None
) -> Exported:
    """Write all that a pool's log holds now into a journal. Raises LogError, LogDamaged."""
    async with open_log(config, pool) as log:
        return await export_log(log, path, on_progress=on_progress)


async def export_log(log: Log, path: Path, *, on_progress: Callable[[int], None] = lambda _done: None) -> Exported:
    """As `export`, of a log that is open already."""
    with JournalWriter(path, log.pool) as writer:
        async for batch in log.read():
            for message in batch:
                writer.write(message)
            on_progress(writer.seq)
    return Exported(pool=log.pool, journal=str(path), messages=writer.seq, digest=writer.digest.hex())


async def bring_back(
    config: Config, path: Path, pool: PoolId | None, *, on_progress: Callable[[int], None] = lambda _done: None
) -> Imported:
    """Write a journal into a pool's stream, which is made if it is not there and must be empty. The journal is
    checked whole before the first message is written, and the stream is read back afterwards.

    With another name than the journal's, the pool stands in the subjects: those change, no body does.
    Raises NotAJournal, JournalDamaged, LogError, LogDamaged (what came back is not what was written).
    """
    source = JournalSource(path)
    into = pool or source.pool
    journal_digest, _ = _digest_of(iter(source), source.pool)
    expected, count = _digest_of(_renamed(source, into), into)
    async with open_log(config, into, create=True) as log:
        if await log.last() is not None:
            mend = "name a fresh pool with --pool"
            raise LogError(f"pool {into} has a log already", where=log.where, mend=mend)
        name = secrets.token_hex(4)
        for message in _renamed(source, into):
            await _append(log, message, msg_id=f"import:{name}:{message.seq}")
            if message.seq % PROGRESS_EVERY == 0:
                on_progress(message.seq)
        running, messages = digest.start(into), 0
        async for batch in log.read():
            for message in batch:
                running, messages = digest.extend(running, message), messages + 1
        if (running, messages) != (expected, count):
            raise LogDamaged(
                f"{count} messages ({expected.hex()}) were written, {messages} ({running.hex()}) came back",
                where=log.where, mend="was somebody else writing into this pool? take a fresh one",
            )  # fmt: skip
    return Imported(
        pool=into, journal_pool=source.pool, messages=count, digest=running.hex(), journal_digest=journal_digest.hex()
    )


async def _append(log: Log, message: Message, *, msg_id: str) -> None:
    """One message, at its own seq; a lost acknowledgement is asked for again."""
    for attempt in range(1, RETRIES_MAX + 1):
        try:
            seq = await log.append(message.subject, message.body, msg_id=msg_id, headers=message.headers)
        except LogError:
            if attempt == RETRIES_MAX:
                raise
            continue
        if seq != message.seq:
            raise LogDamaged(f"record {message.seq} became {seq}", where=f"pool {log.pool}", mend="take a fresh pool")
        return


def _renamed(source: JournalSource, into: PoolId) -> Iterator[Message]:
    if into == source.pool:
        yield from source
        return
    for message in source:
        parts = message.subject.split(".")
        parts[2] = into
        yield message._replace(subject=".".join(parts))


def _digest_of(messages: Iterator[Message], pool: PoolId) -> tuple[bytes, int]:
    running, count = digest.start(pool), 0
    for message in messages:
        running, count = digest.extend(running, message), count + 1
    return running, count
