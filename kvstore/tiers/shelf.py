"""A tier made of two parts: the books (ledger.py), which are the same for every kind, and a medium, which is not.

A medium moves bytes and knows no budget, pin or reader; the shelf asks it only for what the books allow, so no call
of a medium for one entry ever overlaps with another, loads aside.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from events.base import SliceId
from events.slice import Tier
from kvstore.errors import ChecksumMismatch, NotResident, TierUnavailable
from kvstore.tiers.base import Buffer, TierStats, Writer
from kvstore.tiers.ledger import Entry, Ledger


class Medium(Protocol):
    """Where the bytes of a tier lie. Its errors are those of TierStore's methods that call it."""

    lends_in_place: bool

    def footprint(self, bytes_: int) -> int:
        """What so many bytes take. UnsupportedSchema."""
        ...

    def store(self, entry: Entry, data: memoryview) -> None:
        """Keep a copy of `data` as the bytes of `entry`: when this returns they are there, all of them."""
        ...

    def fill(self, entry: Entry, writer: Writer) -> None:
        """As `store`; `writer` writes `entry.bytes` bytes."""
        ...

    def load(self, entry: Entry, out: memoryview) -> None:
        """Copy the bytes of `entry` to `out`, which has as many. ChecksumMismatch or NotResident: they are not what was
        stored, or gone, and the slice is forgotten. TierUnavailable: not now."""
        ...

    def lend(self, entry: Entry) -> memoryview:
        """Its bytes; in place if `lends_in_place`. Raises as `load`."""
        ...

    def remove(self, entry: Entry) -> None:
        """Remove what there is of it, also of a store that broke off. Loads may still be under way. TierUnavailable: it
        cannot be removed now."""
        ...

    def freed(self, entry: Entry) -> None:
        """The entry is removed and nobody reads it any more. Short: it runs under the lock of the books."""
        ...

    def close(self) -> None:
        """The tier was closed and nobody uses it any more."""
        ...


class Shelf:
    """A TierStore over any medium."""

    def __init__(self, tier: Tier, medium: Medium, *, where: str, bytes_max: int) -> None:
        self._tier, self._medium = tier, medium
        self.ledger = Ledger(where, bytes_max=bytes_max, freed=medium.freed, idle=medium.close)
        self._litter: list[Entry] = []

    @property
    def tier(self) -> Tier:
        """See TierStore."""
        return self._tier

    @property
    def bytes_max(self) -> int:
        """See TierStore."""
        return self.ledger.bytes_max

    @property
    def bytes_used(self) -> int:
        """See TierStore."""
        return self.ledger.bytes_used

    def footprint(self, bytes_: int) -> int:
        """See TierStore."""
        return self._medium.footprint(bytes_)

    def put(self, slice_id: SliceId, data: Buffer) -> bool:
        """See TierStore."""
        source = memoryview(data).cast("B")
        with self._storing(slice_id, source.nbytes) as entry:
            if entry is not None:
                self._medium.store(entry, source)
        return entry is not None

    def fill(self, slice_id: SliceId, bytes_: int, writer: Writer) -> bool:
        """See TierStore."""
        with self._storing(slice_id, bytes_) as entry:
            if entry is not None:
                self._medium.fill(entry, writer)
        return entry is not None

    @contextmanager
    def _storing(self, slice_id: SliceId, bytes_: int) -> Iterator[Entry | None]:
        self._sweep()
        with self.ledger.storing(slice_id, bytes_, footprint=self._medium.footprint(bytes_)) as entry:
            try:
                yield entry
            except BaseException:
                if entry is not None and not self._removed(entry):
                    self.ledger.litter(entry)
                    self._litter.append(entry)
                raise

    def read_into(self, slice_id: SliceId, out: bytearray | memoryview) -> int:
        """See TierStore."""
        target = memoryview(out).cast("B")
        with self.ledger.reading(slice_id, bytes_max=target.nbytes) as entry:
            with self._burying(entry):
                self._medium.load(entry, target[: entry.bytes])
            return entry.bytes

    @property
    def lends_in_place(self) -> bool:
        """See TierStore."""
        return self._medium.lends_in_place

    @contextmanager
    def lend(self, slice_id: SliceId) -> Iterator[memoryview]:
        """See TierStore."""
        with self.ledger.reading(slice_id) as entry:
            with self._burying(entry):
                view = self._medium.lend(entry).toreadonly()
            yield view

    @contextmanager
    def _burying(self, entry: Entry) -> Iterator[None]:
        """What the medium finds damaged or gone is forgotten."""
        try:
            yield
        except (ChecksumMismatch, NotResident) as error:
            if not self._buried(entry, corrupt=isinstance(error, ChecksumMismatch)):
                # It was dropped meanwhile, and what stands under its name by now is another stay's: no damage.
                raise NotResident(where=self.ledger.where, name=entry.slice_id) from error
            raise

    def _buried(self, entry: Entry, *, corrupt: bool) -> bool:
        """What is damaged or gone leaves the books, and the medium as soon as that works; whether it was us."""
        if not self.ledger.condemn(entry, corrupt=corrupt):
            return False
        if self._removed(entry):
            self.ledger.buried(entry)
        else:
            self._litter.append(entry)
        return True

    def _removed(self, entry: Entry) -> bool:
        try:
            self._medium.remove(entry)
        except TierUnavailable as error:
            self.ledger.failed(error)
            return False
        return True

    def _sweep(self) -> None:
        """Remove what could not be removed when it should have been; it counted until now."""
        for _ in range(len(self._litter)):
            try:
                entry = self._litter.pop(0)
            except IndexError:
                return  # Another thread swept it.
            if self._removed(entry):
                self.ledger.buried(entry)
            else:
                self._litter.append(entry)

    def drop(self, slice_id: SliceId) -> None:
        """See TierStore."""
        with self.ledger.dropping(slice_id) as entry:
            self._medium.remove(entry)

    def pin(self, slice_id: SliceId) -> None:
        """See TierStore."""
        self.ledger.pin(slice_id)

    def unpin(self, slice_id: SliceId) -> None:
        """See TierStore."""
        self.ledger.unpin(slice_id)

    def pins(self, slice_id: SliceId) -> int:
        """See TierStore."""
        return self.ledger.pins(slice_id)

    def holds(self, slice_id: SliceId) -> bool:
        """See TierStore."""
        return self.ledger.holds(slice_id)

    def bytes_of(self, slice_id: SliceId) -> int:
        """See TierStore."""
        return self.ledger.bytes_of(slice_id)

    def inventory(self) -> tuple[tuple[SliceId, int], ...]:
        """See TierStore."""
        return self.ledger.inventory()

    def stats(self) -> TierStats:
        """See TierStore."""
        return self.ledger.stats()

    def close(self) -> None:
        """See TierStore."""
        self.ledger.close()
