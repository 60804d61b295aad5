"""Which of the things kept in one place goes first: lru and fifo by themselves, or any ranking that is passed in.

A ranking gives a number for what is known of a thing's use; the smallest goes first, equals in the order in which they
were ranked. It is asked when the thing is kept, used, or let go, and not in between (so that an eviction costs
O(log n)): it must not depend on anything that changes meanwhile. The memory knows no policy: services pass in those of
`policies.memory.kinds`.

Example (lru, sizes 4 each): a, b, c are kept, a is used, b is pinned. evict(5): c and a go. evict(1): NoVictim, 0 bytes
may be evicted.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import Final

from kvstore.errors import DoubleFree, NotResident, NoVictim, Pinned

STALE_MIN: Final = 64
"""Entries that may be out of date before the heap is made anew; then, as many as there are current ones."""


class EvictionKind(StrEnum):
    """The rankings that come with the house's memory."""

    LRU = "lru"
    FIFO = "fifo"


@dataclass(slots=True)
class Use:
    """What is known of a thing: `stored` and `used` are numbers that grow with every event (when it came, when it was
    used last), `uses` counts its coming as one."""

    name: str
    size: int
    stored: int
    used: int
    uses: int = 1
    pins: int = 0
    ranked: int = 0


Rank = Callable[[Use], int]
Evicted = Callable[[str, int], None]
"""Told the name and size of what was evicted."""

RANKS: Final[dict[EvictionKind, Rank]] = {
    EvictionKind.LRU: lambda use: use.used,
    EvictionKind.FIFO: lambda use: use.stored,
}


class EvictionManager:
    """Keeps the order. Not thread-safe. An error changes nothing."""

    def __init__(
        self, rank: EvictionKind | Rank = EvictionKind.LRU, *, where: str = "eviction", on_evict: Evicted | None = None
    ) -> None:
        self._rank = RANKS[rank] if isinstance(rank, EvictionKind) else rank
        self._where, self._on_evict = where, on_evict
        self._kept: dict[str, Use] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._events = 0
        self._size = self._pinned_size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    @property
    def size(self) -> int:
        """Sizes of all that is kept, together."""
        return self._size

    @property
    def evictable(self) -> int:
        """Sizes of what is not pinned."""
        return self._size - self._pinned_size

    def add(self, name: str, size: int) -> None:
        """It is kept from now on."""
        assert name not in self._kept, "a thing is kept once"
        assert size >= 0, "a size is an amount"
        now = self._tick()
        self._kept[name] = Use(name=name, size=size, stored=now, used=now)
        self._size += size
        self._put(self._kept[name])

    def touch(self, name: str) -> None:
        """It was used. Raises NotResident."""
        use = self._use(name)
        use.used = self._tick()
        use.uses += 1
        if not use.pins:
            self._put(use)

    def remove(self, name: str) -> int:
        """It went, not by eviction; its size. Raises NotResident, Pinned."""
        use = self._use(name)
        if use.pins:
            raise Pinned(where=self._where, name=name, pins=use.pins)
        return self._drop(use)

    def pin(self, name: str) -> None:
        """It may not go until it is unpinned as often. Raises NotResident."""
        use = self._use(name)
        use.pins += 1
        if use.pins == 1:
            self._pinned_size += use.size

    def unpin(self, name: str) -> None:
        """One pin less. Raises NotResident, DoubleFree when it has none."""
        use = self._use(name)
        if not use.pins:
            raise DoubleFree(where=self._where, name=f"a pin of {name}")
        use.pins -= 1
        if not use.pins:
            self._pinned_size -= use.size
            self._put(use)

    def evict(self, size: int, *, keep: Collection[str] = ()) -> list[str]:
        """Take out what goes first until `size` is free, but nothing of `keep`; their names, in order. Each is told to
        `on_evict` when all are out. Raises NoVictim when it is not enough: then nothing goes."""
        keep = frozenset(keep)
        kept_back = sum(use.size for name in keep if (use := self._kept.get(name)) and not use.pins)
        if size > self.evictable - kept_back:
            raise NoVictim(where=self._where, asked=size, evictable=self.evictable - kept_back)
        gone: list[Use] = []
        spared: list[Use] = []
        freed = 0
        while freed < size:
            use = self._first()
            if use.name in keep:
                spared.append(use)
                continue
            freed += self._drop(use)
            gone.append(use)
        for use in spared:
            heappush(self._heap, (self._rank(use), use.ranked, use.name))
        if self._on_evict is not None:
            for use in gone:
                self._on_evict(use.name, use.size)
        return [use.name for use in gone]

    def _tick(self) -> int:
        self._events += 1
        return self._events

    def _use(self, name: str) -> Use:
        use = self._kept.get(name)
        if use is None:
            raise NotResident(where=self._where, name=name)
        return use

    def _put(self, use: Use) -> None:
        """Rank it anew; an entry from before is out of date now."""
        use.ranked = self._tick()
        heappush(self._heap, (self._rank(use), use.ranked, use.name))
        if len(self._heap) > 2 * len(self._kept) + STALE_MIN:
            self._heap = [entry for entry in self._heap if self._current(entry)]
            heapify(self._heap)

    def _current(self, entry: tuple[int, int, str]) -> bool:
        use = self._kept.get(entry[2])
        return use is not None and use.ranked == entry[1] and not use.pins

    def _first(self) -> Use:
        """The first that may go, taken off the heap: there is one, since sizes said so."""
        while True:
            entry = heappop(self._heap)
            if self._current(entry):
                return self._kept[entry[2]]

    def _drop(self, use: Use) -> int:
        del self._kept[use.name]
        self._size -= use.size
        return use.size
