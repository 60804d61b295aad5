"""One engine's KV memory as the control plane sees it: a pool and a prefix cache that share its blocks.

A request gets the blocks of the longest cached prefix of its prompt, shared and held, and new ones for the rest; when
it ends, the slices that were computed stay cached. What is cached leaves when a request needs the room, never while a
request reads it (a transfer that reads a cached slice holds it, too: `prefixes.hold`).

Example: slices of 2 blocks, a pool of 6. a (4 blocks, slices 1, 2) ends and leaves both cached. b begins with 1 and
needs 5 blocks: 2 are shared, 2 are free, so slice 2 goes, and b has its 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from events.base import SliceId
from events.decisions import TransferOrdered
from kvstore.errors import DoubleFree, KVError, Pinned, TierUnavailable
from kvstore.fingerprint import SLICE_TOKENS
from kvstore.pool import KVHandle, KVPool
from kvstore.prefix_cache import CACHED_MAX, PrefixCache
from kvstore.schema import KVCacheSchema

NOBODY: Final = ""
"""The owner that slices are charged to when they stay cached: it has no limit."""
Carry = Callable[[TransferOrdered], None]
Cancel = Callable[[str], None]


@dataclass(slots=True)
class _Lease:
    handle: KVHandle
    held: SliceId | None


class EngineCache:
    """Alloc and free by a request's name. Not thread-safe. An error changes nothing but what was evicted for it.

    Moves between tiers are `carry`'s work (a transport), and so are their ends; without one they are refused.
    """

    def __init__(
        self,
        schema: KVCacheSchema,
        *,
        max_tokens: int,
        slice_tokens: int = SLICE_TOKENS,
        device: str = "cpu",
        carry: Carry | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        assert slice_tokens % schema.block_tokens == 0, "a slice is made of whole blocks"
        self.pool = KVPool(schema, max_tokens=max_tokens, device=device, make_room=self._make_room)
        slices_max = min(max(1, max_tokens // slice_tokens), CACHED_MAX - 1)
        self.prefixes: PrefixCache[KVHandle] = PrefixCache(max_cached_blocks=slices_max, block_size=slice_tokens)
        self._slice_blocks = slice_tokens // schema.block_tokens
        self._leases: dict[str, _Lease] = {}
        self._carry, self._cancel = carry, cancel

    def __contains__(self, name: str) -> bool:
        return name in self._leases

    def alloc(self, name: str, num_tokens: int, *, slices: Sequence[SliceId] = (), owner: str = "") -> int:
        """Memory for a request of so many tokens, its output included, whose prompt begins with `slices`; how many of
        them were cached. Raises BudgetExceeded."""
        assert name not in self._leases, "a request holds its memory once"
        found = self.prefixes.lookup(slices[: num_tokens // self.prefixes.block_size])
        held = slices[found - 1] if found else None
        if held is not None:
            self.prefixes.hold(held)
        shared = [block for slice_id in slices[:found] for block in self.prefixes.get(slice_id).blocks]
        try:
            handle = self.pool.alloc(num_tokens, owner=owner, shared=shared)
        except KVError:
            if held is not None:
                self.prefixes.let_go(held)
            raise
        self._leases[name] = _Lease(handle, held)
        return found

    def handle(self, name: str) -> KVHandle:
        """What a request holds. Raises DoubleFree when it holds nothing."""
        return self._lease(name).handle

    def free(self, name: str, *, computed: Sequence[SliceId] = ()) -> int:
        """Give a request's memory back; the `computed` slices of its prompt (from the first on) stay cached. How many
        tokens' room that made. Raises DoubleFree, Pinned while a transfer reads it."""
        lease = self._lease(name)
        free_before = self.pool.tokens_free
        if lease.handle.pins:
            raise Pinned(where=f"pool {self.pool.device}", name=name, pins=lease.handle.pins)
        self._keep(lease.handle, computed)
        if lease.held is not None:
            self.prefixes.let_go(lease.held)
        self.pool.free(lease.handle)
        del self._leases[name]
        return self.pool.tokens_free - free_before

    def invalidate(self, slice_id: SliceId) -> int:
        """Forget a cached slice and all that stand on it (its bytes were found damaged); how many. Raises Pinned while
        a request reads one of them."""
        return self._drop(self.prefixes.invalidate(slice_id))

    def clear(self) -> list[str]:
        """The engine is gone, and what it held with it, whoever read it: names of the requests that held memory."""
        names = list(self._leases)
        gone = [lease.handle for lease in self._leases.values()] + [handle for _, handle in self.prefixes.clear()]
        self._leases.clear()
        for handle in gone:
            while handle.pins:
                self.pool.unpin(handle)
            self.pool.free(handle)
        return names

    def migrate(self, order: TransferOrdered) -> None:
        """Have slices moved. Raises TierUnavailable where nothing can move them."""
        if self._carry is None:
            raise TierUnavailable(where=f"cache of {order.engine_id}", why="it has no transport", lasting=True)
        self._carry(order)

    def cancel(self, order: str) -> None:
        """Do not begin that order any more."""
        if self._cancel is not None:
            self._cancel(order)

    def check_integrity(self) -> None:
        """Pool and cache are sound, and nothing is held but by requests and cached slices."""
        self.pool.check_integrity()
        self.prefixes.check_integrity()
        assert self.pool.stats().handles == len(self._leases) + len(self.prefixes), "every handle is somebody's"

    def _lease(self, name: str) -> _Lease:
        lease = self._leases.get(name)
        if lease is None:
            raise DoubleFree(where=f"pool {self.pool.device}", name=name)
        return lease

    def _keep(self, handle: KVHandle, computed: Sequence[SliceId]) -> None:
        size = self._slice_blocks

        def parts(start: int, stop: int) -> list[KVHandle]:
            return [self.pool.part(handle, at * size, (at + 1) * size, owner=NOBODY) for at in range(start, stop)]

        inserted = self.prefixes.insert(computed[: handle.num_tokens // self.prefixes.block_size], parts)
        assert not inserted.evicted, "every cached slice has blocks of its own, so there is room for its name"

    def _make_room(self, blocks: int) -> None:
        """Slices leave until so many blocks are free, or none may leave any more."""
        wanted = self.pool.tokens_free + blocks * self.pool.schema.block_tokens
        while self.pool.tokens_free < wanted:
            short = wanted - self.pool.tokens_free
            if not self._drop(self.prefixes.evict(-(-short // self.prefixes.block_size))):
                return

    def _drop(self, gone: Sequence[tuple[SliceId, KVHandle]]) -> int:
        for _, handle in gone:
            self.pool.free(handle)
        return len(gone)
