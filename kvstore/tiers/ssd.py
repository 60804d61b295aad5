"""The SSD tier: one file a slice, written beside its name and renamed, checked on every read.

    <folder>/<namespace digest>/<slice>.slice       whole
    <folder>/<namespace digest>/<slice>.<n>.tmp     being written; removed at the next start

A slice is there from the rename on, all of it or not at all. What `put` acknowledged survives the death of the process
(`Sync.PROCESS`) or of the machine (`Sync.POWER`: file and folder are fsynced before `put` returns). Under
`Sync.PROCESS` a loss of power may take the latest slices, or leave torn ones under their names: their header or
their checksum gives them away, so they are missed, never served. KV can be computed again, so that is the default.

At the start the folder is scanned: what is whole is found again, halves are removed, files that are not ours (another
namespace, another version, another name) are left alone. If the budget has shrunk, the newest that fit are kept. One
process at a time: a second one is refused.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from events.base import SliceId
from events.slice import Tier
from kvstore.errors import ChecksumMismatch, NotResident, TierUnavailable
from kvstore.tiers.base import Writer
from kvstore.tiers.files import Files
from kvstore.tiers.ledger import Entry
from kvstore.tiers.shelf import Shelf
from kvstore.tiers.slicefile import HEADER_BYTES, NAMESPACE_BYTES, VERSION, Checksum, Header, checksum, pack, unpack

PIECE_BYTES = 1 << 20
"""A read is checked piece by piece, each while it is in the cache and the disk fetches the next one."""
_LOCK = "lock"
_WHOLE = re.compile(r"([0-9a-z]{1,128})\.slice")
_HALF = re.compile(r"[0-9a-z]{1,128}\.[0-9]+\.tmp")
_AT_TMP, _AT_NAME = 0, 1
_DAMAGED_FILE = {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EIO}
"""Of a read: this file is not what was stored (a link, a folder, a pipe, or a sector that cannot be read)."""


class Sync(StrEnum):
    """What an acknowledged slice survives: the end of the process, or a loss of power as well."""

    PROCESS = "process"
    POWER = "power"


def ssd_tier(
    folder: Path, *, bytes_max: int, namespace: bytes, sync: Sync = Sync.PROCESS, files: Files | None = None
) -> Shelf:
    """The tier in that folder, with what an earlier run left there. `namespace` is a `namespace_digest`.

    `bytes_max` counts whole files, headers included. Raises TierUnavailable with its mend: the folder is read-only, not
    ours alone, or in use by another process.
    """
    assert len(namespace) == NAMESPACE_BYTES, "a namespace digest"
    medium = _Folder(folder, namespace, sync=sync, files=files or Files())
    shelf = Shelf(Tier.SSD, medium, where=medium.where, bytes_max=bytes_max)
    try:
        medium.take_in(shelf)
    except BaseException:
        shelf.close()
        raise
    return shelf


class _Folder:
    lends_in_place = False

    def __init__(self, folder: Path, namespace: bytes, *, sync: Sync, files: Files) -> None:
        self.where = f"{Tier.SSD} {folder}"
        self._namespace, self._sync, self._files = namespace, sync is Sync.POWER, files
        with self._speaking():
            self._folder = files.open_folder(folder, namespace.hex())
            try:
                self._lock = files.lock(self._folder, _LOCK)
            except BaseException:
                files.close(self._folder)
                raise

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """What the system refuses is said as TierUnavailable, with its mend."""
        try:
            yield
        except OSError as error:
            mend, lasting = _mend(error.errno or 0)
            raise TierUnavailable(where=self.where, why=_said(error), lasting=lasting, mend=mend) from error

    def footprint(self, bytes_: int) -> int:
        return HEADER_BYTES + bytes_

    def store(self, entry: Entry, data: memoryview) -> None:
        header = Header(
            namespace=self._namespace,
            slice_id=entry.slice_id,
            generation=entry.generation,
            length=entry.bytes,
            checksum=checksum(data),
        )
        entry.place = _AT_TMP
        with self._speaking():
            self._write(_tmp(entry), [pack(header), data])
            self._files.rename(self._folder, _tmp(entry), _name(entry.slice_id))
            entry.place = _AT_NAME
            if self._sync:
                self._files.sync(self._folder)

    def _write(self, name: str, buffers: list[bytes | memoryview]) -> None:
        fd = self._files.create(self._folder, name)
        try:
            self._files.reserve(fd, sum(len(buffer) for buffer in buffers))
            self._files.write(fd, buffers)
            if self._sync:
                self._files.sync(fd)
        finally:
            self._files.close(fd)

    def fill(self, entry: Entry, writer: Writer) -> None:
        data = memoryview(bytearray(entry.bytes))
        writer(data)
        self.store(entry, data)

    def load(self, entry: Entry, out: memoryview) -> None:
        page, digest = bytearray(HEADER_BYTES), Checksum()
        with self._speaking():
            try:
                with self._opened(_name(entry.slice_id)) as (fd, size):
                    self._files.ahead(fd)
                    done = self._files.read(fd, page, 0)
                    for begin in range(0, entry.bytes, PIECE_BYTES):
                        piece = out[begin : begin + PIECE_BYTES]
                        done += self._files.read(fd, piece, HEADER_BYTES + begin)
                        digest.update(piece)
            except FileNotFoundError:
                raise NotResident(where=self.where, name=entry.slice_id) from None
            except OSError as error:
                if error.errno not in _DAMAGED_FILE:
                    raise
                raise self._damaged(entry, _said(error)) from error
        if not size == done == HEADER_BYTES + entry.bytes:
            raise self._damaged(entry, "length")
        self._check(entry, unpack(page, where=self.where, name=entry.slice_id), digest)

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[int, int]]:
        """A file and its size."""
        fd, size = self._files.open_read(self._folder, name)
        try:
            yield fd, size
        finally:
            self._files.close(fd)

    def _check(self, entry: Entry, header: Header, digest: Checksum) -> None:
        expected = Header(
            namespace=self._namespace,
            slice_id=entry.slice_id,
            generation=entry.generation,
            length=entry.bytes,
            checksum=header.checksum,
        )
        for field in Header.__struct_fields__:
            if getattr(header, field) != getattr(expected, field):
                raise self._damaged(entry, field)
        if digest.digest() != header.checksum:
            raise self._damaged(entry, "checksum")

    def _damaged(self, entry: Entry, why: str) -> ChecksumMismatch:
        return ChecksumMismatch(where=self.where, name=entry.slice_id, why=why)

    def lend(self, entry: Entry) -> memoryview:
        data = memoryview(bytearray(entry.bytes))
        self.load(entry, data)
        return data

    def remove(self, entry: Entry) -> None:
        # A store that broke off may have come either side of its rename.
        names = [_name(entry.slice_id)] if entry.place == _AT_NAME else [_tmp(entry), _name(entry.slice_id)]
        with self._speaking():
            for name in names:
                self._files.unlink(self._folder, name)

    def freed(self, entry: Entry) -> None:
        """The file is gone already."""

    def close(self) -> None:
        self._files.close(self._lock)
        self._files.close(self._folder)

    def take_in(self, shelf: Shelf) -> None:
        """Scan the folder: what is whole comes into the books, newest first as long as the budget lasts."""
        with self._speaking():
            whole = sorted(self._whole(), key=lambda header: (-header.generation, header.slice_id))
            kept = []
            bytes_left = shelf.bytes_max
            for header in whole:
                if self.footprint(header.length) <= bytes_left:
                    bytes_left -= self.footprint(header.length)
                    kept.append(header)
                else:
                    self._files.unlink(self._folder, _name(header.slice_id))
        for header in reversed(kept):
            entry = shelf.ledger.found(
                header.slice_id,
                header.length,
                footprint=self.footprint(header.length),
                generation=header.generation,
            )
            entry.place = _AT_NAME

    def _whole(self) -> Iterator[Header]:
        """The slices of this namespace that are whole by header and length; halves are removed."""
        for name in self._files.names(self._folder):
            if _HALF.fullmatch(name):
                self._files.unlink(self._folder, name)
            elif found := _WHOLE.fullmatch(name):
                header = self._header(name, found[1])
                if header is None:
                    self._files.unlink(self._folder, name)
                elif header.namespace == self._namespace and header.version == VERSION:
                    yield header

    def _header(self, name: str, slice_id: str) -> Header | None:
        """The header of a file that is as long as it says and bears its own name; None: it is damaged."""
        page = bytearray(HEADER_BYTES)
        try:
            with self._opened(name) as (fd, size):
                done = self._files.read(fd, page, 0)
            header = unpack(page[:done], where=self.where, name=slice_id)
        except ChecksumMismatch:
            return None
        except OSError as error:
            if error.errno not in _DAMAGED_FILE:
                raise
            return None
        return header if size == HEADER_BYTES + header.length and header.slice_id == slice_id else None


def _name(slice_id: SliceId) -> str:
    return f"{slice_id}.slice"


def _tmp(entry: Entry) -> str:
    return f"{entry.slice_id}.{entry.generation}.tmp"


def _said(error: OSError) -> str:
    return error.strerror or os.strerror(error.errno or 0)


def _mend(number: int) -> tuple[str, bool]:
    """What mends this error, and whether it lasts until somebody does."""
    match number:
        case errno.ENOSPC | errno.EDQUOT:
            return "free space on that disk, or lower ssd_bytes", False
        case errno.EROFS:
            return "mount that disk writable", True
        case errno.EACCES | errno.EPERM:
            return "let this user alone read and write that folder (chown, chmod 700)", True
        case errno.ENOENT | errno.ENOTDIR | errno.ESTALE | errno.ENODEV:
            return "bring that folder back, then start again", True
        case errno.EWOULDBLOCK:
            return "another process has that folder: give each engine its own", True
        case errno.EMFILE | errno.ENFILE:
            return "raise the limit of open files (ulimit -n)", False
        case errno.EIO:
            return "that disk fails: replace it", True
        case _:
            return "", False
