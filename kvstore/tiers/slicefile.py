"""The file of one slice: a header of one page, then its bytes. Nothing in it is executed or unpickled.

    magic, version, namespace, name of the slice, generation, length, checksum of the bytes; zeros; checksum of all that

The namespace digest stands for all that the bytes mean (model, dtype, layout, schema): slices of another one never
match. The generation tells one stay of a slice from another of the same name. Both checksums are BLAKE3-16: they notice
damage, and hashing 32 MiB takes a fraction of reading it.
"""

import struct
from collections.abc import Mapping

import msgspec
from blake3 import blake3

from events.base import SliceId
from kvstore.errors import ChecksumMismatch

HEADER_BYTES = 4096
"""A page: the bytes of the slice begin aligned."""
CHECKSUM_BYTES = 16
NAMESPACE_BYTES = 16
VERSION = 1
_MAGIC = b"TGSLICE\n"
_FIELDS = struct.Struct(f">8sH{NAMESPACE_BYTES}s128sQQ{CHECKSUM_BYTES}s")
_SEALED_BYTES = HEADER_BYTES - CHECKSUM_BYTES


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says of itself."""

    namespace: bytes
    slice_id: SliceId
    generation: int
    length: int
    checksum: bytes
    version: int = VERSION


def namespace_digest(
    *, model: str, dtype: str, layout: str, schema: Mapping[str, str | int], **more: str | int
) -> bytes:
    """The digest of all that decides whether one engine can read what another one wrote."""
    facts = {"model": model, "dtype": dtype, "layout": layout, "schema": dict(schema), **more}
    return blake3(msgspec.json.encode(facts, order="deterministic")).digest(length=NAMESPACE_BYTES)


def checksum(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3-16 of the bytes."""
    return blake3(data).digest(length=CHECKSUM_BYTES)


class Checksum:
    """BLAKE3-16 of bytes that come one piece after the other."""

    def __init__(self) -> None:
        self._hash = blake3()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """The next piece."""
        self._hash.update(data)

    def digest(self) -> bytes:
        """Of all pieces so far."""
        return self._hash.digest(length=CHECKSUM_BYTES)


def pack(header: Header) -> bytes:
    """The first page of the file."""
    name = header.slice_id.encode("ascii")
    fields = _FIELDS.pack(
        _MAGIC, header.version, header.namespace, name, header.generation, header.length, header.checksum
    )
    sealed = fields.ljust(_SEALED_BYTES, b"\0")
    return sealed + checksum(sealed)


def unpack(page: bytes | bytearray, *, where: str, name: str) -> Header:
    """What `pack` was given. ChecksumMismatch if these are not its bytes."""
    if len(page) != HEADER_BYTES:
        raise ChecksumMismatch(where=where, name=name, why="length")
    if not page.startswith(_MAGIC):
        raise ChecksumMismatch(where=where, name=name, why="magic")
    if checksum(page[:_SEALED_BYTES]) != page[_SEALED_BYTES:]:
        raise ChecksumMismatch(where=where, name=name, why="header")
    _, version, namespace, slice_id, generation, length, digest = _FIELDS.unpack_from(page)
    return Header(
        version=version,
        namespace=namespace,
        slice_id=SliceId(slice_id.rstrip(b"\0").decode("ascii")),
        generation=generation,
        length=length,
        checksum=digest,
    )
