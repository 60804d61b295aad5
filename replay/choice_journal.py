"""The journal of an engine's own choices: every op that its delegate was told or asked, with its answer, to be checked.

    {"tidegate_choices":1,"engine":"e1","run":"...","code_version":"...","after":0,"snapshot":{...},"digest":"<hex>"}
    {"number":1,"op":{"op":"stored",...},"digest":"<hex>"}
    {"number":2,"op":{"op":"evict_asked",...},"choice":{...},"digest":"<hex>"}
    {"end":2,"digest":"<hex>"}

A journal is a run of numbers, and begins with all that the delegate knew before the first, so each can be verified
alone. `digest` is the running digest of all bytes up to there: BLAKE2b-16 of the digest before it and the line without
its own. Journals of one engine follow each other in a folder: `choices-<first number>.jsonl.zst`. One that is being
written, or was when its engine was killed, has `.partial` behind its name, and may break off anywhere.
"""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from events.base import EngineId, LogDamaged, LogError
from events.log.sealed import CHUNK_BYTES, SealBroken, is_packed, unpacked
from policies.memory.delegate import Snapshot
from policies.memory.delegate_ops import AnyOp, Choice

VERSION: Final = 1
PREFIX: Final = "choices-"
SUFFIX: Final = ".jsonl.zst"
PARTIAL: Final = ".partial"
DIGEST_BYTES: Final = 16
START: Final = bytes(DIGEST_BYTES)
LINE_BYTES_MAX: Final = 1 << 28
"""A snapshot of a large tier is one line."""
_DIGEST: Final = b',"digest":"'


class Header(msgspec.Struct, frozen=True):
    """The first line: which engine, which `run` of it (a start of its process), whose code, and what the delegate knew
    `after` the op of that number."""

    tidegate_choices: int
    engine: EngineId
    run: str
    code_version: str
    after: int
    snapshot: msgspec.Raw

    def knew(self) -> Snapshot:
        """The delegate's state then. Raises ValueError when it is none of this version's."""
        return msgspec.json.decode(self.snapshot, type=Snapshot)


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """An op, and what was answered."""

    number: int
    op: AnyOp
    choice: Choice | None = None


class End(msgspec.Struct, frozen=True):
    """The last line of a journal that was closed in good order."""

    end: int


class NoChoices(LogError):
    """The file is not there, cannot be read, or is no journal of choices."""


class ChoicesDamaged(LogDamaged):
    """It is not what was written. `number` is the first bad entry."""

    def __init__(self, what: str, *, where: str, number: int) -> None:
        super().__init__(f"entry {number}: {what}", where=where, mend="take another copy of it")
        self.number = number


_encode: Final = msgspec.json.Encoder().encode
_decode_header: Final = msgspec.json.Decoder(Header).decode
_decode_line: Final = msgspec.json.Decoder(Line).decode
_decode_end: Final = msgspec.json.Decoder(End).decode


def sealed(entry: Header | Line | End, digest: bytes) -> tuple[bytes, bytes]:
    """An entry's line, after `digest`, and the digest behind it."""
    body = _encode(entry)
    after = _extend(digest, body)
    return b'%s,"digest":"%s"}\n' % (body[:-1], after.hex().encode()), after


def files_of(folder: Path) -> list[Path]:
    """The journals of an engine in a folder, oldest first."""
    found = [path for path in folder.iterdir() if path.name.startswith(PREFIX) and SUFFIX in path.name]
    return sorted(found, key=first_number)


def name_of(first: int) -> str:
    """The name of the journal whose first entry has this number."""
    return f"{PREFIX}{first:015d}{SUFFIX}"


def first_number(path: Path) -> int:
    """Of the first entry, as the file's name says; 0 for another name."""
    digits = path.name.removeprefix(PREFIX).partition(".")[0]
    return int(digits) if digits.isdecimal() else 0


class ChoiceReader:
    """One journal, checked line by line while it is read. `ended`: its last line was read, it is whole.

    Raises NoChoices at once; ChoicesDamaged at the first bad line. One with `.partial` behind its name just ends where
    it breaks off.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.ended = path, False
        self._partial = path.name.endswith(PARTIAL)
        self._digest = START
        self._lines = _lines(path)
        self.header = self._read_header()
        self.last = self.header.after

    def __iter__(self) -> Iterator[Line]:
        while True:
            body = self._next()
            if body is None:
                return
            if body.startswith(b'{"end":'):
                self._read_end(body)
                return
            line = self._understood(body)
            self.last = line.number
            yield line

    def pass_over(self) -> int:
        """The number of the last entry, without understanding any: the digests are checked all the same."""
        while (body := self._next()) is not None:
            if body.startswith(b'{"end":'):
                self._read_end(body)
                break
            self.last += 1
        return self.last

    def _read_header(self) -> Header:
        try:
            body = self._next()
            header = _decode_header(body or b"")
        except (ValueError, ChoicesDamaged) as error:
            raise NoChoices("not a journal of an engine's choices", where=str(self.path)) from error
        if header.tidegate_choices != VERSION:
            raise NoChoices(f"of version {header.tidegate_choices}, this reads {VERSION}", where=str(self.path))
        return header

    def _next(self) -> bytes | None:
        """The next line without its digest, checked; None where a partial journal breaks off."""
        try:
            line = next(self._lines, b"")
        except SealBroken as error:
            self._broken_off(str(error))
            return None
        if not line.endswith(b"\n"):
            self._broken_off("the journal breaks off")
            return None
        at = line.rfind(_DIGEST)
        body = line[:at] + b"}"
        digest = _extend(self._digest, body)
        if at < 0 or line != b'%s,"digest":"%s"}\n' % (body[:-1], digest.hex().encode()):
            raise self._damaged("it was changed: its digest does not hold")
        self._digest = digest
        return body

    def _broken_off(self, what: str) -> None:
        if not self._partial:
            raise self._damaged(what)

    def _understood(self, body: bytes) -> Line:
        try:
            line = _decode_line(body)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"it cannot be read: {error}") from error
        if line.number != self.last + 1:
            raise self._damaged(f"entry {line.number} stands in its place")
        return line

    def _read_end(self, body: bytes) -> None:
        if _decode_end(body).end != self.last:
            raise self._damaged("the end line does not fit what is before it")
        try:
            rest = next(self._lines, b"")
        except SealBroken as error:
            raise self._damaged(str(error)) from error
        if rest:
            raise self._damaged("something stands behind the end line")
        self.ended = True

    def _damaged(self, what: str) -> ChoicesDamaged:
        return ChoicesDamaged(what, where=str(self.path), number=getattr(self, "last", -1) + 1)


def _extend(digest: bytes, body: bytes) -> bytes:
    return blake2b(digest + body, digest_size=DIGEST_BYTES).digest()


def _lines(path: Path) -> Iterator[bytes]:
    """Lines with their newline; the last one without it where the file breaks off."""
    rest = b""
    for chunk in _chunks(path):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
        if len(rest) > LINE_BYTES_MAX:
            raise SealBroken(f"a line is longer than {LINE_BYTES_MAX} bytes")
    if rest:
        yield rest


def _chunks(path: Path) -> Iterator[bytes]:
    """Unpacked where the file is compressed, whatever its name."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
            file.seek(0)
            yield from unpacked(file) if is_packed(head) else iter(lambda: file.read(CHUNK_BYTES), b"")
    except OSError as error:
        raise NoChoices(f"cannot be read: {error.strerror or error}", where=str(path)) from error
