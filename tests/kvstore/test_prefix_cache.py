"""The longest cached prefix is found, children leave before parents, and the order is that of a plain model."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from events.base import SliceId
from kvstore.errors import DoubleFree, NotResident, Pinned
from kvstore.fingerprint import domain_key, fingerprints
from kvstore.prefix_cache import Inserted, PrefixCache

KEY = domain_key(b"secret", "tenant-a")
Prompt = tuple[SliceId, ...]


def prompt(path: str) -> Prompt:
    """Slices named by the path to them: "abc" has a, ab, abc. Names that begin alike are a common prefix."""
    return tuple(SliceId(path[: end + 1]) for end in range(len(path)))


def paths(slices: Sequence[SliceId]) -> Callable[[int, int], list[str]]:
    """What is kept for a slice: its name, in capitals."""
    return lambda start, stop: [slice_id.upper() for slice_id in slices[start:stop]]


def insert(cache: PrefixCache[str], path: str) -> Inserted[str]:
    slices = prompt(path)
    return cache.insert(slices, paths(slices))


def filled(*names: str, most: int = 10, lru: bool = True) -> PrefixCache[str]:
    cache: PrefixCache[str] = PrefixCache(max_cached_blocks=most, enable_lru=lru)
    for path in names:
        insert(cache, path)
    cache.check_integrity()
    return cache


@pytest.mark.parametrize(
    ("cached", "asked", "found"),
    [((), "abc", 0), (("abc",), "abc", 3), (("abc",), "abcd", 3), (("abc",), "abx", 2), (("abc",), "x", 0),
     (("abc", "abd"), "abdef", 3), (("abc",), "", 0)],
)  # fmt: skip
def test_the_longest_cached_prefix_is_found(cached: tuple[str, ...], asked: str, found: int) -> None:
    cache = filled(*cached)
    assert cache.longest_prefix(prompt(asked)) == cache.lookup(prompt(asked)) == found


def test_what_is_kept_for_a_slice_comes_back() -> None:
    cache = filled("abc")
    assert [cache.get(slice_id) for slice_id in prompt("abc")] == ["A", "AB", "ABC"]
    with pytest.raises(NotResident):
        cache.get(SliceId("x"))


def test_a_prompt_is_cached_once() -> None:
    cache = filled("abc")
    assert insert(cache, "abcde") == (3, 2, [])
    assert insert(cache, "abcde") == (5, 0, [])
    assert len(cache) == 5


def test_another_request_reuses_what_one_has_left_and_the_rate_says_so() -> None:
    cache: PrefixCache[int] = PrefixCache(max_cached_blocks=8, block_size=4)
    first = cache.compute_block_hashes(list(range(17)), key=KEY)
    assert first == fingerprints(list(range(17)), key=KEY, slice_tokens=4)
    second = cache.compute_block_hashes([*range(8), *range(50, 58)], key=KEY)
    assert cache.lookup(first) == 0
    cache.insert(first, range)
    assert cache.lookup(second) == 2
    assert [cache.get(slice_id) for slice_id in second[:2]] == [0, 1]
    assert cache.get_stats() == {
        "cached_blocks": 4, "max_cached_blocks": 8, "held_blocks": 0, "lookups": 2, "blocks_asked": 8, "blocks_hit": 2,
        "hit_rate": 0.25, "inserted": 4, "evicted": 0, "invalidated": 0,
    }  # fmt: skip


def test_the_example_of_the_module_holds() -> None:
    cache = filled("abc", "abd", most=4)
    cache.lookup(prompt("abd"))
    assert [name for name, _ in insert(cache, "x").evicted] == ["abc"]


@pytest.mark.parametrize(("lru", "gone"), [(True, ["y", "abc", "ab"]), (False, ["abc", "ab", "a"])])
def test_children_leave_before_parents_and_a_use_counts_for_lru_alone(lru: bool, gone: list[str]) -> None:
    cache = filled("abc", "y", lru=lru)
    cache.lookup(prompt("abc"))
    assert [name for name, _ in cache.evict(3)] == gone
    cache.check_integrity()


def test_a_used_parent_stays_longer_than_what_was_used_before_it() -> None:
    cache = filled("ab", "xy")
    cache.lookup(prompt("a"))
    assert [name for name, _ in cache.evict(9)] == ["ab", "xy", "x", "a"]


def test_a_parent_remembers_the_use_of_a_child_that_went_before_another() -> None:
    cache = filled("ab", "ac", "z")
    cache.lookup(prompt("ac"))
    for name in ("ab", "z"):
        cache.hold(SliceId(name))
    assert [name for name, _ in cache.evict(1)] == ["ac"]
    for name in ("ab", "z"):
        cache.let_go(SliceId(name))
    assert [name for name, _ in cache.evict(9)] == ["ab", "z", "a"]


def test_what_is_held_stays_and_so_does_what_it_stands_on() -> None:
    cache = filled("abc", "x")
    cache.hold(SliceId("ab"))
    assert [name for name, _ in cache.evict(9)] == ["abc", "x"]
    cache.check_integrity()
    cache.let_go(SliceId("ab"))
    assert [name for name, _ in cache.evict(9)] == ["ab", "a"]
    cache.check_integrity()


def test_a_hold_is_let_go_once() -> None:
    cache = filled("a")
    cache.hold(SliceId("a"))
    cache.let_go(SliceId("a"))
    with pytest.raises(DoubleFree):
        cache.let_go(SliceId("a"))
    with pytest.raises(NotResident):
        cache.hold(SliceId("b"))


@pytest.mark.parametrize(
    ("cached", "held", "path", "result", "left"),
    [
        (("abc",), "", "xyz", (0, 3, 3), "xyz"),
        (("abc",), "", "abcdef", (3, 0, 0), "abc"),  # Its own prefix makes no room for it.
        (("ab", "x"), "", "abcdef", (2, 1, 1), "abc"),
        (("ab", "x"), "x", "abcdef", (2, 0, 0), "ab"),
        ((), "", "abcdef", (0, 3, 0), "abc"),
    ],
)
def test_what_finds_no_room_is_left_out_from_the_end(
    cached: tuple[str, ...], held: str, path: str, result: tuple[int, int, int], left: str
) -> None:
    cache = filled(*cached, most=3)
    if held:
        cache.hold(SliceId(held))
    inserted = insert(cache, path)
    assert (inserted.known, inserted.added, len(inserted.evicted)) == result
    assert cache.longest_prefix(prompt(path)) == len(left)
    cache.check_integrity()


def test_an_invalid_slice_takes_with_it_what_stands_on_it() -> None:
    cache = filled("abcd", "abx", "y")
    gone = cache.invalidate(SliceId("ab"))
    assert sorted(gone) == [("ab", "AB"), ("abc", "ABC"), ("abcd", "ABCD"), ("abx", "ABX")]
    assert gone[-1][0] == "ab", "children before parents"
    assert cache.longest_prefix(prompt("abcd")) == 1
    assert cache.invalidate(SliceId("ab")) == []
    cache.check_integrity()


def test_a_parent_remembers_the_use_of_a_child_that_was_invalid() -> None:
    cache = filled("ab", "z")
    cache.lookup(prompt("ab"))
    cache.invalidate(SliceId("ab"))
    assert [name for name, _ in cache.evict(9)] == ["z", "a"]


def test_nothing_is_invalidated_while_somebody_reads_a_part_of_it() -> None:
    cache = filled("abc")
    cache.hold(SliceId("abc"))
    with pytest.raises(Pinned) as error:
        cache.invalidate(SliceId("a"))
    assert (error.value.name, len(cache)) == ("abc", 3)


def test_all_of_it_goes_when_the_engine_goes() -> None:
    cache = filled("abc", "x")
    cache.hold(SliceId("abc"))
    assert sorted(cache.clear()) == [("a", "A"), ("ab", "AB"), ("abc", "ABC"), ("x", "X")]
    assert len(cache) == 0
    insert(cache, "ab")
    cache.check_integrity()


class Model:
    """The same in the plainest way: every slice knows when it, or what stands on it, was used last."""

    def __init__(self, most: int, lru: bool) -> None:
        self.most, self.lru, self.now = most, lru, 0
        self.used: dict[str, int] = {}
        self.holds: dict[str, int] = {}

    def found(self, path: str) -> int:
        return sum(name in self.used for name in prompt(path))

    def use(self, path: str) -> None:
        self.now += 1
        for name in prompt(path):
            self.used[name] = self.now

    def victim(self, spared: str) -> str | None:
        may_go = [
            name for name in self.used
            if name != spared and name not in self.holds
            and not any(other != name and other.startswith(name) for other in self.used)
        ]  # fmt: skip
        return min(may_go, key=lambda name: self.used[name], default=None)

    def evict(self, count: int, spared: str = "") -> list[str]:
        gone: list[str] = []
        while len(gone) < count and (name := self.victim(spared)) is not None:
            del self.used[name]
            gone.append(name)
        return gone

    def insert(self, path: str) -> tuple[int, list[str]]:
        known = self.found(path)
        gone = self.evict(len(self.used) + len(path) - known - self.most, path[:known])
        kept = path[: known + min(len(path) - known, self.most - len(self.used))]
        if kept and (self.lru or len(kept) > known):
            self.use(kept)
        return len(kept) - known, gone


class Cache(RuleBasedStateMachine):
    """The cache beside its model, with few names so that they meet."""

    names = st.text("ab", min_size=1, max_size=5)

    @initialize(most=st.integers(1, 9), lru=st.booleans())
    def begin(self, most: int, lru: bool) -> None:
        self.cache: PrefixCache[str] = PrefixCache(max_cached_blocks=most, enable_lru=lru)
        self.model = Model(most, lru)
        self.values: set[str] = set()

    def took_out(self, gone: list[tuple[SliceId, str]]) -> list[str]:
        for name, value in gone:
            assert value == name.upper(), "it comes with what was kept for it"
            self.values.remove(value)
        return [name for name, _ in gone]

    @rule(path=names)
    def insert(self, path: str) -> None:
        inserted = insert(self.cache, path)
        added, gone = self.model.insert(path)
        assert inserted.added == added
        assert self.took_out(inserted.evicted) == gone
        self.values |= {name.upper() for name in prompt(path)[inserted.known : inserted.known + added]}

    @rule(path=names)
    def lookup(self, path: str) -> None:
        found = self.cache.lookup(prompt(path))
        assert found == self.model.found(path)
        if found and self.model.lru:
            self.model.use(path[:found])

    @rule(count=st.integers(0, 4))
    def evict(self, count: int) -> None:
        assert self.took_out(self.cache.evict(count)) == self.model.evict(count)

    @rule(name=names)
    def hold(self, name: str) -> None:
        if name in self.model.used:
            self.cache.hold(SliceId(name))
            self.model.holds[name] = self.model.holds.get(name, 0) + 1
        else:
            with pytest.raises(NotResident):
                self.cache.hold(SliceId(name))

    @rule(name=names)
    def let_go(self, name: str) -> None:
        if name not in self.model.holds:
            with pytest.raises(DoubleFree if name in self.model.used else NotResident):
                self.cache.let_go(SliceId(name))
            return
        self.cache.let_go(SliceId(name))
        self.model.holds[name] -= 1
        if not self.model.holds[name]:
            del self.model.holds[name]

    @rule(name=names)
    def invalidate(self, name: str) -> None:
        below = {other for other in self.model.used if other.startswith(name)} if name in self.model.used else set()
        if below & set(self.model.holds):
            with pytest.raises(Pinned):
                self.cache.invalidate(SliceId(name))
            return
        assert sorted(self.took_out(self.cache.invalidate(SliceId(name)))) == sorted(below)
        for other in below:
            del self.model.used[other]

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check_integrity()
        assert {name for name in self.model.used if name in self.cache} == set(self.model.used)
        assert {slice_id.upper() for slice_id in self.model.used} == self.values, "no value is lost, none comes twice"
        assert len(self.cache) == len(self.model.used) <= self.model.most


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
