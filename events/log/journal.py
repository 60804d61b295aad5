"""The log as one file that can be handed on and checked by itself: JSON lines, zstd where the name ends in .zst.

    {"tidegate_journal":1,"pool":"default"}
    {"seq":1,"subject":"tg.v1.default.fact.clock.ticked","digest":"<hex>","body":{...}}     headers before digest
    {"end":1,"digest":"<hex>"}

`digest` is the log's running digest (events/log/digest.py) after that record. A body stands there byte for byte;
one that is not a JSON object on one line stands as `body_b64`. A line has exactly one spelling, so the reader
writes each line again from what it understood and compares: no byte can change unnoticed, in a compressed journal
by its seal (events/log/sealed.py).

A journal is written beside its name, as `<name>.partial`, and gets its name when it is complete. After a hard
kill the partial file stays: it can be read, and its end says that it is truncated.
"""

import os
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from operator import ne
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from events.base import LogDamaged, LogError, PoolId
from events.log.base import Fence, Message
from events.log.digest import extend, start
from events.log.memory import MemoryLog
from events.log.sealed import SealBroken, SealedWriter, is_packed, unpacked

VERSION = 1
COMPRESSED = ".zst"
PARTIAL = ".partial"
CHUNK_BYTES = 1 << 18
LINE_BYTES_MAX = 1 << 26
_HEADER_HEAD = b'{"tidegate_journal":%d,"pool":"' % VERSION
_RECOGNISED_BYTES_MIN = 4


class NotAJournal(LogError):
    """The file is not there, cannot be read, or was never a journal."""


class JournalDamaged(LogDamaged):
    """A journal is not what was written. `seq` is the first bad record (one past the last for the end line),
    `line` where it stands in the file."""

    def __init__(self, what: str, *, where: str, seq: int, line: int) -> None:
        super().__init__(f"record {seq} (line {line}): {what}", where=where, mend="take another copy of the journal")
        self.seq, self.line = seq, line


class JournalHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line."""

    tidegate_journal: int
    pool: PoolId


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seq: int
    subject: str
    digest: str
    headers: dict[str, str] = {}
    body: msgspec.Raw = msgspec.Raw()
    body_b64: str | None = None


_decode_header = msgspec.json.Decoder(JournalHeader).decode
_decode_record = msgspec.json.Decoder(_Record).decode
_encode = msgspec.json.Encoder().encode


def check_place(path: Path) -> None:
    """Raises LogError where no journal can be, for there is something else than a file."""
    if path.exists() and not path.is_file():
        raise LogError("a journal is a file of its own", where=str(path), mend="name a file")


class JournalWriter:
    """Writes one journal, record by record. Leaving its `with` block ends it, after an exception or Ctrl-C too:
    what was written until then is a whole journal. `digest` and `seq` are those of the last record.

    Raises LogError where the file cannot be written; then only the partial file stays.
    """

    def __init__(self, path: Path, pool: PoolId) -> None:
        self.path, self.pool = path, pool
        self.seq, self.digest = 0, start(pool)
        self._partial = path.with_name(path.name + PARTIAL)
        self._file: BinaryIO | None = None
        self._sealed: SealedWriter | None = None
        with self._failing():
            check_place(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb", buffering=CHUNK_BYTES)
            self._sealed = SealedWriter(self._file) if path.name.endswith(COMPRESSED) else None
        self._put(_encode(JournalHeader(VERSION, pool)) + b"\n")

    def write(self, message: Message) -> None:
        """One more record; records come in log order, from 1."""
        assert message.seq == self.seq + 1, "a journal holds every record, in order"
        digest = extend(self.digest, message)
        self._put(_line(message, digest, raw=_stands_as_it_is(message.body)))
        self.seq, self.digest = message.seq, digest

    def flush(self) -> None:
        """Hand all that was written to the operating system, so that it outlives this process."""
        with self._failing():
            (self._sealed or self._open()).flush()

    def close(self) -> None:
        """Write the end, sync it to the disk and give the journal its name. Again does nothing."""
        if self._file is None:
            return
        self._put(_end_line(self.seq, self.digest))
        with self._failing():
            if self._sealed is not None:
                self._sealed.finish()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.replace(self.path)
            _sync_folder(self.path.parent)
        self._file = self._sealed = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _put(self, line: bytes) -> None:
        with self._failing():
            (self._sealed or self._open()).write(line)

    def _open(self) -> BinaryIO:
        if self._file is None:
            raise LogError("the journal is closed", where=str(self.path))
        return self._file

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """A failed write closes the file as it is, without an end: a journal with a hole must not look whole."""
        try:
            yield
        except OSError as error:
            file = self._file
            self._file = self._sealed = None
            if file is not None:
                # It fails again to write what it holds; the first error is the one that counts.
                with suppress(OSError):
                    file.close()
            mend, where = "free space, or take another place", str(self.path)
            raise LogError(f"the journal cannot be written: {error.strerror}", where=where, mend=mend) from error


def read_journal(path: Path) -> tuple[JournalHeader, Iterator[Message]]:
    """The header, and the records as they are read and checked one after another.

    Raises NotAJournal at once; JournalDamaged at once or when the reading gets to the first bad record. An
    iterator that ends without raising has checked the whole file.
    """
    where = str(path)
    lines = _lines(_chunks(path))
    try:
        first = next(lines, b"")
        header = _header(first)
        if header is None and not _recognised(first, next(lines, b"")):
            raise NotAJournal(
                "not a journal of Tidegate",
                where=where,
                mend="see `tidegate replay export`; a trace that is none yet has a --format",
            )
    except SealBroken as error:
        raise JournalDamaged(str(error), where=where, seq=0, line=1) from error
    if header is None:
        what = f"not the first line of a journal of version {VERSION}: changed, or written by a newer Tidegate"
        raise JournalDamaged(what, where=where, seq=0, line=1)
    return header, _messages(lines, header.pool, where=where)


class JournalLog:
    """The Log over one file: `create` a new one to append to (it gets its name at `close`), or `open` a whole one
    read-only. All of it is held in memory while it is open; to pass over a long one, use `read_journal`."""

    def __init__(self, held: MemoryLog, *, where: str, writer: JournalWriter | None) -> None:
        self.pool = held.pool
        self._held, self._where, self._writer = held, where, writer

    @classmethod
    def create(cls, path: Path, pool: PoolId) -> Self:
        """A new, empty journal."""
        return cls(MemoryLog(pool), where=str(path), writer=JournalWriter(path, pool))

    @classmethod
    def open(cls, path: Path) -> Self:
        """A whole journal, checked. Raises what `read_journal` raises."""
        header, messages = read_journal(path)
        return cls(MemoryLog.of(header.pool, messages), where=str(path), writer=None)

    async def append(
        self, subject: str, body: bytes, *, msg_id: str = "", fence: Fence | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:  # fmt: skip
        if self._writer is None:
            raise LogError("the journal is open for reading only", where=self._where)
        seq = await self._held.append(subject, body, msg_id=msg_id, fence=fence, headers=headers)
        if seq > self._writer.seq:
            self._writer.write(Message(seq, subject, body, dict(headers or {})))
            self._writer.flush()
        return seq

    def read(self, *, after: int = 0, pattern: str = ">", follow: bool = False) -> AsyncIterator[list[Message]]:
        return self._held.read(after=after, pattern=pattern, follow=follow)

    async def last(self, pattern: str = ">") -> Message | None:
        return await self._held.last(pattern)

    async def get(self, seq: int) -> Message | None:
        return await self._held.get(seq)

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _line(message: Message, digest: bytes, *, raw: bool) -> bytes:
    """The one spelling of a record."""
    headers = b'"headers":%s,' % _encode(dict(sorted(message.headers.items()))) if message.headers else b""
    body = b'"body":%s' % message.body if raw else b'"body_b64":"%s"' % b64encode(message.body)
    subject = _encode(message.subject)
    return b'{"seq":%d,"subject":%s,%s"digest":"%s",%s}\n' % (
        message.seq, subject, headers, digest.hex().encode(), body,
    )  # fmt: skip


def _end_line(seq: int, digest: bytes) -> bytes:
    return b'{"end":%d,"digest":"%s"}\n' % (seq, digest.hex().encode())


def _stands_as_it_is(body: bytes) -> bool:
    """Whether a body is a JSON object that a reader gets back byte for byte from its line."""
    if not (body.startswith(b"{") and body.endswith(b"}")) or b"\n" in body:
        return False
    try:
        body.decode()
        return bytes(_decode_record(b'{"seq":0,"subject":"","digest":"","body":%s}' % body).body) == body
    except (ValueError, RecursionError):
        return False


def _header(first: bytes) -> JournalHeader | None:
    try:
        header = _decode_header(first)
    except (ValueError, RecursionError):
        return None
    known = header.tidegate_journal == VERSION and _encode(header) + b"\n" == first
    return header if known else None


def _messages(lines: Iterator[bytes], pool: PoolId, *, where: str) -> Iterator[Message]:
    digest, seq, line = start(pool), 1, 2
    try:
        for text in lines:
            if text.startswith(b'{"end":'):
                if text != _end_line(seq - 1, digest):
                    raise JournalDamaged("the end line does not fit what is before it", where=where, seq=seq, line=line)
                for _ in lines:
                    raise JournalDamaged("something stands after the end line", where=where, seq=seq, line=line + 1)
                return
            message, raw = _message(text, where=where, seq=seq, line=line)
            digest = extend(digest, message)
            if _line(message, digest, raw=raw) != text:
                raise JournalDamaged("it was changed: its digest does not hold", where=where, seq=seq, line=line)
            yield message
            seq, line = seq + 1, line + 1
    except SealBroken as error:
        raise JournalDamaged(str(error), where=where, seq=seq, line=line) from error
    raise JournalDamaged("the journal is truncated: it has no end line", where=where, seq=seq, line=line)


def _message(text: bytes, *, where: str, seq: int, line: int) -> tuple[Message, bool]:
    """The message of a line, and whether its body stood there as it is."""
    if not text.endswith(b"\n"):
        raise JournalDamaged("the journal is truncated in this record", where=where, seq=seq, line=line)
    try:
        record = _decode_record(text)
        raw = record.body_b64 is None
        body = bytes(record.body) if record.body_b64 is None else b64decode(record.body_b64, validate=True)
        if raw != _stands_as_it_is(body):
            raise ValueError("its body stands there in another spelling")
    except (ValueError, RecursionError) as error:
        raise JournalDamaged(f"it cannot be read: {error}", where=where, seq=seq, line=line) from error
    if record.seq != seq:
        what = f"record {record.seq} stands in its place: records are missing, doubled or swapped"
        raise JournalDamaged(what, where=where, seq=seq, line=line)
    return Message(seq, record.subject, body, record.headers), raw


def _recognised(first: bytes, second: bytes) -> bool:
    """Whether a file without a good first line was a journal once: its head is a journal's but for one byte, or one
    of its first two lines is a line of a journal."""
    if any(line.startswith((b'{"seq":', b'{"end":', _HEADER_HEAD)) for line in (first, second)):
        return True
    head = (first + second)[: len(_HEADER_HEAD)]
    return len(head) >= _RECOGNISED_BYTES_MIN and sum(map(ne, head, _HEADER_HEAD)) <= 1


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines with their newline; the last one without it where the file breaks off."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
        if len(rest) > LINE_BYTES_MAX:
            raise SealBroken(f"it is longer than {LINE_BYTES_MAX} bytes")
    if rest:
        yield rest


def _chunks(path: Path) -> Iterator[bytes]:
    """The journal's bytes; unpacked where the file is compressed, whatever its name."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_HEADER_HEAD))
            file.seek(0)
            yield from unpacked(file) if is_packed(head) else iter(lambda: file.read(CHUNK_BYTES), b"")
    except OSError as error:
        raise NotAJournal(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in it durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
