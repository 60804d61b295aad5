"""The books of one tier: which slices are there, whole, who reads or pins them, and what the budget still has.

A slice's entry goes STORING -> WHOLE -> LEAVING -> gone, and only a WHOLE one is shown to anybody. The lock is held
for the bookkeeping alone, never while bytes move. Three promises follow: `bytes_used <= bytes_max` at every moment
(an entry counts from before its first byte is written until after its last reader left); a name has at most one entry;
an entry's memory is given back exactly once.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

from events.base import SliceId
from kvstore.errors import BudgetExceeded, DoubleFree, NotResident, Pinned, TierUnavailable, UnsupportedSchema
from kvstore.tiers.base import TierStats

_NAME = re.compile(r"[0-9a-z]{1,128}")
"""Fingerprints and hex keys; also what is safe as a file's name everywhere."""


class State(Enum):
    """Where a slice is in its life here."""

    STORING = "storing"
    WHOLE = "whole"
    LEAVING = "leaving"


class Entry:
    """One stay of one slice. `generation` is unique in the tier, and larger than that of every earlier stay; `place` is
    the medium's own number for where the bytes lie (None: nowhere yet)."""

    __slots__ = ("bytes", "footprint", "generation", "place", "readers", "slice_id", "state")

    def __init__(self, slice_id: SliceId, bytes_: int, *, footprint: int, generation: int) -> None:
        self.slice_id, self.bytes, self.footprint, self.generation = slice_id, bytes_, footprint, generation
        self.state, self.readers = State.STORING, 0
        self.place: int | None = None


def _nothing(_: Entry) -> None:
    """What most tiers do when an entry's memory is free: nothing."""


class Ledger:
    """Thread-safe. `freed` is called once for each entry whose memory is free again, `idle` once, when the tier was
    closed and nobody uses its memory any more; both under the lock, so they must be short and raise nothing."""

    def __init__(
        self,
        where: str,
        *,
        bytes_max: int,
        freed: Callable[[Entry], None] = _nothing,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self.where, self.bytes_max = where, bytes_max
        self._lock = threading.Lock()
        self._entries: dict[SliceId, Entry] = {}
        self._pins: dict[SliceId, int] = {}
        self._freed, self._idle = freed, idle
        self._bytes_used, self._generation, self._active, self._closed = 0, 0, 0, False
        self._hits = self._misses = self._stored = self._dropped = self._corrupt = self._lost = self._failures = 0
        self._bytes_read = self._bytes_written = 0
        self._trouble = ""

    @property
    def bytes_used(self) -> int:
        """The footprints of all entries, those on their way in or out included."""
        return self._bytes_used

    @contextmanager
    def storing(self, slice_id: SliceId, bytes_: int, *, footprint: int) -> Iterator[Entry | None]:
        """Reserve, and on leaving either show the slice as whole or, after an error, give everything back. None: it is
        there, or being stored or dropped by another thread."""
        entry = self._reserve(slice_id, bytes_, footprint=footprint)
        if entry is None:
            yield None
            return
        try:
            yield entry
        except BaseException as error:
            with self._lock:
                self._note(error)
                if entry.state is State.STORING:
                    self._end(entry)
                self._leave()
            raise
        with self._lock:
            entry.state = State.WHOLE
            self._stored += 1
            self._bytes_written += entry.bytes
            self._trouble = ""
            self._leave()

    def _reserve(self, slice_id: SliceId, bytes_: int, *, footprint: int) -> Entry | None:
        if not _NAME.fullmatch(slice_id):
            raise UnsupportedSchema(where=self.where, why="a slice's name is 1 to 128 of 0-9 a-z")
        if bytes_ < 1:
            raise UnsupportedSchema(where=self.where, why="a slice has at least one byte")
        with self._lock:
            self._check_open()
            if slice_id in self._entries:
                return None
            if footprint > self.bytes_max - self._bytes_used:
                free = self.bytes_max - self._bytes_used
                raise BudgetExceeded(where=self.where, asked=footprint, free=free, limit=self.bytes_max)
            self._active += 1
            self._generation += 1
            return self._add(slice_id, bytes_, footprint=footprint, generation=self._generation)

    def _add(self, slice_id: SliceId, bytes_: int, *, footprint: int, generation: int) -> Entry:
        entry = Entry(slice_id, bytes_, footprint=footprint, generation=generation)
        self._entries[slice_id] = entry
        self._bytes_used += footprint
        return entry

    def found(self, slice_id: SliceId, bytes_: int, *, footprint: int, generation: int) -> Entry:
        """Take in a slice that an earlier run left, whole; the caller knows that it fits. Later ones are newer."""
        with self._lock:
            assert footprint <= self.bytes_max - self._bytes_used, "what is found fits the budget"
            entry = self._add(slice_id, bytes_, footprint=footprint, generation=generation)
            entry.state = State.WHOLE
            self._generation = max(self._generation, generation)
            return entry

    @contextmanager
    def reading(self, slice_id: SliceId, *, bytes_max: int | None = None) -> Iterator[Entry]:
        """Hold on to a whole slice: its memory is not freed before the context ends. A read that ends without an error
        is a hit. NotResident; ValueError if it has more than `bytes_max` bytes."""
        with self._lock:
            self._check_open()
            entry = self._entries.get(slice_id)
            if entry is None or entry.state is not State.WHOLE:
                self._misses += 1
                raise NotResident(where=self.where, name=slice_id)
            if bytes_max is not None and entry.bytes > bytes_max:
                raise ValueError(f"{self.where}: {slice_id} has {entry.bytes} bytes, the buffer {bytes_max}")
            entry.readers += 1
            self._active += 1
        hit = False
        try:
            yield entry
            hit = True
        except TierUnavailable as error:
            self.failed(error)
            raise
        finally:
            with self._lock:
                self._hits += hit
                self._bytes_read += entry.bytes * hit
                entry.readers -= 1
                self._release(entry)
                self._leave()

    @contextmanager
    def dropping(self, slice_id: SliceId) -> Iterator[Entry]:
        """Show it to nobody any more; when the context ends it is gone, after an error it is back.

        Raises NotResident, Pinned.
        """
        with self._lock:
            self._check_open()
            entry = self._entries.get(slice_id)
            if entry is None or entry.state is not State.WHOLE:
                raise NotResident(where=self.where, name=slice_id)
            if slice_id in self._pins:
                raise Pinned(where=self.where, name=slice_id, pins=self._pins[slice_id])
            entry.state = State.LEAVING
            self._active += 1
        try:
            yield entry
        except BaseException as error:
            with self._lock:
                entry.state = State.WHOLE
                self._note(error)
                self._leave()
            raise
        with self._lock:
            self._dropped += 1
            self._end(entry)
            self._leave()

    def condemn(self, entry: Entry, *, corrupt: bool) -> bool:
        """A reader found it damaged (or gone): nobody else shall see it. True for the first to say so, who must then
        remove what is left of it and call `buried`; until then it counts."""
        with self._lock:
            if entry.state is not State.WHOLE:
                return False
            entry.state = State.LEAVING
            self._corrupt += corrupt
            self._lost += not corrupt
            return True

    def litter(self, entry: Entry) -> None:
        """Inside `storing`: what was written cannot be removed now, so it counts until `buried`."""
        with self._lock:
            entry.state = State.LEAVING

    def buried(self, entry: Entry) -> None:
        """Nothing is left of a condemned entry, or of litter."""
        with self._lock:
            self._end(entry)

    def _end(self, entry: Entry) -> None:
        assert self._entries.get(entry.slice_id) is entry, "an entry leaves the books once"
        del self._entries[entry.slice_id]
        self._release(entry)

    def _release(self, entry: Entry) -> None:
        """Give the memory back when the entry left the books and its last reader left it."""
        if entry.readers == 0 and self._entries.get(entry.slice_id) is not entry:
            self._bytes_used -= entry.footprint
            self._freed(entry)

    def _leave(self) -> None:
        self._active -= 1
        if self._closed and self._active == 0:
            self._idle()

    def _note(self, error: BaseException) -> None:
        if isinstance(error, TierUnavailable):
            self._failures += 1
            self._trouble = str(error)

    def failed(self, error: TierUnavailable) -> None:
        """Count a refusal of the medium."""
        with self._lock:
            self._note(error)

    def pin(self, slice_id: SliceId) -> None:
        """One pin more. NotResident."""
        with self._lock:
            self._check_open()
            entry = self._entries.get(slice_id)
            if entry is None or entry.state is not State.WHOLE:
                raise NotResident(where=self.where, name=slice_id)
            self._pins[slice_id] = self._pins.get(slice_id, 0) + 1

    def unpin(self, slice_id: SliceId) -> None:
        """One pin less. DoubleFree."""
        with self._lock:
            pins = self._pins.pop(slice_id, 0)
            if pins == 0:
                raise DoubleFree(where=self.where, name=f"a pin of {slice_id}")
            if pins > 1:
                self._pins[slice_id] = pins - 1

    def pins(self, slice_id: SliceId) -> int:
        """How often it is pinned."""
        return self._pins.get(slice_id, 0)

    def holds(self, slice_id: SliceId) -> bool:
        """Whether it is there, whole."""
        with self._lock:
            entry = self._entries.get(slice_id)
            return entry is not None and entry.state is State.WHOLE

    def bytes_of(self, slice_id: SliceId) -> int:
        """Its length. NotResident."""
        with self._lock:
            entry = self._entries.get(slice_id)
            if entry is None or entry.state is not State.WHOLE:
                raise NotResident(where=self.where, name=slice_id)
            return entry.bytes

    def inventory(self) -> tuple[tuple[SliceId, int], ...]:
        """What is there, whole, oldest first."""
        with self._lock:
            return tuple((name, entry.bytes) for name, entry in self._entries.items() if entry.state is State.WHOLE)

    def stats(self) -> TierStats:
        """Amounts since it was opened."""
        with self._lock:
            return TierStats(
                slices=sum(entry.state is State.WHOLE for entry in self._entries.values()),
                bytes_used=self._bytes_used,
                hits=self._hits,
                misses=self._misses,
                stored=self._stored,
                dropped=self._dropped,
                corrupt=self._corrupt,
                lost=self._lost,
                failures=self._failures,
                bytes_read=self._bytes_read,
                bytes_written=self._bytes_written,
                trouble=self._trouble,
            )

    def close(self) -> None:
        """No more calls; `idle` follows as soon as nobody is in the middle of one. Twice is fine."""
        with self._lock:
            if not self._closed:
                self._closed = True
                if self._active == 0:
                    self._idle()

    def _check_open(self) -> None:
        if self._closed:
            raise TierUnavailable(where=self.where, why="it was closed", lasting=True)
