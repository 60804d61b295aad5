"""The device memory of a simulated engine: its KV blocks, free ones and those of the prefix cache; the others are held
by requests."""

from collections.abc import Callable, Hashable, Sequence

from events.base import EngineId
from events.engine import EngineRegistered
from replay.engines.changes import Changes
from replay.engines.prefix_cache import PrefixCache, Unit
from replay.engines.tier_cache import SliceAt


class DeviceMemory:
    """`free` of its `blocks` blocks belong to nobody; what the cache holds and nobody uses is room too."""

    def __init__(self, registered: EngineRegistered, cost_ns: Callable[[int, int], int]) -> None:
        self.engine_id: EngineId = registered.engine_id
        self.blocks = self.free = registered.kv_blocks
        self.block_bytes = registered.block_bytes
        self.cache = PrefixCache(cost_ns)
        self.changes = Changes()

    def watch(self) -> None:
        """What comes and goes is told from now on (`changes`)."""
        self.cache.watch(self.changes, block_bytes=self.block_bytes)

    @property
    def room(self) -> int:
        """Blocks that can be taken."""
        return self.free + self.cache.evictable

    def room_beside(self, units: Sequence[Unit], *, kept: bool) -> int:
        """As `room` once these units are held, with what a directive keeps or without."""
        return self.free + self.cache.evictable_beside(units, kept=kept)

    def take(self, blocks: int) -> None:
        """Take as many, evicting what is needed for it."""
        if blocks > self.free:
            self.free += self.cache.evict(blocks - self.free)
        self.free -= blocks

    # For orders and reports (`slow_memory.Device`).

    def before_eviction(self, hear: Callable[[SliceAt], None]) -> None:
        """`hear` is told of every unit that is about to make room, once it is watched."""
        self.cache.before_eviction = lambda unit: hear(self._as_slice(unit))

    @property
    def bytes_max(self) -> int:
        """All of it."""
        return self.blocks * self.block_bytes

    @property
    def bytes_used(self) -> int:
        """Held by requests, or cached."""
        return (self.blocks - self.free) * self.block_bytes

    @property
    def evictions(self) -> int:
        """Units evicted so far."""
        return self.cache.evictions

    def slice_at(self, key: Hashable) -> SliceAt | None:
        """A cached unit, as what stands behind knows it."""
        unit = self.cache.named(key)
        return self._as_slice(unit) if unit is not None else None

    def _as_slice(self, unit: Unit) -> SliceAt:
        assert unit.parent is not None, "a root has no key"
        blocks = unit.blocks
        return SliceAt(unit.key, unit.parent.key, unit.depth, blocks, blocks * self.block_bytes, unit.depth + 1)

    def adopt(self, at: SliceAt) -> bool:
        """Put a slice there that has come, which nobody uses yet; True too where it is there already. False where the
        one before it is not, or where room is only among what is used or kept."""
        parent = self.cache.root(at.blocks) if at.parent is None else self.cache.named(at.parent)
        if parent is None or self.cache.named(at.key) is not None:
            return parent is not None
        if at.blocks > self.room_beside((), kept=False):
            return False
        self.take(at.blocks)
        if at.parent is not None and self.cache.named(at.parent) is not parent:
            self.free += at.blocks  # The one before it was what made room.
            return False
        self.cache.adopt(parent, at.key)
        return True

    def forget(self, key: Hashable) -> bool:
        """Drop a cached unit; False where somebody uses it, or others stand under it."""
        unit = self.cache.named(key)
        if unit is None or not self.cache.forget(unit):
            return False
        self.free += unit.blocks
        return True
