"""Which prefixes are cached: a tree of slices that is asked for the longest one in a few dictionary look-ups.

A slice's name covers every token before it (`kvstore.fingerprint`), and a slice leaves after those that stand on it
(children before parents). So whoever is there has all its ancestors there, and the longest cached prefix is found by
bisection: an 8K prompt in at most seven probes, whatever the number of slices.

Eviction takes leaves: the one used longest ago (lru), or cached longest ago (fifo). To use or to cache a slice is to do
so with its ancestors, but only the last one is stamped: when a slice goes, its parent takes over its stamp where that
is newer. The queue of leaves is a heap in which a stamp may be too old; that is put right when the entry comes up, so
a look-up never touches the heap.

Everything about a slice is in columns, by number, not in objects: at a million slices about 200 bytes each (name 96,
its place in the dictionary 31, its number 32, columns 41), and 40 more for each leaf's entry in the heap.

Example: 1-2-3 and 1-2-4 are cached, at most 4. 5 comes: 3 was used longest ago and goes, though 1 is older: 4 needs it.

Sources: the tree of prefixes is SGLang's RadixAttention (Zheng, NeurIPS 2024), whose eviction takes leaves by lru, too;
bisection over chained names is our own.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from heapq import heappop, heappush, heappushpop
from typing import Final, Generic, NamedTuple, TypeVar

from events.base import SliceId
from kvstore.errors import DoubleFree, NotResident, Pinned
from kvstore.fingerprint import SLICE_TOKENS, fingerprints

V = TypeVar("V")

WHERE: Final = "prefix cache"
CACHED_MAX: Final = (1 << 31) - 1
"""Slices are numbered in int32 columns; 0 is the root, where every prompt begins."""
_ROOT: Final = 0
_NUMBER_BITS: Final = 32
_NUMBER_MASK: Final = (1 << _NUMBER_BITS) - 1
_GROW_MIN: Final = 1_024


class Inserted(NamedTuple, Generic[V]):
    """`known` slices were there before, `added` came, `evicted` (with what was kept for them) had to go."""

    known: int
    added: int
    evicted: list[tuple[SliceId, V]]


class PrefixCache(Generic[V]):
    """At most `max_cached_blocks` slices of `block_size` tokens, each with a value. Not thread-safe.

    Slices are always given as a prompt's, first to last. `enable_lru` off means fifo.
    """

    def __init__(self, *, max_cached_blocks: int, block_size: int = SLICE_TOKENS, enable_lru: bool = True) -> None:
        assert 0 < max_cached_blocks < CACHED_MAX, "a cache holds something, and less than fits an int32"
        self.max_cached_blocks, self.block_size, self._lru = max_cached_blocks, block_size, enable_lru
        self._lookups = self._asked = self._hit = self._inserted = self._evicted = self._invalidated = 0
        self._begin()

    def _begin(self) -> None:
        """Nothing is cached."""
        self._numbers: dict[SliceId, int] = {}
        # Columns; a free number has no name, value, child or siblings. `_queued` says that the heap knows the number.
        self._keys: list[SliceId | None] = [None]
        self._values: list[V | None] = [None]
        self._parents, self._children = array("i", [0]), array("i", [0])
        self._nexts, self._befores = array("i", [0]), array("i", [0])
        self._stamps = array("q", [0])
        self._queued = bytearray(1)
        self._free: list[int] = []
        self._leaves: list[int] = []  # A heap of stamp << 32 | number.
        self._held: Counter[int] = Counter()
        self._clock = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, slice_id: SliceId) -> bool:
        return slice_id in self._numbers

    def compute_block_hashes(self, tokens: Sequence[int], *, key: bytes) -> tuple[SliceId, ...]:
        """Names of the full slices of a prompt in the cache domain of `key`."""
        return fingerprints(tokens, key=key, slice_tokens=self.block_size)

    def longest_prefix(self, slices: Sequence[SliceId]) -> int:
        """How many slices of a prompt are cached, from its first on. Changes and counts nothing."""
        numbers = self._numbers
        low, high = 0, len(slices)
        # A prompt that is asked again, or was preempted, is there to its end: one probe.
        if high and slices[-1] in numbers:
            return high
        while low < high:
            middle = (low + high) >> 1
            if slices[middle] in numbers:
                low = middle + 1
            else:
                high = middle
        return low

    def lookup(self, slices: Sequence[SliceId]) -> int:
        """As `longest_prefix`, and it counts as a use."""
        found = self.longest_prefix(slices)
        self._lookups += 1
        self._asked += len(slices)
        self._hit += found
        if found and self._lru:
            self._clock += 1
            self._stamps[self._numbers[slices[found - 1]]] = self._clock
        return found

    def get(self, slice_id: SliceId) -> V:
        """What is kept for it. Raises NotResident."""
        value = self._values[self._number(slice_id)]
        assert value is not None, "a cached slice has a value"
        return value

    def insert(self, slices: Sequence[SliceId], values_of: Callable[[int, int], Sequence[V]]) -> Inserted[V]:
        """Cache a prompt's slices. `values_of(start, stop)` gives what is to be kept for those that are new and have
        room; it must not raise. Others leave for them, this prompt's own and held ones excepted; what finds no room is
        left out, from the end."""
        known = self.longest_prefix(slices)
        parent = self._numbers[slices[known - 1]] if known else _ROOT
        short = len(self._numbers) + len(slices) - known - self.max_cached_blocks
        evicted: list[tuple[SliceId, V]] = []
        if short > 0:
            self._held[parent] += 1
            evicted = self.evict(short)
            self._let_go(parent)
        stop = min(len(slices), known + self.max_cached_blocks - len(self._numbers))
        values = values_of(known, stop) if known < stop else ()
        if known or values:
            self._clock += 1
            last = self._add(parent, slices[known:stop], values)
            if self._lru or values:
                self._stamps[last] = self._clock
            self._queue(last)
        self._inserted += len(values)
        return Inserted(known, len(values), evicted)

    def hold(self, slice_id: SliceId) -> None:
        """Keep it, and what it stands on, until it is let go as often (a running request reads it). Raises
        NotResident."""
        self._held[self._number(slice_id)] += 1

    def let_go(self, slice_id: SliceId) -> None:
        """Undo one `hold`. Raises NotResident, DoubleFree."""
        number = self._number(slice_id)
        if not self._held[number]:
            raise DoubleFree(where=WHERE, name=slice_id)
        self._let_go(number)

    def evict(self, count: int) -> list[tuple[SliceId, V]]:
        """Take out up to so many slices, in order; fewer when no more may go."""
        gone: list[tuple[SliceId, V]] = []
        leaves, stamps, children, held = self._leaves, self._stamps, self._children, self._held
        came_up = 0  # The entry of a parent that has just become a leaf: most often it is the next to go.
        while len(gone) < count and (leaves or came_up):
            entry = heappushpop(leaves, came_up) if came_up else heappop(leaves)
            came_up, number = 0, entry & _NUMBER_MASK
            if children[number] or number in held or self._keys[number] is None:
                self._queued[number] = False  # It comes back when it is a leaf that may go.
            elif entry >> _NUMBER_BITS < stamps[number]:
                came_up = stamps[number] << _NUMBER_BITS | number
            else:
                self._queued[number] = False
                parent, stamp = self._parents[number], stamps[number]
                gone.append(self._remove(number))
                if stamp > stamps[parent]:
                    stamps[parent] = stamp
                if parent and not children[parent] and not self._queued[parent]:
                    self._queued[parent] = True
                    came_up = stamps[parent] << _NUMBER_BITS | parent
        if came_up:
            heappush(leaves, came_up)
        self._evicted += len(gone)
        return gone

    def invalidate(self, slice_id: SliceId) -> list[tuple[SliceId, V]]:
        """Take out a slice and all that stand on it, which are worth nothing without it: they are returned, children
        before parents; none when it is not there. Raises Pinned when one of them is held: then all stay."""
        if slice_id not in self._numbers:
            return []
        top = self._numbers[slice_id]
        below = self._subtree(top)
        for number in below:
            if number in self._held:
                raise Pinned(where=WHERE, name=str(self._keys[number]), pins=self._held[number])
        parent = self._parents[top]
        self._stamps[parent] = max(self._stamps[number] for number in (parent, *below))
        gone = [self._remove(number) for number in reversed(below)]
        self._queue(parent)
        self._invalidated += len(gone)
        return gone

    def clear(self) -> list[tuple[SliceId, V]]:
        """Take out everything, what is held too: whoever held it finds it gone."""
        gone = [(slice_id, self.get(slice_id)) for slice_id in self._numbers]
        self._invalidated += len(gone)
        self._begin()
        return gone

    def get_stats(self) -> dict[str, float]:
        """Counts since the beginning, in slices but for `lookups`; `hit_rate` is of the slices asked for, 0 to 1."""
        return {
            "cached_blocks": len(self),
            "max_cached_blocks": self.max_cached_blocks,
            "held_blocks": len(self._held),
            "lookups": self._lookups,
            "blocks_asked": self._asked,
            "blocks_hit": self._hit,
            "hit_rate": self._hit / max(1, self._asked),
            "inserted": self._inserted,
            "evicted": self._evicted,
            "invalidated": self._invalidated,
        }

    def check_integrity(self) -> None:
        """The tree holds every slice once, under its parent; every leaf that may go is queued; limits are kept.
        AssertionError says what is not so. O(slices)."""
        assert len(self) <= self.max_cached_blocks, "no more than the limit"
        assert sorted(self._subtree(_ROOT)[1:]) == sorted(self._numbers.values()), "the tree holds what is named"
        assert len(self._free) + len(self) + 1 == len(self._keys), "a number is free, or it is used"
        assert all(self._keys[number] is None for number in self._free), "what is free has no name"
        queued = Counter(entry & _NUMBER_MASK for entry in self._leaves)
        assert all(count == 1 and self._queued[number] for number, count in queued.items()), "queued once"
        assert sum(self._queued) == len(queued), "who is said to be queued is"
        for slice_id, number in self._numbers.items():
            assert self._keys[number] == slice_id, "a slice has one number"
            if not self._children[number] and number not in self._held:
                assert self._queued[number], f"{slice_id} is a leaf, so it can be evicted"
        for number in self._held:
            assert self._keys[number] is not None, "what is held is there"

    def _number(self, slice_id: SliceId) -> int:
        number = self._numbers.get(slice_id)
        if number is None:
            raise NotResident(where=WHERE, name=slice_id)
        return number

    def _let_go(self, number: int) -> None:
        if self._held[number] > 1:
            self._held[number] -= 1
        else:
            del self._held[number]
            self._queue(number)

    def _queue(self, number: int) -> None:
        """It may go when its turn comes, if it is a leaf."""
        if number and not (self._children[number] or number in self._held or self._queued[number]):
            self._queued[number] = True
            heappush(self._leaves, self._stamps[number] << _NUMBER_BITS | number)

    def _add(self, parent: int, slices: Sequence[SliceId], values: Sequence[V]) -> int:
        """One below the other, the first below `parent`; the number of the last."""
        if not slices:
            return parent
        if len(self._free) < len(slices):
            self._grow(len(slices))
        cut = len(self._free) - len(slices)
        added = self._free[cut:]
        del self._free[cut:]
        sibling = self._children[parent]
        if sibling:
            self._befores[sibling], self._nexts[added[0]] = added[0], sibling
        self._numbers.update(zip(slices, added, strict=True))
        keys, kept, parents, children = self._keys, self._values, self._parents, self._children
        for number, slice_id, value in zip(added, slices, values, strict=True):
            keys[number] = slice_id
            kept[number] = value
            parents[number] = parent
            children[parent] = number
            parent = number
        return parent

    def _grow(self, count: int) -> None:
        """More numbers, at least so many."""
        first = len(self._keys)
        more = max(count, _GROW_MIN, first // 16)
        self._keys.extend([None] * more)
        self._values.extend([None] * more)
        for column in (self._parents, self._children, self._nexts, self._befores, self._stamps):
            column.frombytes(bytes(column.itemsize * more))
        self._queued.extend(bytes(more))
        self._free[:0] = range(first, first + more)

    def _remove(self, number: int) -> tuple[SliceId, V]:
        """Take a slice without children out of the tree."""
        slice_id, value = self._keys[number], self._values[number]
        assert slice_id is not None, "a free number is not removed"
        assert value is not None, "a cached slice has a value"
        before, after = self._befores[number], self._nexts[number]
        if before:
            self._nexts[before] = after
        else:
            self._children[self._parents[number]] = after
        if after:
            self._befores[after] = before
        del self._numbers[slice_id]
        self._keys[number] = self._values[number] = None
        self._nexts[number] = self._befores[number] = 0
        self._free.append(number)
        return slice_id, value

    def _subtree(self, top: int) -> list[int]:
        """A slice and all below it, parents before children."""
        found = [top]
        for number in found:
            child = self._children[number]
            while child:
                found.append(child)
                child = self._nexts[child]
        return found
