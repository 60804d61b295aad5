"""The DRAM tier: one anonymous mapping, cut into frames of one slice each; pinned where an accelerator wants it.

One mapping because pinning and huge pages pay by the mapping; frames of one size because slices of one model have one
size, so there is nothing to fragment and a free frame is found in one step. A mapping larger than what the machine has
left is refused at the start: it would be killed later, in the middle of a store.
"""

import ctypes
import mmap
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from events.slice import Tier
from kvstore.errors import TierUnavailable, UnsupportedSchema
from kvstore.tiers.base import Writer
from kvstore.tiers.ledger import Entry
from kvstore.tiers.shelf import Shelf

Pinner = Callable[[int, int], Callable[[], None]]
"""Pins that many bytes from that address for direct transfers; gives back what undoes it."""

_MEMINFO = Path("/proc/meminfo")
_WHERE = Tier.DRAM.value


def dram_tier(*, bytes_max: int, slice_bytes: int, pinner: Pinner | None = None) -> Shelf:
    """A tier of `bytes_max // slice_bytes` frames, each for one slice of at most `slice_bytes`.

    `pinner` (kvstore/tiers/hbm.py has CUDA's) makes the copies to and from a device direct. Raises TierUnavailable if
    the machine has not that much memory left, or it cannot be pinned.
    """
    frames = Frames(bytes_max // slice_bytes, slice_bytes, where=_WHERE)
    return Shelf(Tier.DRAM, _Mapped(frames, pinner), where=_WHERE, bytes_max=frames.count * slice_bytes)


class Frames:
    """Which of `count` equal frames are free. `take` and `give` may come from any thread; the books of the tier see to
    it that a frame is free when one is taken."""

    def __init__(self, count: int, slice_bytes: int, *, where: str) -> None:
        if count < 1:
            raise UnsupportedSchema(where=where, why=f"the budget has no room for one slice of {slice_bytes} bytes")
        self.count, self.slice_bytes, self._where = count, slice_bytes, where
        self._lock = threading.Lock()
        self._free = list(range(count - 1, -1, -1))
        self._taken = bytearray(count)

    def footprint(self, bytes_: int) -> int:
        """A frame, whatever lies in it. UnsupportedSchema if it does not fit in one."""
        if bytes_ > self.slice_bytes:
            why = f"a slice of {bytes_} bytes does not fit in frames of {self.slice_bytes}"
            raise UnsupportedSchema(where=self._where, why=why)
        return self.slice_bytes

    def take(self) -> int:
        """The frame given back last: its pages are warm."""
        with self._lock:
            frame = self._free.pop()
            self._taken[frame] = True
            return frame

    def give(self, frame: int) -> None:
        """Free again."""
        with self._lock:
            assert self._taken[frame], "a frame is given back once"
            self._taken[frame] = False
            self._free.append(frame)


class _Mapped:
    lends_in_place = True

    def __init__(self, frames: Frames, pinner: Pinner | None) -> None:
        self._frames = frames
        size = frames.count * frames.slice_bytes
        self._map = _mapping(size)
        self._memory = memoryview(self._map)
        self._unpin = _pinned(self._memory, pinner) if pinner is not None else None

    def footprint(self, bytes_: int) -> int:
        return self._frames.footprint(bytes_)

    def _frame(self, entry: Entry) -> memoryview:
        assert entry.place is not None, "it was stored"
        begin = entry.place * self._frames.slice_bytes
        return self._memory[begin : begin + entry.bytes]

    def store(self, entry: Entry, data: memoryview) -> None:
        entry.place = self._frames.take()
        self._frame(entry)[:] = data

    def fill(self, entry: Entry, writer: Writer) -> None:
        entry.place = self._frames.take()
        writer(self._frame(entry))

    def load(self, entry: Entry, out: memoryview) -> None:
        out[:] = self._frame(entry)

    def lend(self, entry: Entry) -> memoryview:
        return self._frame(entry)

    def remove(self, entry: Entry) -> None:
        """Nothing yet: readers may still be at it."""

    def freed(self, entry: Entry) -> None:
        if entry.place is not None:
            self._frames.give(entry.place)

    def close(self) -> None:
        if self._unpin is not None:
            self._unpin()
        self._memory.release()
        with suppress(BufferError):  # A caller kept a view that was lent: the memory goes with that.
            self._map.close()


def _mapping(size: int) -> mmap.mmap:
    left = _available_bytes()
    if left is not None and size > left:
        why = f"{size} bytes asked, the machine has {left} left"
        raise TierUnavailable(where=_WHERE, why=why, lasting=True, mend="lower dram_bytes")
    try:
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise TierUnavailable(where=_WHERE, why=str(error), lasting=True, mend="lower dram_bytes") from error
    with suppress(OSError):  # A kernel without huge pages serves small ones.
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


def _available_bytes() -> int | None:
    """What the machine can still give without swapping; None where it does not say."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) * 1024


def _pinned(memory: memoryview, pinner: Pinner) -> Callable[[], None]:
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return pinner(address, memory.nbytes)
