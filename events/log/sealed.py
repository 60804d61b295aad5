"""A compressed file whose every byte can be checked: one zstd frame, then its seal.

zstd's own checksum is of the content; bits that unpack to the same content (padding, the window's size) are not
covered. So a skippable frame follows, which other tools pass over, with the BLAKE2b-16 of all bytes before it.
"""

import io
from collections.abc import Iterator
from hashlib import blake2b
from operator import ne
from typing import IO, BinaryIO, cast

import zstandard

LEVEL = 3
CHUNK_BYTES = 1 << 18
HASH_BYTES = 16
_ZSTD_MAGIC = bytes.fromhex("28b52ffd")
_SEAL_HEAD = bytes.fromhex("502a4d18") + HASH_BYTES.to_bytes(4, "little")
_SEAL_BYTES = len(_SEAL_HEAD) + HASH_BYTES


class SealBroken(Exception):
    """The bytes of the file are not those that were written, or not all of them."""


class SealedWriter:
    """Compresses into a file that stays the caller's. `finish` ends the frame and seals it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._zstd = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj()
        self._hash = blake2b(digest_size=HASH_BYTES)

    def write(self, data: bytes) -> None:
        """Take more in."""
        self._store(self._zstd.compress(data))

    def flush(self) -> None:
        """Make what was written so far readable from the file."""
        self._store(self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        self._file.flush()

    def finish(self) -> None:
        """The last bytes; nothing may be written after it."""
        self._store(self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH))
        self._file.write(_SEAL_HEAD + self._hash.digest())
        self._file.flush()

    def _store(self, packed: bytes) -> None:
        self._hash.update(packed)
        self._file.write(packed)


def is_packed(head: bytes) -> bool:
    """Whether a file begins as a zstd frame does, one changed byte aside."""
    return len(head) >= len(_ZSTD_MAGIC) and sum(map(ne, head, _ZSTD_MAGIC)) <= 1


def unpacked(file: BinaryIO) -> Iterator[bytes]:
    """The content in pieces. SealBroken at the first piece that cannot be unpacked, or after the last one."""
    packed = _Unsealed(file)
    try:
        with zstandard.ZstdDecompressor().stream_reader(cast("IO[bytes]", packed), read_size=CHUNK_BYTES) as reader:
            yield from iter(lambda: reader.read(CHUNK_BYTES), b"")
    except zstandard.ZstdError as error:
        raise SealBroken(f"it cannot be unpacked: {error}") from error
    if not packed.holds():
        what = "the file is truncated or was changed: the seal at its end does not hold"
        raise SealBroken(f"{what} (packed by another program? unpack it to .jsonl, that is verified too)")


class _Unsealed(io.RawIOBase):
    """A file but for its seal: keeps the last bytes back if they are one, and hashes all before them."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self._kept, self._hash = file, b"", blake2b(digest_size=HASH_BYTES)

    def read(self, size: int = CHUNK_BYTES, /) -> bytes:
        have, at_end = self._kept, False
        while len(have) <= _SEAL_BYTES and not at_end:
            more = self._file.read(size)
            have, at_end = have + more, not more
        given, self._kept = have[:-_SEAL_BYTES], have[-_SEAL_BYTES:]
        if at_end and not self._kept.startswith(_SEAL_HEAD):
            given, self._kept = have, b""  # Broken off before it was sealed: all of it is content.
        self._hash.update(given)
        return given

    def holds(self) -> bool:
        """Whether every byte is the one that was written; reads to the end."""
        while self.read():
            pass
        return self._kept == _SEAL_HEAD + self._hash.digest()
