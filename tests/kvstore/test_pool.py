"""Handles hold blocks under budgets: no leak, no double free, no budget exceeded, whatever the order of calls."""

from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from kvstore.errors import BudgetExceeded, DoubleFree, KVError, NotResident, Pinned
from kvstore.pool import KVHandle, KVPool
from kvstore.schema import KVCacheSchema, KVDtype, KVLayout

SCHEMA = KVCacheSchema(layers=1, kv_heads=1, head_dim=1, dtype=KVDtype.FP8, block_tokens=4)  # 8 bytes a block.
BLOCK = b"12345678"


def pool(max_tokens: int = 16) -> KVPool:
    return KVPool(SCHEMA, max_tokens=max_tokens)


def test_a_handle_says_what_it_holds() -> None:
    handle = KVPool(SCHEMA, max_tokens=16, device="cuda:0").alloc(6, owner="acme")
    assert (handle.handle_id, handle.num_tokens, handle.dtype, handle.layout) == (1, 6, KVDtype.FP8, KVLayout.LBNHC)
    assert (handle.device, handle.owner, handle.blocks) == ("cuda:0", "acme", [0, 1])
    assert handle.slot_mapping(2, 6) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("budget", "tokens"), [({"max_tokens": 18}, 16), ({"max_bytes": 39}, 16), ({"max_tokens": 3}, 0)]
)
def test_a_budget_is_in_whole_blocks(budget: dict[str, int], tokens: int) -> None:
    assert KVPool(SCHEMA, **budget).tokens_max == tokens


def test_a_budget_is_kept_and_said() -> None:
    memory = pool()
    held = memory.alloc(9)
    with pytest.raises(BudgetExceeded) as error:
        memory.alloc(5)
    assert (error.value.asked, error.value.free, error.value.limit) == (2, 1, 4)
    assert memory.free(held) == 12
    assert memory.alloc(16).blocks == [0, 1, 2, 3]


def test_a_handle_is_freed_once() -> None:
    memory = pool()
    handle = memory.alloc(4)
    memory.free(handle)
    for call in (
        memory.free,
        memory.fork,
        memory.pin,
        lambda held: memory.grow(held, 1),
        lambda held: memory.own(held, 0),
    ):
        with pytest.raises(DoubleFree):
            call(handle)
    other = pool().alloc(4)
    with pytest.raises(DoubleFree):
        memory.free(other)
    memory.check_integrity()


def test_what_is_pinned_is_neither_freed_nor_written() -> None:
    memory = pool()
    handle = memory.alloc(4)
    memory.write(handle, 0, BLOCK)
    memory.pin(handle)
    memory.pin(handle)
    memory.unpin(handle)
    with pytest.raises(Pinned):
        memory.free(handle)
    with pytest.raises(Pinned):
        memory.write(handle, 0, b"abcdefgh")
    assert memory.stats().handles_pinned == 1
    memory.unpin(handle)
    with pytest.raises(DoubleFree):
        memory.unpin(handle)
    assert bytes(memory.read(handle, 0)) == BLOCK
    assert memory.free(handle) == 4


def test_a_handle_grows_by_whole_blocks_only_when_it_must() -> None:
    memory = pool()
    handle = memory.alloc(3)
    memory.grow(handle, 1)
    assert (handle.num_tokens, handle.blocks) == (4, [0])
    memory.grow(handle, 1)
    assert (handle.num_tokens, handle.blocks) == (5, [0, 1])
    with pytest.raises(BudgetExceeded):
        memory.grow(handle, 100)
    assert (handle.num_tokens, handle.blocks) == (5, [0, 1])
    memory.check_integrity()


def test_a_fork_costs_nothing_until_one_of_the_two_writes() -> None:
    memory = pool()
    one = memory.alloc(8)
    memory.write(one, 0, BLOCK)
    two = memory.fork(one)
    assert memory.tokens_free == 8
    memory.write(two, 0, b"abcdefgh")
    assert memory.tokens_free == 4
    assert (bytes(memory.read(one, 0)), bytes(memory.read(two, 0))) == (BLOCK, b"abcdefgh")
    assert one.blocks[1] == two.blocks[1]
    assert memory.stats().blocks_shared == 1
    memory.check_integrity()


def test_a_part_keeps_its_blocks_when_the_whole_is_freed() -> None:
    memory = pool()
    whole = memory.alloc(14)
    part = memory.part(whole, 1, 3)
    assert (part.num_tokens, part.blocks) == (8, [1, 2])
    assert memory.free(whole) == 8
    more = memory.alloc(12, shared=part.blocks)
    assert more.blocks[:2] == [1, 2]
    assert memory.free(part) == 0
    assert memory.free(more) == 12
    memory.check_integrity()


def test_blocks_that_nobody_holds_cannot_be_shared() -> None:
    memory = pool()
    with pytest.raises(NotResident):
        memory.alloc(8, shared=[2])
    assert memory.tokens_free == 16


def test_an_owner_has_a_limit_of_its_own_and_pays_for_what_it_shares() -> None:
    memory = pool()
    memory.set_limit("acme", 8)
    one = memory.alloc(4, owner="acme")
    two = memory.fork(one)
    for call in (
        lambda: memory.alloc(1, owner="acme"),
        lambda: memory.fork(one),
        lambda: memory.grow(one, 1),
        lambda: memory.part(one, 0, 1, owner="acme"),
    ):
        with pytest.raises(BudgetExceeded) as error:
            call()
        assert (error.value.where, error.value.free, error.value.limit) == ("pool cpu, acme", 0, 8)
    assert memory.charged_tokens("acme") == 8
    memory.alloc(8, owner="other")
    memory.free(two)
    memory.set_limit("acme", 0)
    memory.alloc(4, owner="acme")
    memory.check_integrity()


def test_room_is_made_before_a_budget_is_exceeded() -> None:
    kept: list[KVHandle] = []
    asked: list[int] = []

    def make_room(blocks: int) -> None:
        asked.append(blocks)
        memory.free(kept.pop())

    memory = KVPool(SCHEMA, max_tokens=16, make_room=make_room)
    kept += [memory.alloc(8), memory.alloc(8)]
    shared = kept[0].blocks[:1]
    held = memory.alloc(8, shared=shared)
    assert (asked, held.blocks[:1], memory.tokens_free) == ([1], shared, 4)
    memory.check_integrity()


def test_room_is_made_for_the_copy_of_a_shared_block() -> None:
    memory = KVPool(SCHEMA, max_tokens=16, make_room=lambda _: memory.free(kept))
    kept, held = memory.alloc(8), memory.alloc(8)
    fork = memory.fork(held)
    memory.write(fork, 0, BLOCK)
    assert (fork.blocks[0] != held.blocks[0], memory.tokens_free) == (True, 4)
    memory.check_integrity()


class Pool(RuleBasedStateMachine):
    """A pool beside a model of it: a list of (handle, contents of its blocks)."""

    handles: Bundle[KVHandle] = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.pool = pool(max_tokens=24)
        self.pool.set_limit("small", 8)
        self.contents: dict[int, list[bytes | None]] = {}
        self.written = 0

    def hold(self, handle: KVHandle, contents: list[bytes | None]) -> KVHandle:
        assert len(handle.blocks) == len(contents)
        self.contents[handle.handle_id] = contents
        return handle

    @rule(target=handles, tokens=st.integers(1, 14), owner=st.sampled_from(["", "big", "small"]))
    def alloc(self, tokens: int, owner: str) -> object:
        blocks = -(-tokens // 4)
        free, charged = self.pool.tokens_free, self.pool.charged_tokens(owner)
        try:
            handle = self.pool.alloc(tokens, owner=owner)
        except BudgetExceeded:
            assert blocks * 4 > free or (owner == "small" and charged + blocks * 4 > 8), "refused only when it must be"
            return multiple()
        return self.hold(handle, [None] * blocks)

    @rule(target=handles, handle=handles)
    def fork(self, handle: KVHandle) -> object:
        try:
            twin = self.pool.fork(handle)
        except BudgetExceeded:
            assert handle.owner == "small"
            return multiple()
        return self.hold(twin, list(self.contents[handle.handle_id]))

    @rule(target=handles, handle=handles, data=st.data())
    def part(self, handle: KVHandle, data: st.DataObject) -> object:
        full = handle.num_tokens // 4
        if not full:
            return multiple()
        start = data.draw(st.integers(0, full - 1))
        stop = data.draw(st.integers(start + 1, full))
        return self.hold(self.pool.part(handle, start, stop), self.contents[handle.handle_id][start:stop])

    @rule(target=handles, handle=handles, tokens=st.integers(1, 6))
    def alloc_on_a_shared_prefix(self, handle: KVHandle, tokens: int) -> object:
        full = handle.num_tokens // 4
        try:
            more = self.pool.alloc(full * 4 + tokens, shared=handle.blocks[:full])
        except BudgetExceeded:
            return multiple()
        return self.hold(more, self.contents[handle.handle_id][:full] + [None] * (len(more.blocks) - full))

    @rule(handle=handles, tokens=st.integers(0, 9))
    def grow(self, handle: KVHandle, tokens: int) -> None:
        with suppress(BudgetExceeded):
            self.pool.grow(handle, tokens)
        contents = self.contents[handle.handle_id]
        contents += [None] * (len(handle.blocks) - len(contents))

    @rule(handle=handles, data=st.data())
    def write(self, handle: KVHandle, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(handle.blocks) - 1))
        self.written += 1
        block = self.written.to_bytes(8, "big")
        try:
            self.pool.write(handle, index, block)
        except Pinned:
            assert handle.pins
        except BudgetExceeded:
            assert self.pool.tokens_free == 0
        else:
            self.contents[handle.handle_id][index] = block

    @rule(handle=handles)
    def pin(self, handle: KVHandle) -> None:
        self.pool.pin(handle)

    @rule(handle=handles)
    def unpin(self, handle: KVHandle) -> None:
        pins = handle.pins
        try:
            self.pool.unpin(handle)
        except DoubleFree:
            assert not pins

    @rule(target=handles, handle=consumes(handles))
    def free(self, handle: KVHandle) -> object:
        try:
            self.pool.free(handle)
        except Pinned:
            assert handle.pins
            return handle
        del self.contents[handle.handle_id]
        for again in (self.pool.free, self.pool.fork):
            with pytest.raises(DoubleFree):
                again(handle)
        return multiple()

    @invariant()
    def sound(self) -> None:
        self.pool.check_integrity()
        stats = self.pool.stats()
        assert stats.blocks_used <= stats.blocks_max == 6
        assert stats.handles == len(self.contents), "no handle is lost"
        assert self.pool.charged_tokens("small") <= 8, "no budget is exceeded"

    @invariant()
    def everybody_reads_what_it_wrote(self) -> None:
        for handle_id, contents in self.contents.items():
            handle = self.pool._handles[handle_id]
            for index, block in enumerate(contents):
                if block is not None:
                    assert bytes(self.pool.read(handle, index)) == block
                else:
                    with pytest.raises(KVError):
                        self.pool.read(handle, index)

    def teardown(self) -> None:
        for handle in list(self.pool._handles.values()):
            while handle.pins:
                self.pool.unpin(handle)
            self.pool.free(handle)
        assert self.pool.stats().blocks_used == 0, "nothing leaks"


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
