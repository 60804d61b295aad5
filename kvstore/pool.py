"""The KV memory of one device, handed out by tokens under budgets.

A handle is what a request (or a cached slice) holds: a number of tokens and the blocks that they are in. Handles may
share blocks; whoever writes a shared one gets a copy. The budget counts a block once, however many hold it; an owner
(a tenant, or one kind of work) is charged for every block of its handles, shared ones included, and may have a limit.

Example: 64 tokens, blocks of 16. a allocs 40 tokens (3 blocks), b shares 2 of these and allocs 32 more (2 blocks): 5
blocks would be too many, but 2 are shared, so 3 of 4 are used.

Sources: paged attention's tables, counts and copies on write (Kwon, SOSP 2023).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from kvstore.errors import BudgetExceeded, DoubleFree, KVError, NoVictim, Pinned
from kvstore.paged_store import PagedStore
from kvstore.schema import KVCacheSchema, KVDtype, KVLayout

MakeRoom = Callable[[int], object]
"""Asked for that many free blocks before a budget is said to be exceeded; may raise NoVictim."""


@dataclass(slots=True, eq=False, kw_only=True)
class KVHandle:
    """KV of `num_tokens` tokens in a pool. Read it; only its pool changes it."""

    handle_id: int
    num_tokens: int
    dtype: KVDtype
    layout: KVLayout
    block_tokens: int
    device: str
    owner: str = ""
    blocks: list[int] = field(default_factory=list)
    pins: int = 0

    def slot_mapping(self, start: int, stop: int) -> list[int]:
        """Where tokens `start` to `stop` (exclusive) are: block x block_tokens + place in it, as attention kernels want
        it."""
        assert 0 <= start <= stop <= self.num_tokens, "only what it holds has a place"
        size = self.block_tokens
        return [self.blocks[token // size] * size + token % size for token in range(start, stop)]


class PoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool holds now; shared blocks count once."""

    blocks_max: int
    blocks_used: int
    bytes_max: int
    bytes_used: int
    handles: int
    handles_pinned: int
    blocks_shared: int


class KVPool:
    """Hands out KV memory. Not thread-safe. An error changes nothing but what `make_room` freed.

    The budget is `max_tokens` or `max_bytes` (one of the two), in whole blocks. `make_room` is asked when blocks are
    short (see `kvstore.engine_cache`).
    """

    def __init__(
        self,
        schema: KVCacheSchema,
        *,
        max_tokens: int = 0,
        max_bytes: int = 0,
        device: str = "cpu",
        memory: memoryview | None = None,
        make_room: MakeRoom | None = None,
    ) -> None:
        assert (max_tokens > 0) != (max_bytes > 0), "a pool has one budget: tokens or bytes"
        blocks_max = max_tokens // schema.block_tokens or max_bytes // schema.block_bytes()
        self.schema, self.device = schema, device
        self._store = PagedStore(
            block_bytes=schema.block_bytes(), blocks_max=blocks_max, memory=memory, where=f"pool {device}"
        )
        self._make_room = make_room
        self._handles: dict[int, KVHandle] = {}
        self._handles_made = 0
        self._charged: Counter[str] = Counter()
        self._limits: dict[str, int] = {}

    @property
    def tokens_max(self) -> int:
        """The budget, in tokens of whole blocks."""
        return self._store.blocks_max * self.schema.block_tokens

    @property
    def tokens_free(self) -> int:
        """What can be allocated without making room."""
        return self._store.blocks_free * self.schema.block_tokens

    def set_limit(self, owner: str, max_tokens: int) -> None:
        """What this owner's handles may hold together from now on, shared blocks included (0 = no limit). What it holds
        already it keeps. Nobody ("") has no limit."""
        assert owner, "a limit is somebody's"
        assert max_tokens >= 0, "a limit is an amount"
        if max_tokens:
            self._limits[owner] = max_tokens // self.schema.block_tokens
        else:
            self._limits.pop(owner, None)

    def alloc(self, num_tokens: int, *, owner: str = "", shared: Sequence[int] = ()) -> KVHandle:
        """Memory for so many tokens, at least one; `shared` blocks that others hold are its first ones, and full.

        Raises BudgetExceeded (of the owner, or of the pool when no room could be made), NotResident for a shared block
        that nobody holds.
        """
        assert num_tokens > 0, "a handle holds something"
        assert len(shared) * self.schema.block_tokens <= num_tokens, "shared blocks are full"
        count = self.schema.blocks(num_tokens)
        self._check_limit(owner, count)
        # Held before room is made, so that making room does not take them away.
        self._store.share(shared)
        try:
            taken = self._take(count - len(shared))
        except KVError:
            self._store.give_back(shared)
            raise
        return self._hand_out(num_tokens, owner, [*shared, *taken])

    def grow(self, handle: KVHandle, num_tokens: int) -> None:
        """Room for so many tokens more. Raises BudgetExceeded, DoubleFree when the handle was freed."""
        assert num_tokens >= 0, "what is held shrinks by being freed"
        self._check_held(handle)
        more = self.schema.blocks(handle.num_tokens + num_tokens) - len(handle.blocks)
        self._check_limit(handle.owner, more)
        handle.blocks.extend(self._take(more))
        handle.num_tokens += num_tokens
        self._charged[handle.owner] += more

    def fork(self, handle: KVHandle) -> KVHandle:
        """A second handle on the same tokens, of the same owner. Raises BudgetExceeded of the owner, DoubleFree."""
        self._check_held(handle)
        self._check_limit(handle.owner, len(handle.blocks))
        self._store.share(handle.blocks)
        return self._hand_out(handle.num_tokens, handle.owner, list(handle.blocks))

    def part(self, handle: KVHandle, start: int, stop: int, *, owner: str = "") -> KVHandle:
        """A handle on blocks `start` to `stop` (exclusive) of another one, all full: a slice to be kept when the
        request ends. Raises BudgetExceeded of the owner, DoubleFree."""
        self._check_held(handle)
        size = self.schema.block_tokens
        assert 0 <= start < stop <= handle.num_tokens // size, "a part is made of full blocks"
        self._check_limit(owner, stop - start)
        blocks = handle.blocks[start:stop]
        self._store.share(blocks)
        return self._hand_out((stop - start) * size, owner, blocks)

    def free(self, handle: KVHandle) -> int:
        """Give it back; how many tokens' room that made (0 where others hold its blocks too). Raises DoubleFree,
        Pinned."""
        self._check_held(handle)
        if handle.pins:
            raise Pinned(where=self._store.where, name=_name(handle), pins=handle.pins)
        del self._handles[handle.handle_id]
        self._charged[handle.owner] -= len(handle.blocks)
        if not self._charged[handle.owner]:
            del self._charged[handle.owner]
        return self._store.give_back(handle.blocks) * self.schema.block_tokens

    def pin(self, handle: KVHandle) -> None:
        """It is not to be freed or written (a transfer reads it) until as many unpins. Raises DoubleFree when it was
        freed."""
        self._check_held(handle)
        handle.pins += 1

    def unpin(self, handle: KVHandle) -> None:
        """One pin less. Raises DoubleFree when it has none."""
        if not handle.pins:
            raise DoubleFree(where=self._store.where, name=f"a pin of {_name(handle)}")
        handle.pins -= 1

    def own(self, handle: KVHandle, index: int) -> int:
        """The handle's block number `index`, for writing: a shared one is exchanged for a copy first, so that nobody
        else sees it. Raises BudgetExceeded when there is no room for the copy, Pinned, DoubleFree."""
        self._check_held(handle)
        if handle.pins:
            raise Pinned(where=self._store.where, name=_name(handle), pins=handle.pins)
        block = handle.blocks[index]
        if self._store.ref_count(block) > 1 and not self._store.blocks_free:
            self._ask_for_room(1)
        handle.blocks[index] = self._store.own(block)
        return handle.blocks[index]

    def write(self, handle: KVHandle, index: int, data: bytes | bytearray | memoryview) -> None:
        """Fill the handle's block number `index`, a shared one in a copy (`own`). Raises as `own` does, and ValueError
        for another length."""
        if len(data) != self._store.block_bytes:
            raise ValueError(f"a block has {self._store.block_bytes} bytes, not {len(data)}")
        self._store.write(self.own(handle, index), data)

    def read(self, handle: KVHandle, index: int) -> memoryview:
        """The bytes of the handle's block number `index`. Raises NotResident when it was not written, DoubleFree."""
        self._check_held(handle)
        return self._store.read(handle.blocks[index])

    def charged_tokens(self, owner: str) -> int:
        """What this owner's handles hold, shared blocks included."""
        return self._charged[owner] * self.schema.block_tokens

    def stats(self) -> PoolStats:
        """What it holds now."""
        held = Counter(block for handle in self._handles.values() for block in handle.blocks)
        size = self._store.block_bytes
        return PoolStats(
            blocks_max=self._store.blocks_max,
            blocks_used=self._store.blocks_used,
            bytes_max=self._store.blocks_max * size,
            bytes_used=self._store.blocks_used * size,
            handles=len(self._handles),
            handles_pinned=sum(handle.pins > 0 for handle in self._handles.values()),
            blocks_shared=sum(count > 1 for count in held.values()),
        )

    def check_integrity(self) -> None:
        """Each block is held as often as it stands in tables, each owner is charged for what it holds, and nobody holds
        more than the budget. AssertionError says what is not so."""
        self._store.check_integrity()
        held: Counter[int] = Counter()
        charged: Counter[str] = Counter()
        for handle in self._handles.values():
            assert len(handle.blocks) == self.schema.blocks(handle.num_tokens), f"{_name(handle)} has its blocks"
            held.update(handle.blocks)
            charged[handle.owner] += len(handle.blocks)
        assert len(held) == self._store.blocks_used, "no block is held by nobody"
        for block, count in held.items():
            assert count == self._store.ref_count(block), f"block {block} is counted as often as it is held"
        assert charged == self._charged, "each owner is charged for what it holds"

    def _take(self, count: int) -> list[int]:
        short = count - self._store.blocks_free
        if short > 0:
            self._ask_for_room(short)
        return self._store.take(count)

    def _ask_for_room(self, blocks: int) -> None:
        if self._make_room is not None:
            with suppress(NoVictim):  # The budget says it then.
                self._make_room(blocks)

    def _hand_out(self, num_tokens: int, owner: str, blocks: list[int]) -> KVHandle:
        self._handles_made += 1
        schema = self.schema
        handle = KVHandle(
            handle_id=self._handles_made, num_tokens=num_tokens, dtype=schema.dtype, layout=schema.layout,
            block_tokens=schema.block_tokens, device=self.device, owner=owner, blocks=blocks,
        )  # fmt: skip
        self._handles[handle.handle_id] = handle
        self._charged[owner] += len(blocks)
        return handle

    def _check_limit(self, owner: str, blocks: int) -> None:
        limit = self._limits.get(owner)
        if limit is not None and blocks and self._charged[owner] + blocks > limit:
            size, free = self.schema.block_tokens, max(0, limit - self._charged[owner])
            raise BudgetExceeded(
                where=f"{self._store.where}, {owner}", asked=blocks * size, free=free * size, limit=limit * size,
                unit="tokens",
            )  # fmt: skip

    def _check_held(self, handle: KVHandle) -> None:
        if self._handles.get(handle.handle_id) is not handle:
            raise DoubleFree(where=self._store.where, name=_name(handle))


def _name(handle: KVHandle) -> str:
    return f"handle {handle.handle_id}"
