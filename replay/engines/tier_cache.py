"""What a slower tier of a simulated engine holds: whole slices by name, evicted when room is needed.

A name stands for all that comes before it too, as fingerprints do. A slice is worth nothing without those before it,
so only slices without others under them are evicted (children before their parents); those before it may be in a faster
tier alone, so it can come without them. Room is made when a slice begins to come, and given back if it does not arrive.

Which one goes is decided as in device memory: by the kind of `policies.memory.kinds` that the directive names, hot ones
after all others; without a directive lru. What a directive keeps (pinned, or needed by a request that waits) makes no
room for others here, since what cannot be stored can still be computed. Nor does what is being read. A tier with an
eviction of its own (`Own`), as vLLM's CPU offloading has it, hears no directive, and leaves holes: whatever was used
longest ago goes, others under it or not, of one prompt the last first. By lru it goes block by block: of a slice that
made room in part its first blocks are there (`part`), but not the slice.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from events.decisions import EngineDirected
from events.slice import Tier
from policies.memory import reuse
from policies.memory.evictable import Evictable, Shield
from policies.memory.kinds import EvictionKind, kind_of, rank_of
from policies.memory.reuse import Past, Use
from replay.engines.arc import Arc
from replay.engines.changes import Changes
from replay.engines.lru import Lru
from replay.engines.prefix_cache import HORIZON_NS

NO_ROOM = "no_room"


class Own(StrEnum):
    """What evicts from a tier: directives, or a rule of its own."""

    DIRECTED = ""
    LRU = "lru"
    ARC = "arc"


class SliceAt(NamedTuple):
    """A slice and its place: `parent` is the one before it (None = it begins a prompt), `depth` of them stand before
    it, it takes `blocks` blocks of device memory, `bytes` bytes anywhere; the prompt that it was last used by had
    `length` slices."""

    key: Hashable
    parent: Hashable | None
    depth: int
    blocks: int
    bytes: int
    length: int


class Kept:
    """A slice that is there. `holds` transfers read it or put something under it."""

    __slots__ = ("at", "holds", "is_part", "rank", "shield", "use")

    def __init__(self, at: SliceAt, use: Use, shield: Shield) -> None:
        self.at, self.use, self.shield = at, use, shield
        self.holds = self.rank = 0
        self.is_part = False

    @property
    def key(self) -> Hashable:
        """Its name."""
        return self.at.key


class TierCache:
    """See the module. `bytes_used` counts what is coming too; `cost_ns(blocks, depth)` is what a slice costs to
    compute. Keys are unique however many tokens their slices have."""

    def __init__(self, tier: Tier, bytes_max: int, cost_ns: Callable[[int, int], int], own: Own = Own.DIRECTED) -> None:
        self.tier, self.bytes_max, self._own = tier, bytes_max, own
        self.bytes_used = self.evictions = self.slice_bytes = 0
        self.changes = Changes()
        self._cost_ns = cost_ns
        self._kept: dict[Hashable, Kept] = {}
        self._coming: dict[Hashable, SliceAt] = {}
        self._under: dict[Hashable, int] = {}  # How many that are there come right after it.
        self._arc: Arc[Kept] | None = Arc() if own is Own.ARC else None
        self._own_line: Arc[Kept] | Lru[Kept] | None = Lru() if own is Own.LRU else self._arc
        self._queue: Evictable[Kept] = Evictable()  # Of a tier that is directed; only such a one learns a past.
        self._past = Past()
        self._kind, self._horizon_ns = EvictionKind.LRU, HORIZON_NS
        self._shields: dict[Hashable, Shield] = {}

    def __contains__(self, key: Hashable) -> bool:
        kept = self._kept.get(key)
        return kept is not None and not kept.is_part

    def part(self, key: Hashable) -> SliceAt | None:
        """What is left of a slice that made room in part."""
        kept = self._kept.get(key)
        return kept.at if kept is not None and kept.is_part else None

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> SliceAt | None:
        """A slice that is there."""
        kept = self._kept.get(key)
        return kept.at if kept is not None else None

    # Coming and going.

    def reserve(self, at: SliceAt) -> str:
        """Make room for a slice that begins to come; why there is none ("" = there is)."""
        assert at.key not in self, "what is there does not come again"
        assert at.key not in self._coming, "a slice comes once at a time"
        before = self._kept.get(at.parent) if at.parent is not None else None
        if before is not None:
            self._hold(before)  # Else it could be what goes.
        if self._arc is not None:
            self._arc.missed(at.key, self.bytes_max // at.bytes)
        has_room = self._clear(at) and self._make_room(at.bytes)
        if before is not None:
            self._release(before)
        if not has_room:
            return NO_ROOM
        self._coming[at.key] = at
        self._count_under(at, 1)
        self.bytes_used += at.bytes
        return ""

    def settle(self, at: SliceAt, now_ns: int, *, arrived: bool) -> None:
        """A slice for which room was reserved is there now, whole; or it will not come."""
        del self._coming[at.key]
        if arrived:
            self._put(at, now_ns)
        else:
            self.bytes_used -= at.bytes
            self._count_under(at, -1)

    def _put(self, at: SliceAt, now_ns: int) -> None:
        kept = self._kept[at.key] = Kept(at, self._stored(at, now_ns), self._shields.get(at.key, Shield.NONE))
        self.slice_bytes = at.bytes
        if self._own_line is not None:
            self._own_line.came(kept)
        self.changes.stored(at.key, at.bytes)
        self._let_go(kept, now_ns)
        self._offer(kept)

    def drop(self, key: Hashable) -> bool:
        """Take a slice out by order; False where it is not, or others stand under it, or it is being read."""
        kept = self._kept.get(key)
        if kept is None or kept.holds or key in self._under:
            return False
        self._queue.drop(kept)
        self._take_out(kept)
        return True

    def hold(self, key: Hashable) -> None:
        """It is being read: it stays."""
        self._hold(self._kept[key])

    def release(self, key: Hashable) -> None:
        """One reader less."""
        self._release(self._kept[key])

    def touch(self, keys: Iterable[Hashable], now_ns: int, *, length: int) -> None:
        """A prompt of `length` slices begins with these."""
        for key in keys:
            kept = self._kept.get(key)
            if kept is None:
                continue
            if self._own_line is not None:
                self._own_line.used(kept)
            else:
                reuse.used(self._past, kept.use, now_ns, let_go=True, horizon_ns=self._horizon_ns)
                self._queue.drop(kept)
            kept.at = kept.at._replace(length=length)
            self._let_go(kept, now_ns)
            self._offer(kept)

    def restarted(self) -> "TierCache":
        """The same contents after a restart of the engine: what was on its way is gone, and nobody reads."""
        fresh = TierCache(self.tier, self.bytes_max, self._cost_ns, self._own)
        for kept in self._kept.values():
            fresh.bytes_used += kept.at.bytes
            fresh._count_under(kept.at, 1)
            fresh._put(kept.at, kept.use.let_go_ns)
        return fresh

    # Whose turn it is.

    def direct(self, directive: EngineDirected) -> None:
        """Evict by this from now on; one that names no kind lifts those before it."""
        if self._own is not Own.DIRECTED:
            return
        before, self._kind = self._kind, kind_of(directive.eviction)
        self._horizon_ns = directive.horizon_ns or HORIZON_NS
        said, self._shields = self._shields, {}
        self._shields.update(dict.fromkeys(directive.hot, Shield.HOT))
        self._shields.update(dict.fromkeys((*directive.needed, *directive.pinned), Shield.KEPT))
        if self._kind is not before:
            for kept in self._kept.values():
                kept.rank = rank_of(self._kind, kept.use, self._past)
                self._offer(kept)
        for key in {**said, **self._shields}:
            if (shielded := self._kept.get(key)) is not None:
                shielded.shield = self._shields.get(key, Shield.NONE)
                self._offer(shielded)

    def check_integrity(self) -> None:
        """Assert that counts are what the slices say, and that no limit is passed."""
        used = sum(kept.at.bytes for kept in self._kept.values()) + sum(at.bytes for at in self._coming.values())
        assert self.bytes_used == used, "bytes are those of the slices"
        assert used <= self.bytes_max, "a tier is never overfull"
        under: dict[Hashable, int] = {}
        for at in (*(kept.at for kept in self._kept.values()), *self._coming.values()):
            if at.parent is not None:
                under[at.parent] = under.get(at.parent, 0) + 1
        assert self._under == under, "children are counted"
        in_line = 0 if self._own_line is not None else sum(self._can_go(kept) for kept in self._kept.values())
        assert len(self._queue) == in_line, "what may go is in line"

    def _make_room(self, bytes_: int) -> bool:
        while self.bytes_used + bytes_ > self.bytes_max:
            kept = self._foremost()
            if kept is None:
                return False
            if self._own is Own.LRU and self._bite(kept, self.bytes_used + bytes_ - self.bytes_max):
                return True
            if self._arc is not None:
                self._arc.evicted(kept.at.key, self.bytes_max // kept.at.bytes)
            if self._own_line is None:
                reuse.evicted(self._past, kept.at.key, kept.use)
                self._past.floor = max(self._past.floor, kept.rank)
            self.evictions += not kept.is_part
            self._take_out(kept)
        return True

    def _foremost(self) -> Kept | None:
        """Whose turn it is to go; None where nothing may."""
        if self._own_line is not None:
            return self._own_line.foremost()
        return self._queue.pop() if len(self._queue) else None

    def _clear(self, at: SliceAt) -> bool:
        """What is left of a slice that comes again is in its way; False where that is being read."""
        part = self._kept.get(at.key)
        if part is None or part.holds:
            return part is None
        self._queue.drop(part)
        self._take_out(part)
        return True

    def _bite(self, kept: Kept, bytes_: int) -> bool:
        """Take so many bytes of a slice, in blocks, its last ones; False where that is all of it."""
        block = kept.at.bytes // kept.at.blocks
        blocks = -(-bytes_ // block)
        if blocks >= kept.at.blocks:
            return False
        if not kept.is_part:
            self.evictions += 1
            self.changes.removed(kept.at.key)
        kept.is_part = True
        kept.at = kept.at._replace(blocks=kept.at.blocks - blocks, bytes=kept.at.bytes - blocks * block)
        self.bytes_used -= blocks * block
        self._offer(kept)
        return True

    def _take_out(self, kept: Kept) -> None:
        del self._kept[kept.at.key]
        if self._own_line is not None:
            self._own_line.left(kept)
        self.bytes_used -= kept.at.bytes
        if not kept.is_part:
            self.changes.removed(kept.at.key)
        self._count_under(kept.at, -1)

    def _count_under(self, at: SliceAt, more: int) -> None:
        """One more, or one less, stands right after the slice before it, wherever that is."""
        if at.parent is None:
            return
        count = self._under.pop(at.parent, 0) + more
        if count:
            self._under[at.parent] = count
        if (before := self._kept.get(at.parent)) is not None:
            self._offer(before)

    def _hold(self, kept: Kept) -> None:
        kept.holds += 1
        self._queue.drop(kept)

    def _release(self, kept: Kept) -> None:
        assert kept.holds > 0, "only what is held is released"
        kept.holds -= 1
        self._offer(kept)

    def _can_go(self, kept: Kept) -> bool:
        return not kept.holds and kept.shield is not Shield.KEPT and kept.at.key not in self._under

    def _offer(self, kept: Kept) -> None:
        """It stands in line, if it may go."""
        if self._own_line is not None:
            return  # There it keeps its place, and is passed over while it is held.
        self._queue.drop(kept)
        if self._can_go(kept):
            self._queue.put(kept, kept.shield, kept.rank)

    def _stored(self, at: SliceAt, now_ns: int) -> Use:
        """The past of a slice that came. A tier with an eviction of its own learns nothing from it."""
        if self._own_line is not None:
            return Use(now_ns, 0, at.blocks)
        return reuse.stored(
            self._past, at.key, now_ns, cost_ns=self._cost_ns(at.blocks, at.depth), size=at.blocks,
            horizon_ns=self._horizon_ns,
        )  # fmt: skip

    def _let_go(self, kept: Kept, now_ns: int) -> None:
        if self._own_line is not None:
            kept.use.let_go_ns = now_ns
            return
        at = kept.at
        reuse.let_go(self._past, kept.use, now_ns, from_end=max(0, at.length - 1 - at.depth), length=at.length)
        kept.rank = rank_of(self._kind, kept.use, self._past)


def chain_of(keys: Sequence[Hashable], first: int, last: int, *, blocks: int, bytes_: int) -> list[SliceAt]:
    """Slices `first` to `last` (not included) of a prompt with these slices."""
    return [
        SliceAt(keys[depth], keys[depth - 1] if depth else None, depth, blocks, bytes_, len(keys))
        for depth in range(first, last)
    ]
