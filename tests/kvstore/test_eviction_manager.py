"""The first of a ranking goes first, what is pinned does not go, and sizes add up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import DoubleFree, NotResident, NoVictim, Pinned
from kvstore.eviction_manager import EvictionKind, EvictionManager, Rank, Use


def kept(rank: EvictionKind | Rank = EvictionKind.LRU, **sizes: int) -> EvictionManager:
    manager = EvictionManager(rank, where="dram")
    for name, size in sizes.items():
        manager.add(name, size)
    return manager


def test_the_example_of_the_module_holds() -> None:
    manager = kept(a=4, b=4, c=4)
    manager.touch("a")
    manager.pin("b")
    assert manager.evict(5) == ["c", "a"]
    with pytest.raises(NoVictim) as error:
        manager.evict(1)
    assert (error.value.asked, error.value.evictable) == (1, 0)
    assert (manager.size, manager.evictable, len(manager)) == (4, 0, 1)


@pytest.mark.parametrize(("kind", "gone"), [(EvictionKind.LRU, ["b", "c"]), (EvictionKind.FIFO, ["a", "b"])])
def test_lru_goes_by_use_and_fifo_by_coming(kind: EvictionKind, gone: list[str]) -> None:
    manager = kept(kind, a=1, b=1, c=1)
    manager.touch("a")
    assert manager.evict(2) == gone


@pytest.mark.parametrize(
    ("rank", "gone"),
    [(lambda use: -use.size, ["big", "mid", "low"]), (lambda use: use.uses, ["big", "low", "mid"])],
)
def test_any_ranking_can_be_passed_in(rank: Rank, gone: list[str]) -> None:
    manager = kept(rank, low=1, mid=2, big=3)
    for name in ("low", "mid", "mid"):
        manager.touch(name)
    assert manager.evict(6) == gone


def test_equals_go_in_the_order_in_which_they_were_ranked() -> None:
    manager = kept(lambda use: use.size, a=1, b=1, c=1)
    manager.touch("a")
    assert manager.evict(3) == ["b", "c", "a"]


def test_each_that_goes_is_told_when_all_are_out() -> None:
    told: list[tuple[str, int, int]] = []
    manager = EvictionManager(on_evict=lambda name, size: told.append((name, size, len(manager))))
    manager.add("a", 3)
    manager.add("b", 4)
    manager.remove("a")
    manager.add("c", 5)
    assert manager.evict(6) == ["b", "c"]
    assert told == [("b", 4, 0), ("c", 5, 0)]


def test_what_is_to_be_kept_this_time_keeps_its_place() -> None:
    manager = kept(a=1, b=1, c=1)
    assert manager.evict(1, keep=["a"]) == ["b"]
    assert manager.evict(1) == ["a"]
    with pytest.raises(NoVictim):
        manager.evict(1, keep=["c", "nobody"])


@pytest.mark.parametrize("asked", [0, -1])
def test_nothing_goes_for_nothing(asked: int) -> None:
    assert kept(a=1).evict(asked) == []


def test_what_is_pinned_stays_until_it_is_unpinned_as_often() -> None:
    manager = kept(a=2)
    manager.pin("a")
    manager.pin("a")
    manager.unpin("a")
    with pytest.raises(Pinned) as error:
        manager.remove("a")
    assert error.value.pins == 1
    manager.touch("a")
    manager.unpin("a")
    with pytest.raises(DoubleFree):
        manager.unpin("a")
    assert manager.evict(2) == ["a"]


def test_what_is_not_kept_is_said_to_be_not_resident() -> None:
    manager = kept()
    for call in (manager.touch, manager.remove, manager.pin, manager.unpin):
        with pytest.raises(NotResident):
            call("a")


def test_many_uses_leave_no_more_entries_than_things() -> None:
    manager = kept(a=1, b=1)
    for _ in range(10_000):
        manager.touch("a")
    assert len(manager._heap) <= 2 * 2 + 65
    assert manager.evict(2) == ["b", "a"]


RANKS: list[Rank | EvictionKind] = [EvictionKind.LRU, EvictionKind.FIFO, lambda use: -use.uses, lambda use: use.size]
WORDS = st.sampled_from(["add", "add", "touch", "remove", "pin", "unpin", "evict"])
STEPS = st.lists(st.tuples(WORDS, st.sampled_from("abcdef"), st.integers(0, 9)), max_size=60)


class Model:
    """A list that is sorted for every eviction."""

    def __init__(self, rank: Rank) -> None:
        self.rank, self.now = rank, 0
        self.kept: dict[str, Use] = {}

    def refusal(self, what: str, name: str, size: int) -> type[Exception] | None:
        use = self.kept.get(name)
        if what == "evict":
            return NoVictim if size > self.evictable() else None
        if use is None:
            return NotResident if what != "add" else None
        if what == "add":
            return AssertionError
        if what == "remove" and use.pins:
            return Pinned
        return DoubleFree if what == "unpin" and not use.pins else None

    def evictable(self) -> int:
        return sum(use.size for use in self.kept.values() if not use.pins)

    def step(self, what: str, name: str, size: int) -> list[str]:
        self.now += 1
        match what:
            case "add":
                self.kept[name] = Use(name=name, size=size, stored=self.now, used=self.now, ranked=self.now)
            case "touch":
                use = self.kept[name]
                use.used = use.ranked = self.now
                use.uses += 1
            case "remove":
                del self.kept[name]
            case "pin":
                self.kept[name].pins += 1
            case "unpin":
                self.kept[name].pins -= 1
                if not self.kept[name].pins:
                    self.kept[name].ranked = self.now
            case _:
                return self.evict(size)
        return []

    def evict(self, size: int) -> list[str]:
        order = sorted(
            (use for use in self.kept.values() if not use.pins), key=lambda use: (self.rank(use), use.ranked)
        )
        gone: list[str] = []
        for use in order:
            if size <= 0:
                break
            size -= self.kept.pop(use.name).size
            gone.append(use.name)
        return gone


def apply(manager: EvictionManager, what: str, name: str, size: int) -> list[str]:
    match what:
        case "add":
            manager.add(name, size)
        case "evict":
            return manager.evict(size)
        case _:
            getattr(manager, what)(name)
    return []


@pytest.mark.parametrize("rank", RANKS)
@settings(deadline=None)
@given(steps=STEPS)
def test_what_goes_is_what_a_sorted_list_says(rank: Rank | EvictionKind, steps: list[tuple[str, str, int]]) -> None:
    manager = EvictionManager(rank)
    model = Model(manager._rank)
    for step in steps:
        refusal = model.refusal(*step)
        if refusal is None:
            assert apply(manager, *step) == model.step(*step)
        else:
            with pytest.raises(refusal):
                apply(manager, *step)
        assert manager.size == sum(use.size for use in model.kept.values())
        assert manager.evictable == model.evictable()
