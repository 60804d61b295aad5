"""What one tier of an engine holds, as far as evicting from it goes: slices, who holds them, and what each is worth.

A slice may be evicted when nobody reads or writes it and none of its children is in the tier. A use after a slice was
let go counts as coming back (`policies.memory.reuse`); being held and let go without one (a copy to another tier) does
not. Costs O(log n) per slice; another kind of eviction costs a walk over all of them.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from events.slice import Tier
from policies.memory import reuse
from policies.memory.evictable import Evictable, Shield
from policies.memory.kinds import EvictionKind, rank_of
from policies.memory.reuse import Gone, Group, Past, Use

HORIZON_NS: Final = 300_000_000_000
"""Within this time a reuse counts where no directive says."""


class Kept(msgspec.Struct):
    """A slice of a tier. `held`: somebody reads or writes it. `idle`: it was let go, and not used since. It was used
    last as number `from_end` from the end of a prompt of `length`; `rank` is its worth since it was let go."""

    use: Use
    parent: str
    from_end: int
    length: int
    held: bool = True
    idle: bool = False
    rank: int = 0


class LookedAt(msgspec.Struct, frozen=True, array_like=True):
    """A slice that was looked at for eviction."""

    slice_id: str
    shield: int
    rank: int


class TierRows(msgspec.Struct):
    """A tier's cache as plain values. `queue`: what may be evicted, in the order in which it was put in."""

    tier: Tier
    kept: dict[str, Kept]
    queue: list[str]
    groups: dict[int, Group]
    gone: dict[str, Gone]
    floor: int


class TierCache:
    """The slices of one tier. `shields` is shared with whoever directs, and changes by `reshield` only."""

    def __init__(self, shields: Mapping[str, Shield]) -> None:
        self.kind, self.horizon_ns = EvictionKind.LRU, HORIZON_NS
        self._shields = shields
        self._kept: dict[str, Kept] = {}
        self._children: dict[str, int] = {}
        self._queue: Evictable[str] = Evictable()
        self._past = Past()

    def __contains__(self, slice_id: str) -> bool:
        return slice_id in self._kept

    def direct(self, kind: EvictionKind, horizon_ns: int) -> None:
        """Rank by this kind from now on, what is here already too."""
        self.horizon_ns = horizon_ns
        if kind is self.kind:
            return
        self.kind = kind
        queue, self._queue = self._queue, Evictable()
        for kept in self._kept.values():
            if kept.idle:
                kept.rank = rank_of(kind, kept.use, self._past)
        for slice_id in queue:
            self._put(slice_id, self._kept[slice_id])

    def reshield(self, changed: Iterable[str]) -> None:
        """These slices have another shield now, or none."""
        for slice_id in changed:
            if slice_id in self._queue:
                self._queue.drop(slice_id)
                self._put(slice_id, self._kept[slice_id])

    def stored(
        self, slice_id: str, now_ns: int, *, parent: str, cost_ns: int, size: int, place: tuple[int, int]
    ) -> None:
        """It is put in, and held. `place`: slices from the end of a prompt of so many."""
        from_end, length = place
        if slice_id in self._kept:
            self.hold((slice_id,))
            return
        use = reuse.stored(self._past, slice_id, now_ns, cost_ns=cost_ns, size=size, horizon_ns=self.horizon_ns)
        self._kept[slice_id] = Kept(use, parent, from_end, length)
        if parent:
            self._children[parent] = self._children.get(parent, 0) + 1
            self._queue.drop(parent)

    def used(self, slices: Sequence[str], now_ns: int, *, first: int, length: int) -> None:
        """A request had these: places `first`, `first` + 1, ... of a prompt of `length` slices."""
        for place, slice_id in enumerate(slices, first):
            kept = self._kept.get(slice_id)
            if kept is None:
                continue
            reuse.used(self._past, kept.use, now_ns, let_go=kept.idle, horizon_ns=self.horizon_ns)
            kept.from_end, kept.length, kept.idle = max(0, length - 1 - place), max(1, length), False
            if not kept.held:
                self._queue.drop(slice_id)
                self._let_go(slice_id, kept, now_ns)

    def hold(self, slices: Iterable[str]) -> None:
        """Not to be evicted until they are let go."""
        for slice_id in slices:
            kept = self._kept.get(slice_id)
            if kept is not None:
                kept.held = True
                self._queue.drop(slice_id)

    def let_go(self, slices: Iterable[str], now_ns: int) -> None:
        """Nobody holds them now."""
        for slice_id in slices:
            kept = self._kept.get(slice_id)
            if kept is not None and kept.held:
                kept.held = False
                self._let_go(slice_id, kept, now_ns)

    def remove(self, slices: Iterable[str]) -> None:
        """They are gone, not by eviction."""
        for slice_id in slices:
            kept = self._kept.pop(slice_id, None)
            if kept is not None:
                self._queue.drop(slice_id)
                self._lose_child(kept.parent)

    def clear(self) -> None:
        """All are gone. What was learned stays."""
        self._kept.clear()
        self._children.clear()
        self._queue = Evictable()

    def evict(self, count: int, protected: Collection[str]) -> tuple[tuple[str, ...], list[LookedAt]]:
        """`count` slices that leave, the first to leave first, and all that was looked at. None of them leaves where
        there are not so many; kept ones and `protected` ones never do."""
        looked_at: list[LookedAt] = []
        chosen: list[str] = []
        aside: list[str] = []
        while len(chosen) < count and len(self._queue):
            slice_id = self._queue.pop()
            kept = self._kept[slice_id]
            shield = self._shields.get(slice_id, Shield.NONE)
            looked_at.append(LookedAt(slice_id, shield, kept.rank))
            if shield is Shield.KEPT:
                aside.append(slice_id)
                break  # Kept ones come last: all that are left are.
            if slice_id in protected:
                aside.append(slice_id)
                continue
            chosen.append(slice_id)
            self._lose_child(kept.parent)
        enough = len(chosen) == count
        if not enough:
            self._take_back(chosen)
            aside += chosen
            chosen = []
        for slice_id in aside:
            self._offer(slice_id, self._kept[slice_id])
        for slice_id in chosen:
            self._evicted(slice_id)
        return tuple(chosen), looked_at

    def rows(self, tier: Tier) -> TierRows:
        """All of it, as plain values."""
        gone = {str(slice_id): gone for slice_id, gone in self._past.gone.items()}
        return TierRows(tier, self._kept, list(self._queue), self._past.groups, gone, self._past.floor)

    def restore(self, rows: TierRows) -> None:
        """Take in what `rows` gave; what is ranked is ranked as it was."""
        self._kept = rows.kept
        self._past = Past(rows.groups, {slice_id: gone for slice_id, gone in rows.gone.items()}, rows.floor)  # noqa: C416
        self._children = {}
        for kept in self._kept.values():
            if kept.parent:
                self._children[kept.parent] = self._children.get(kept.parent, 0) + 1
        for slice_id in rows.queue:
            self._put(slice_id, self._kept[slice_id])

    def _let_go(self, slice_id: str, kept: Kept, now_ns: int) -> None:
        if not kept.idle:
            reuse.let_go(self._past, kept.use, now_ns, from_end=kept.from_end, length=kept.length)
            kept.rank = rank_of(self.kind, kept.use, self._past)
            kept.idle = True
        self._offer(slice_id, kept)

    def _offer(self, slice_id: str, kept: Kept) -> None:
        """It may be evicted, unless a child of it is there."""
        if not self._children.get(slice_id):
            self._put(slice_id, kept)

    def _put(self, slice_id: str, kept: Kept) -> None:
        self._queue.put(slice_id, self._shields.get(slice_id, Shield.NONE), kept.rank)

    def _lose_child(self, parent: str) -> None:
        if not parent:
            return
        left = self._children[parent] - 1
        if left:
            self._children[parent] = left
            return
        del self._children[parent]
        kept = self._kept.get(parent)
        if kept is not None and not kept.held:
            self._put(parent, kept)

    def _take_back(self, chosen: Iterable[str]) -> None:
        """They stay after all, and their parents have children again."""
        for slice_id in chosen:
            parent = self._kept[slice_id].parent
            if parent:
                self._children[parent] = self._children.get(parent, 0) + 1
                self._queue.drop(parent)

    def _evicted(self, slice_id: str) -> None:
        kept = self._kept.pop(slice_id)
        reuse.evicted(self._past, slice_id, kept.use)
        self._past.floor = max(self._past.floor, kept.rank)
