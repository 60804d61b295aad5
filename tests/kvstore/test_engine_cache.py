"""A pool and its prefix cache agree on who holds what, whatever requests do."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from events.base import EngineId, SliceId
from events.decisions import Move, MoveReason, TransferOrdered
from events.slice import Tier
from kvstore.engine_cache import EngineCache
from kvstore.errors import BudgetExceeded, DoubleFree, Pinned, TierUnavailable
from kvstore.schema import KVCacheSchema, KVDtype

SCHEMA = KVCacheSchema(layers=1, kv_heads=1, head_dim=1, dtype=KVDtype.FP8, block_tokens=4)
SLICE = 8  # Tokens: two blocks.
ORDER = TransferOrdered(
    order="m1", engine_id=EngineId("e1"), move=Move.DEMOTE, reason=MoveReason.PRESSURE, slices=(SliceId("a"),),
    from_tier=Tier.HBM, to_tier=Tier.DRAM,
)  # fmt: skip


def prompt(path: str) -> tuple[SliceId, ...]:
    return tuple(SliceId(path[: end + 1]) for end in range(len(path)))


def cache(max_tokens: int = 24) -> EngineCache:
    return EngineCache(SCHEMA, max_tokens=max_tokens, slice_tokens=SLICE)


def test_the_example_of_the_module_holds() -> None:
    memory = cache()
    assert memory.alloc("a", 16, slices=prompt("12")) == 0
    memory.free("a", computed=prompt("12"))
    assert memory.pool.tokens_free == 8
    assert memory.alloc("b", 20, slices=prompt("1")) == 1
    assert ["1" in memory.prefixes, "12" in memory.prefixes] == [True, False]
    assert memory.pool.tokens_free == 4
    memory.check_integrity()


def test_a_second_request_reads_the_bytes_of_the_first() -> None:
    memory = cache()
    memory.alloc("a", 12, slices=prompt("1"))
    for index in range(3):
        memory.pool.write(memory.handle("a"), index, bytes([index] * 8))
    assert memory.free("a", computed=prompt("1")) == 4
    assert memory.alloc("b", 16, slices=prompt("1")) == 1
    assert [bytes(memory.pool.read(memory.handle("b"), index))[0] for index in range(2)] == [0, 1]


def test_what_a_running_request_reads_is_not_evicted_for_another() -> None:
    memory = cache()
    memory.alloc("a", 8, slices=prompt("1"))
    memory.free("a", computed=prompt("1"))
    memory.alloc("b", 12, slices=prompt("1"))
    with pytest.raises(BudgetExceeded):
        memory.alloc("c", 16)
    assert "1" in memory.prefixes
    assert "c" not in memory
    memory.check_integrity()


def test_a_refused_request_holds_nothing() -> None:
    memory = cache()
    memory.alloc("a", 8, slices=prompt("1"))
    memory.free("a", computed=prompt("1"))
    with pytest.raises(BudgetExceeded):
        memory.alloc("b", 28, slices=prompt("1"))
    memory.check_integrity()
    assert memory.alloc("c", 24) == 0, "and holds up nobody"


def test_memory_is_given_back_once() -> None:
    memory = cache()
    memory.alloc("a", 8)
    assert memory.free("a") == 8
    with pytest.raises(DoubleFree):
        memory.free("a")


def test_memory_that_a_transfer_reads_is_not_given_back() -> None:
    memory = cache()
    memory.alloc("a", 8, slices=prompt("1"))
    handle = memory.handle("a")
    memory.pool.pin(handle)
    with pytest.raises(Pinned):
        memory.free("a", computed=prompt("1"))
    assert len(memory.prefixes) == 0
    memory.pool.unpin(handle)
    memory.free("a", computed=prompt("1"))
    memory.check_integrity()


def test_a_damaged_slice_is_forgotten_with_what_stands_on_it() -> None:
    memory = cache()
    memory.alloc("a", 24, slices=prompt("123"))
    memory.free("a", computed=prompt("123"))
    assert memory.invalidate(SliceId("12")) == 2
    assert memory.pool.tokens_free == 16
    assert memory.alloc("b", 24, slices=prompt("123")) == 1
    memory.check_integrity()


def test_when_the_engine_is_gone_so_is_all_it_held() -> None:
    memory = cache()
    memory.alloc("a", 8, slices=prompt("1"))
    memory.free("a", computed=prompt("1"))
    memory.alloc("b", 16, slices=prompt("1"))
    memory.pool.pin(memory.handle("b"))
    assert memory.clear() == ["b"]
    assert memory.pool.tokens_free == 24
    assert len(memory.prefixes) == 0
    memory.check_integrity()


def test_moves_are_handed_on_or_refused() -> None:
    carried: list[TransferOrdered] = []
    cancelled: list[str] = []
    memory = EngineCache(
        SCHEMA, max_tokens=24, slice_tokens=SLICE, carry=carried.append, cancel=cancelled.append
    )  # fmt: skip
    memory.migrate(ORDER)
    memory.cancel("m1")
    assert (carried, cancelled) == ([ORDER], ["m1"])
    with pytest.raises(TierUnavailable):
        cache().migrate(ORDER)
    cache().cancel("m1")


class Engine(RuleBasedStateMachine):
    """Requests come, are refused or served, and end; the tokens that they hold are all that a model knows."""

    paths = st.text("12", max_size=3)

    def __init__(self) -> None:
        super().__init__()
        self.memory = cache(max_tokens=40)
        self.running: dict[str, str] = {}
        self.made = 0

    @rule(path=paths, more=st.integers(1, 12))
    def alloc(self, path: str, more: int) -> None:
        self.made += 1
        name = f"r{self.made}"
        try:
            cached = self.memory.alloc(name, len(path) * SLICE + more, slices=prompt(path))
        except BudgetExceeded:
            assert name not in self.memory
            return
        assert cached <= len(path)
        self.running[name] = path

    @rule(which=st.integers(0, 99), computed=st.integers(0, 3))
    def free(self, which: int, computed: int) -> None:
        if self.running:
            name = sorted(self.running)[which % len(self.running)]
            self.memory.free(name, computed=prompt(self.running.pop(name)[:computed]))
            with pytest.raises(DoubleFree):
                self.memory.free(name)

    @rule(path=paths)
    def invalidate(self, path: str) -> None:
        try:
            self.memory.invalidate(SliceId(path))
        except Pinned:
            assert any(other.startswith(path) for other in self.running.values())

    @rule()
    def clear(self) -> None:
        assert sorted(self.memory.clear()) == sorted(self.running)
        self.running.clear()

    @invariant()
    def sound(self) -> None:
        self.memory.check_integrity()
        assert all(name in self.memory for name in self.running)

    def teardown(self) -> None:
        for name in self.running:
            self.memory.free(name)
        assert self.memory.alloc("all", 40) == 0, "when nobody runs, all of it can be had: nothing leaks"


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
