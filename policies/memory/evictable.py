"""Slices that may be evicted, in order: those that nobody protects, then hot ones, then those that are kept.

A slice is put in when nobody uses it and none is cached under it (children go before their parents); it is dropped
when it is used again. Each costs O(log n).
"""

from collections.abc import Iterator
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")

STALE_MAX = 1_024
"""Places of slices that were dropped stay in the heap until they are half of it, and so many."""


class Shield(IntEnum):
    """What stands before a slice: nothing; it is hot; it is pinned or a waiting request begins with it."""

    NONE = 0
    HOT = 1
    KEPT = 2


class Evictable(Generic[T]):
    """Slices by (shield, rank), the first put in first among equals."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, T]] = []
        self._place: dict[T, tuple[int, int, int, T]] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._place)

    def __iter__(self) -> Iterator[T]:
        """In the order in which they were put in."""
        return iter(self._place)

    def __contains__(self, slice_: T) -> bool:
        return slice_ in self._place

    def put(self, slice_: T, shield: Shield, rank: int) -> None:
        """It may be evicted from now on."""
        assert slice_ not in self._place, "a slice is put in once"
        self._turn += 1
        self._stand(slice_, (shield, rank, self._turn, slice_))

    def put_at(self, slice_: T, shield: Shield, rank: int, turn: int) -> None:
        """The same for an owner who counts turns among equals itself; it may stand elsewhere until now."""
        place = (shield, rank, turn, slice_)
        if self._place.get(slice_) != place:
            self._stand(slice_, place)

    def drop(self, slice_: T) -> None:
        """It may not, any more; nothing happens if it could not."""
        self._place.pop(slice_, None)

    def pop(self) -> T:
        """The one to evict now. IndexError when there is none."""
        while True:
            place = heappop(self._heap)
            slice_ = place[3]
            if self._place.get(slice_) is place:
                del self._place[slice_]
                return slice_

    def _stand(self, slice_: T, place: tuple[int, int, int, T]) -> None:
        self._place[slice_] = place
        heappush(self._heap, place)
        if len(self._heap) > 2 * len(self._place) + STALE_MAX:
            self._heap = [entry for entry in self._heap if self._place.get(entry[3]) is entry]
            heapify(self._heap)
