"""Where an actor stood, kept so that its next start need not read the whole log. Losing one costs time only.

A snapshot is plain JSON with the state's own order of keys, so equal progress gives equal bytes. It belongs to one
code version (other code would have built another state) and to one log: it holds the running digest at its position
and the one before, so that the log can be asked whether it still is the log that the snapshot was taken of.
"""

import asyncio
import logging
import os
import zlib
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from policies.decider import Decider, Heard, Progress

MAGIC: Final = b"tidegate-snapshot-1"
STATE_BYTES_MAX: Final = 256 * 1024 * 1024
"""A larger state is not kept: the next start reads the log from its first message."""

S = TypeVar("S", bound=msgspec.Struct)

logger = logging.getLogger(__name__)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """An actor after message `seq`. `watermark` is the last cause with an answer up to there ("" = none);
    `digest` the running digest (hex) after that message, `digest_before` the one before it; `owner_seq` is where
    the owner who took it had said that it starts."""

    actor: str
    code_version: str
    owner_seq: int
    seq: int
    item: int
    digest: str
    digest_before: str
    watermark: str
    now_ns: int
    tick_ns: int
    skipped: int
    heard: dict[str, Heard]
    tags: tuple[str, ...] | None
    state: msgspec.Raw


class CrashNote(msgspec.Struct, frozen=True, kw_only=True):
    """The policy failed on the record at `position`, in so many starts in a row. `error` holds no payload."""

    position: str
    code_version: str
    starts: int
    error: str


class SnapshotStore(Protocol):
    """Keeps the newest snapshot and crash note of each actor. Raises OSError when it cannot."""

    async def load(self, actor: str) -> Snapshot | None:
        """The newest snapshot; None when there is none that can be read whole."""
        ...

    async def save(self, snapshot: Snapshot) -> None:
        """Keep this one instead of the one before; after a crash halfway the one before is still there."""
        ...

    async def crash_note(self, actor: str) -> CrashNote | None:
        """What the last start of this actor failed on; None when it failed on nothing."""
        ...

    async def note_crash(self, actor: str, note: CrashNote | None) -> None:
        """Keep this note instead of the one before; None forgets it."""
        ...


def take(
    decider: Decider[S], progress: Progress[S], *, code_version: str, owner_seq: int, seq: int, digest: bytes,
    digest_before: bytes, watermark: str,
) -> Snapshot:  # fmt: skip
    """The snapshot of an actor that has taken in the whole message `seq`."""
    takes = progress.takes
    return Snapshot(
        actor=decider.name, code_version=code_version, owner_seq=owner_seq, seq=seq, item=progress.item,
        digest=digest.hex(), digest_before=digest_before.hex(), watermark=watermark,
        now_ns=progress.now_ns, tick_ns=progress.tick_ns, skipped=progress.skipped, heard=dict(progress.heard),
        tags=None if takes is None else tuple(sorted(cls.event_tag() for cls in takes)),
        state=msgspec.Raw(msgspec.json.encode(progress.state)),
    )  # fmt: skip


def restore(decider: Decider[S], snapshot: Snapshot) -> Progress[S]:
    """The progress that the snapshot was taken of. Raises msgspec.DecodeError when the state is of another shape."""
    tags = snapshot.tags
    return Progress(
        state=msgspec.json.decode(snapshot.state, type=decider.state),
        seq=snapshot.seq, item=snapshot.item, now_ns=snapshot.now_ns, tick_ns=snapshot.tick_ns,
        skipped=snapshot.skipped, heard=dict(snapshot.heard),
        takes=None if tags is None else frozenset(cls for cls in decider.takes if cls.event_tag() in tags),
    )  # fmt: skip


def pack(snapshot: Snapshot) -> bytes:
    """The file: one line with magic and CRC-32 of the rest, then the JSON."""
    body = msgspec.json.encode(snapshot)
    return b"%s %08x\n" % (MAGIC, zlib.crc32(body)) + body


def unpack(data: bytes) -> Snapshot:
    """Raises ValueError when a byte is missing or changed."""
    head, _, body = data.partition(b"\n")
    if head != b"%s %08x" % (MAGIC, zlib.crc32(body)):
        raise ValueError("the checksum is wrong")
    return msgspec.json.decode(body, type=Snapshot)


class MemorySnapshots:
    """See SnapshotStore. Holds the packed bytes: what comes back never shares anything with what was given."""

    def __init__(self) -> None:
        self._packed: dict[str, bytes] = {}
        self._notes: dict[str, CrashNote] = {}

    async def load(self, actor: str) -> Snapshot | None:
        packed = self._packed.get(actor)
        return None if packed is None else unpack(packed)

    async def save(self, snapshot: Snapshot) -> None:
        self._packed[snapshot.actor] = pack(snapshot)

    async def crash_note(self, actor: str) -> CrashNote | None:
        return self._notes.get(actor)

    async def note_crash(self, actor: str, note: CrashNote | None) -> None:
        if note is None:
            self._notes.pop(actor, None)
        else:
            self._notes[actor] = note


class FileSnapshots:
    """See SnapshotStore. One file per actor, replaced whole and synced; blocking work runs in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file_of(self, actor: str) -> Path:
        """Where an actor's snapshot lies."""
        return self.folder / f"{actor}.snapshot"

    async def load(self, actor: str) -> Snapshot | None:
        data = await asyncio.to_thread(_read, self.file_of(actor))
        return None if data is None else self._unpacked(actor, data)

    async def save(self, snapshot: Snapshot) -> None:
        await asyncio.to_thread(replace_file, self.file_of(snapshot.actor), pack(snapshot))

    async def crash_note(self, actor: str) -> CrashNote | None:
        data = await asyncio.to_thread(_read, self._note_of(actor))
        try:
            return None if data is None else msgspec.json.decode(data, type=CrashNote)
        except msgspec.DecodeError:
            logger.warning("crash note %s cannot be read and is passed over", self._note_of(actor))
            return None

    async def note_crash(self, actor: str, note: CrashNote | None) -> None:
        if note is None:
            await asyncio.to_thread(self._note_of(actor).unlink, missing_ok=True)
        else:
            await asyncio.to_thread(replace_file, self._note_of(actor), msgspec.json.encode(note))

    def _note_of(self, actor: str) -> Path:
        return self.folder / f"{actor}.crash"

    def _unpacked(self, actor: str, data: bytes) -> Snapshot | None:
        try:
            return unpack(data)
        except (ValueError, msgspec.DecodeError) as error:
            logger.warning("snapshot %s is passed over, the log is read from its start: %s", self.file_of(actor), error)
            return None


def replace_file(file: Path, data: bytes) -> None:
    """Put `data` in the place of `file`: after a crash at any moment, or on a full disk, it is the old or the new,
    whole. What is no file (a device, a pipe) is written to."""
    if file.exists() and not file.is_file():
        file.write_bytes(data)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with fresh.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
