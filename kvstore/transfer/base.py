"""What a transport promises: a slice arrives whole under its name, or not at all, within the limits of its attempt.

A `TransferPlan` says which slices and within which limits; `carry` (carry.py) works through it with any
TransportEngine; the `TransferReport` says what became of it, in the words of the log (`transfer_finished`).
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Protocol

import msgspec

from events.base import NS_PER_MS, NS_PER_S, SliceId
from events.slice import TransferEnd
from kvstore.errors import KVError
from kvstore.tiers.slicefile import checksum
from kvstore.transfer.limits import Cancel, Clock, Link

CHUNK_BYTES = 1 << 20
CHUNK_BYTES_MAX = 1 << 22


class TransferFault(StrEnum):
    """Why a try, or a transfer, failed."""

    TIMEOUT = "timeout"
    TOO_LATE = "too_late"
    CANCELLED = "cancelled"
    DAMAGED = "damaged"
    NOT_RESIDENT = "not_resident"
    NO_ROOM = "no_room"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"
    PEER_GONE = "peer_gone"


AGAIN = frozenset({TransferFault.TIMEOUT, TransferFault.DAMAGED, TransferFault.UNAVAILABLE, TransferFault.PEER_GONE})
"""What another try can mend; the rest would fail again."""


class TransferFailed(KVError):
    """One try of one slice failed; the target has nothing of it."""

    def __init__(self, *, where: str, name: str, fault: TransferFault, why: str = "") -> None:
        super().__init__(where=where)
        self.name, self.fault, self.why = name, fault, why

    def __str__(self) -> str:
        return f"{self.where}: {self.name} was not moved: {self.fault}" + (f" ({self.why})" if self.why else "")


class KVChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a slice on its way: piece `index` of `count`, whose bytes go to `offset`."""

    slice_id: SliceId
    index: int
    count: int
    offset: int
    slice_bytes: int
    data: memoryview
    checksum: bytes = b""


def chunks(slice_id: SliceId, data: memoryview, *, chunk_bytes: int, summed: bool = True) -> Iterator[KVChunk]:
    """The pieces of a slice, first to last; with checksums unless the link has its own."""
    count = -(-data.nbytes // chunk_bytes)
    for index in range(count):
        offset = index * chunk_bytes
        piece = data[offset : offset + chunk_bytes]
        yield KVChunk(
            slice_id=slice_id,
            index=index,
            count=count,
            offset=offset,
            slice_bytes=data.nbytes,
            data=piece,
            checksum=checksum(piece) if summed else b"",
        )


class Assembly:
    """Puts the pieces of one slice into `memory`, in order, each once. `complete` after the last."""

    def __init__(self, slice_id: SliceId, memory: memoryview, *, where: str) -> None:
        self._slice_id, self._memory, self._where = slice_id, memory, where
        self._index = self._bytes = 0

    @property
    def complete(self) -> bool:
        """Whether every byte is there."""
        return self._bytes == self._memory.nbytes

    def take(self, chunk: KVChunk) -> None:
        """Put it in its place. TransferFailed (damaged) if it is not the next piece of this slice, or not its bytes."""
        size = chunk.data.nbytes
        expected = (self._slice_id, self._index, self._bytes, self._memory.nbytes)
        if (chunk.slice_id, chunk.index, chunk.offset, chunk.slice_bytes) != expected:
            raise self._damaged(f"piece {chunk.index} came for piece {self._index}")
        if not 0 < size <= self._memory.nbytes - self._bytes:
            raise self._damaged(f"piece {chunk.index} has {size} bytes")
        if chunk.checksum and checksum(chunk.data) != chunk.checksum:
            raise self._damaged(f"piece {chunk.index} has another checksum")
        self._memory[self._bytes : self._bytes + size] = chunk.data
        self._index, self._bytes = self._index + 1, self._bytes + size

    def _damaged(self, why: str) -> TransferFailed:
        return TransferFailed(where=self._where, name=self._slice_id, fault=TransferFault.DAMAGED, why=why)


class Attempt:
    """One try of one slice: until when, over which link, and whether it was cancelled."""

    def __init__(self, slice_id: SliceId, *, deadline_ns: int, clock: Clock, cancel: Cancel, link: Link) -> None:
        self.slice_id, self.deadline_ns, self.cancel = slice_id, deadline_ns, cancel
        self._clock, self._link = clock, link

    def left_ns(self) -> int:
        """What is left of it. TransferFailed: it was cancelled, or nothing is left."""
        left = self.deadline_ns - self._clock.now_ns()
        if self.cancel.is_set():
            raise self.failed(TransferFault.CANCELLED)
        if left <= 0:
            raise self.failed(TransferFault.TIMEOUT)
        return left

    def pace(self, bytes_: int) -> None:
        """Wait until the link lets so many bytes through. TransferFailed as `left_ns`, and at once if it would be in
        vain."""
        left, wait = self.left_ns(), self._link.take(bytes_)
        if wait >= left:
            self._link.give_back(bytes_)
            raise self.failed(TransferFault.TIMEOUT, f"the link is taken for {wait} ns")
        if wait > 0:
            self._clock.wait(wait, self.cancel)
            self.left_ns()

    def failed(self, fault: TransferFault, why: str = "") -> TransferFailed:
        """The error to raise."""
        return TransferFailed(where="transfer", name=self.slice_id, fault=fault, why=why)


class TransportEngine(Protocol):
    """One way from one tier to another. Thread-safe."""

    def move(self, attempt: Attempt) -> int:
        """Have the target hold `attempt.slice_id`, whole; the bytes that went over the link (0: it was there).

        Raises TransferFailed, and nothing else but our own mistakes; the target has nothing of the slice then.
        """
        ...

    def close(self) -> None:
        """Let go of connections. Twice is fine."""
        ...


class TransferPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Which slices, in which order, and what they may cost.

    `give_up_ns` (limits.give_up_ns) has one entry a slice, or is empty: no slice is waited for longer than that after
    the start. `in_order`: a slice is of no use without those before it, so the first loss ends the transfer.
    """

    order: str
    slices: tuple[SliceId, ...]
    give_up_ns: tuple[int, ...] = ()
    in_order: bool = True
    timeout_ns: int = 10 * NS_PER_S
    """Of one try of one slice."""
    tries_max: int = 5
    """Of one slice. With 15 % of tries failing, one slice in 13,000 fails five times."""
    backoff_ns: int = 5 * NS_PER_MS
    """Before the second try; doubled before each further one."""


class TransferReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a plan. `bytes_moved` includes what failed tries moved in vain as far as they told; `tries` is the
    most that one slice took; of `first_tries`, `first_tries_failed` failed whatever came of them later."""

    order: str
    end: TransferEnd
    slices_done: int
    slices_failed: int = 0
    bytes_moved: int = 0
    took_ns: int = 0
    tries: int = 0
    first_tries: int = 0
    first_tries_failed: int = 0
    fault: TransferFault | None = None
    why: str = ""
