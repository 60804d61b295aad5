"""What a tier promises, whichever kind it is: a slice goes in whole and comes out whole, or not at all.

A tier keeps bytes under the names of slices within a budget. It decides nothing: what leaves when it is full is the
caller's choice (`BudgetExceeded` says so). All calls block until done and may come from any thread; none waits for
another caller, so none hangs on one. Every refusal is a typed error of kvstore/errors.py and leaves the tier as it was.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from events.base import SliceId
from events.slice import Tier

Buffer = bytes | bytearray | memoryview
"""What bytes are taken from. Others (arrays, tensors) come as `memoryview(...)` of theirs."""
Writer = Callable[[memoryview], object]
"""Writes every byte of the memory it is given; what it raises ends the store, and nothing is kept."""


class TierStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a tier did since it was opened. A hit is a slice read whole; `corrupt` were refused by their checksum,
    `lost` vanished beneath it (neither was served), `failures` are calls that the medium refused.

    `trouble` is what the last failure said, with its mend; empty again after the next store.
    """

    slices: int
    bytes_used: int
    hits: int = 0
    misses: int = 0
    stored: int = 0
    dropped: int = 0
    corrupt: int = 0
    lost: int = 0
    failures: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    trouble: str = ""


class TierStore(Protocol):
    """One tier of one engine. `bytes_used` never exceeds `bytes_max`, not even while a store is under way."""

    @property
    def tier(self) -> Tier:
        """Which tier it is."""
        ...

    @property
    def bytes_max(self) -> int:
        """The budget."""
        ...

    @property
    def bytes_used(self) -> int:
        """The part of the budget in use: the footprints of what is there, on its way in, or still being read."""
        ...

    def footprint(self, bytes_: int) -> int:
        """What a slice of that many bytes takes of the budget. UnsupportedSchema if it can never be kept here."""
        ...

    def put(self, slice_id: SliceId, data: Buffer) -> bool:
        """Keep a copy of `data`. True: this call stored it, whole. False: nothing was done, since it is there, or
        another thread is storing or dropping it right now (ask `holds`): one name always means the same content.

        Raises BudgetExceeded (drop something first), UnsupportedSchema (size or name), TierUnavailable.
        """
        ...

    def fill(self, slice_id: SliceId, bytes_: int, writer: Writer) -> bool:
        """As `put`, but `writer` puts the bytes straight where they will lie (or are sent from)."""
        ...

    def read_into(self, slice_id: SliceId, out: bytearray | memoryview) -> int:
        """Copy the slice to the beginning of `out`; its length in bytes. On any error `out` may have been overwritten
        and must not be used.

        Raises NotResident, ChecksumMismatch (the slice is forgotten with it), TierUnavailable; ValueError if `out` is
        too small.
        """
        ...

    def drop(self, slice_id: SliceId) -> None:
        """Let go of it. Who reads it now reads on; its bytes are free after the last of them. Raises NotResident
        (there is nothing to drop: a second drop says so), Pinned, TierUnavailable (it is still there then)."""
        ...

    def pin(self, slice_id: SliceId) -> None:
        """Refuse to drop it until unpinned as often. Raises NotResident."""
        ...

    def unpin(self, slice_id: SliceId) -> None:
        """Take one pin back; also of a slice that was lost meanwhile. DoubleFree if it has none."""
        ...

    def pins(self, slice_id: SliceId) -> int:
        """How often it is pinned now."""
        ...

    def holds(self, slice_id: SliceId) -> bool:
        """Whether it is there, whole, as far as the tier knows (a file can vanish beneath it)."""
        ...

    def bytes_of(self, slice_id: SliceId) -> int:
        """The length of the slice in bytes. NotResident."""
        ...

    def inventory(self) -> tuple[tuple[SliceId, int], ...]:
        """What is there, whole, oldest first: (slice, its length in bytes)."""
        ...

    def stats(self) -> TierStats:
        """Amounts since it was opened."""
        ...

    @property
    def lends_in_place(self) -> bool:
        """Whether `lend` shows the slice where it lies (memory, DRAM). Else it copies it first."""
        ...

    def lend(self, slice_id: SliceId) -> AbstractContextManager[memoryview]:
        """The slice, read-only, while the context lasts; a drop meanwhile frees nothing. Raises as `read_into`."""
        ...

    def close(self) -> None:
        """Let go of memory and files; what lies on disk stays. Calls after it raise TierUnavailable. Twice is fine."""
        ...
