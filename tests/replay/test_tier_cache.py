"""What leaves a simulated engine's slower tier: children before their parents, in the directive's order, and never what
is kept or being read. And its links: one after another, in a known time."""

from collections.abc import Iterator

import pytest

from events.base import NS_PER_S, EngineId, SliceId
from events.decisions import EngineDirected
from events.slice import SlicesRemoved, SlicesStored, Tier
from replay.engines.changes import SAID_MAX, Changes
from replay.engines.links import FAILED, FS_PER_S, NOT_WANTED, OVERDUE, Link, Links, Transfer
from replay.engines.tier_cache import NO_ROOM, SliceAt, TierCache
from replay.engines.tiers import Tiers, TierSizes, Wish
from replay.faults import FINE, Fate, TransferFaults, fates

SIZE = 10


def at(name: str, parent: str | None = None, depth: int = 0) -> SliceAt:
    return SliceAt(name, parent, depth, 1, SIZE, depth + 1)


def cache(*names: str, slots: int = 3) -> TierCache:
    """Holds slices that each begin a prompt, stored one nanosecond after another."""
    one = TierCache(Tier.DRAM, slots * SIZE, lambda _blocks, _depth: 1)
    for now_ns, name in enumerate(names, 1):
        assert not one.reserve(at(name))
        one.settle(at(name), now_ns, arrived=True)
    return one


def put(one: TierCache, slice_at: SliceAt, now_ns: int = 100) -> str:
    why = one.reserve(slice_at)
    if not why:
        one.settle(slice_at, now_ns, arrived=True)
    one.check_integrity()
    return why


def there(one: TierCache, names: str = "abcdxyz") -> str:
    return "".join(name for name in names if name in one)


def directed(one: TierCache, kind: str = "lru", **slices: str) -> None:
    named = {field: tuple(SliceId(name) for name in names) for field, names in slices.items()}
    one.direct(EngineDirected(engine_id=EngineId("e1"), version=1, eviction=kind, protect_ppm=0, **named))  # type: ignore[arg-type]
    one.check_integrity()


def test_the_slice_used_longest_ago_goes_first() -> None:
    one = cache("a", "b", "c")
    one.touch(["a"], 50, length=1)
    assert put(one, at("x")) == ""
    assert there(one) == "acx"


def test_children_go_before_their_parents() -> None:
    one = cache("a")
    put(one, at("b", "a", 1), 2)
    put(one, at("c", "b", 2), 3)
    put(one, at("x"))
    assert there(one) == "abx", "c is the newest, and the only one with none under it"
    assert not one.drop("a")
    assert one.drop("b")
    assert one.drop("a")
    one.check_integrity()


def test_a_slice_can_come_before_the_one_before_it() -> None:
    one = cache()
    put(one, at("b", "a", 1))
    put(one, at("a"))
    assert not one.drop("a"), "b stands under it"
    assert one.drop("b")


@pytest.mark.parametrize(
    ("slices", "left"),
    [({"hot": "a"}, "acx"), ({"pinned": "ab"}, "abx"), ({"needed": "a", "hot": "b"}, "abx"), ({}, "bcx")],
)
def test_what_is_hot_goes_last_and_what_is_kept_stays(slices: dict[str, str], left: str) -> None:
    one = cache("a", "b", "c")
    directed(one, **slices)
    assert put(one, at("x")) == ""
    assert there(one) == left


def test_where_all_is_kept_or_read_there_is_no_room_and_nothing_changes() -> None:
    one = cache("a", "b", "c")
    directed(one, pinned="ab")
    one.hold("c")
    assert put(one, at("x")) == NO_ROOM
    assert there(one) == "abc"
    one.release("c")
    directed(one)
    assert put(one, at("x")) == ""
    assert there(one) == "bcx", "what was pinned is not any more"


def test_room_for_what_does_not_arrive_is_given_back() -> None:
    one = cache("a")
    assert one.reserve(at("b", "a", 1)) == ""
    assert one.bytes_used == 2 * SIZE
    one.settle(at("b", "a", 1), 5, arrived=False)
    one.check_integrity()
    assert (one.bytes_used, there(one)) == (SIZE, "a")


def test_a_change_of_kind_ranks_anew() -> None:
    one = cache("a", "b", "c")
    one.touch(["a"], 50, length=1)
    directed(one, "fifo")
    put(one, at("x"))
    assert there(one) == "bcx", "a came first, whenever it was used"


def test_what_came_and_left_is_not_mentioned() -> None:
    changes = Changes()
    for name in ("a", "b"):
        changes.stored(name, SIZE)
    changes.removed("a")
    assert changes.take(EngineId("e1"), Tier.SSD) == [
        SlicesStored(engine_id=EngineId("e1"), tier=Tier.SSD, slices=(SliceId("b"),), slice_bytes=SIZE)
    ]
    changes.removed("b")
    changes.stored("b", SIZE)
    assert changes.take(EngineId("e1"), Tier.SSD) == []
    for number in range(SAID_MAX + 1):
        changes.removed(str(number))
    said = changes.take(EngineId("e1"), Tier.SSD)
    assert [len(fact.slices) for fact in said if isinstance(fact, SlicesRemoved)] == [SAID_MAX, 1]


# Links.


class Road:
    """A link on which 10 bytes take a second, and when what was sent over it was there."""

    def __init__(self, *drawn: Fate) -> None:
        self.link = Link(10)
        self.links = Links(now_fs=0, fates=self._fates(drawn))
        self.ended: dict[str, tuple[int, str]] = {}

    @staticmethod
    def _fates(drawn: tuple[Fate, ...]) -> Iterator[Fate]:
        yield from drawn
        while True:
            yield FINE

    def send(self, name: str, *, urgent: bool = False, wanted: bool = True, again: bool = False) -> Transfer:
        transfer = Transfer(
            10, urgent=urgent, is_wanted=lambda: wanted, begin=lambda: "",
            end=lambda why: self.ended.update({name: (self.links.now_fs // FS_PER_S, why)}),
        )  # fmt: skip
        self.links.send(self.link, transfer, again=again)
        return transfer

    def arrived(self) -> dict[str, tuple[int, str]]:
        while (next_fs := self.links.next_fs()) is not None:
            self.links.advance(next_fs)
        return self.ended


def test_one_after_another_and_what_is_waited_for_first() -> None:
    road = Road()
    late = [road.send("a"), road.send("b"), road.send("c"), road.send("d", urgent=True)][2]
    assert road.link.bytes_before(urgent=True) == 20, "the one on its way, and the urgent one"
    assert road.link.bytes_before(urgent=False) == 40
    road.link.hurry(late)
    assert road.arrived() == {"a": (1, ""), "d": (2, ""), "c": (3, ""), "b": (4, "")}
    assert road.link.waiting_bytes == 0


def test_what_nobody_wants_any_more_takes_no_time() -> None:
    road = Road()
    road.send("a")
    road.send("b", wanted=False)
    road.send("c")
    assert road.link.bytes_before(urgent=False) == 20
    assert road.arrived() == {"a": (1, ""), "b": (1, NOT_WANTED), "c": (2, "")}


def test_what_fails_has_taken_its_time_and_what_stalls_lets_others_pass() -> None:
    road = Road(
        Fate(fails=True, stall_ns=0),
        Fate(fails=False, stall_ns=NS_PER_S // 2),
        Fate(fails=False, stall_ns=NS_PER_S * 9),
    )
    for name in "abcd":
        road.send(name)
    assert road.arrived() == {"a": (1, FAILED), "b": (2, ""), "c": (2 + OVERDUE, FAILED), "d": (4, "")}
    assert road.link.failures == 2


def test_what_is_sent_again_goes_before_what_waits() -> None:
    road = Road()
    for name in "ab":
        road.send(name)
    road.send("c", again=True)
    assert road.arrived() == {"a": (1, ""), "c": (2, ""), "b": (3, "")}


def test_fates_are_drawn_by_seed_and_engine() -> None:
    faults = TransferFaults(seed=1, failing_ppm=100_000, stalling_ppm=50_000)

    def first(count: int, name: str) -> list[Fate]:
        drawn = fates(faults, EngineId(name))
        return [next(drawn) for _ in range(count)]

    assert first(50, "e1") == first(50, "e1") != first(50, "e2")
    many = first(10_000, "e1")
    assert 900 < sum(fate.fails for fate in many) < 1_100
    assert 400 < sum(fate.stall_ns > 0 for fate in many) < 600
    assert not any(fate.fails and fate.stall_ns for fate in many)


def test_what_comes_from_the_other_side_already_is_hurried_there() -> None:
    sizes = TierSizes(dram_bytes=9 * SIZE, ssd_bytes=9 * SIZE, dram_bytes_per_s=SIZE, ssd_read_bytes_per_s=SIZE)
    tiers = Tiers(sizes, cost_ns=lambda _blocks, _depth: 1, now_fs=0, fates=None, ssd=None)
    assert tiers.ssd is not None
    put(tiers.ssd, at("c"))
    for name in "abc":
        tiers.keep(at(name))
    heard: list[int] = []
    wish = Wish(lambda: True, lambda _why, _tries: heard.append(tiers.links.now_fs // FS_PER_S))
    tiers.move(at("c"), Tier.SSD, Tier.DRAM, urgent=True, wish=wish)
    while (next_fs := tiers.links.next_fs()) is not None:
        tiers.links.advance(next_fs)
    assert heard == [2], "after the one that was on its way, before the other"
    assert there(tiers.dram) == "abc"
    assert (tiers.down.waiting_bytes, tiers.ssd_read.waiting_bytes) == (0, 0)
