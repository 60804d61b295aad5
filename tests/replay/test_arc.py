"""A tier that evicts by ARC: what is used again outlasts a scan, what comes again after it was evicted is learned from,
and no directive changes it."""

import pytest

from events.base import EngineId, SliceId
from events.decisions import EngineDirected
from events.slice import Tier
from replay.engines.tier_cache import NO_ROOM, Own, SliceAt, TierCache

SIZE = 10


def tier(own: Own, slots: int = 4) -> TierCache:
    return TierCache(Tier.DRAM, slots * SIZE, lambda _blocks, _depth: 1, own)


def asked(one: TierCache, names: str, now_ns: int = 0) -> int:
    """Prompts of one slice each, one after another; how many of them are there already."""
    hits = 0
    for at_ns, name in enumerate(names, now_ns):
        if name in one:
            hits += 1
            one.touch([name], at_ns, length=1)
            continue
        at = SliceAt(name, None, 0, 1, SIZE, 1)
        assert not one.reserve(at)
        one.settle(at, at_ns, arrived=True)
        one.check_integrity()
    return hits


def there(one: TierCache, names: str) -> str:
    return "".join(name for name in names if name in one)


@pytest.mark.parametrize(("own", "left"), [(Own.ARC, "ab"), (Own.LRU, "")])
def test_what_was_used_again_outlasts_a_scan(own: Own, left: str) -> None:
    one = tier(own)
    asked(one, "abab")
    asked(one, "cdefghij", 10)
    assert there(one, "ab") == left


def test_what_comes_again_after_it_was_evicted_makes_room_for_its_like() -> None:
    """`a` and `b` are used twice, then never again; the others in turn, a little too far apart for the rest."""
    one = tier(Own.ARC)
    asked(one, "abab")
    turns = [asked(one, "cde", 10 * turn) for turn in range(1, 9)]
    assert turns[0] == 0
    assert turns[-1] == 3, "the part of what is used once grew until all three fit"


def test_what_was_used_once_goes_before_what_came_after_it() -> None:
    one = tier(Own.ARC, slots=2)
    asked(one, "a")
    child = SliceAt("b", "a", 1, 1, SIZE, 2)
    assert not one.reserve(child)
    one.settle(child, 1, arrived=True)
    one.touch(["b"], 2, length=2)
    asked(one, "x", 3)
    assert there(one, "abx") == "bx", "b was used again; that a is before it is nothing to vLLM, which leaves holes"
    one.check_integrity()


@pytest.mark.parametrize("own", [Own.ARC, Own.LRU])
def test_what_is_being_read_is_passed_over_and_keeps_its_place(own: Own) -> None:
    one = tier(own, slots=2)
    asked(one, "ab")
    one.hold("a")
    asked(one, "c", 10)
    assert there(one, "abc") == "ac", "b went in its place"

    one.hold("c")
    assert one.reserve(SliceAt("d", None, 0, 1, SIZE, 1)) == NO_ROOM
    one.release("c")
    one.release("a")
    asked(one, "d", 20)
    assert there(one, "acd") == "cd", "its turn is as if nobody had read it"


@pytest.mark.parametrize("own", [Own.ARC, Own.LRU])
def test_a_tier_with_a_rule_of_its_own_hears_no_directive(own: Own) -> None:
    one = tier(own, slots=2)
    asked(one, "ab")
    one.direct(EngineDirected(
        engine_id=EngineId("e1"), version=1, eviction="slo_aware", protect_ppm=0, pinned=(SliceId("a"), SliceId("b")),
    ))  # fmt: skip
    asked(one, "x", 5)
    assert there(one, "abx") == "bx", "pins are for tiers that are directed"


@pytest.mark.parametrize("own", list(Own))
def test_a_restart_keeps_the_rule_and_what_is_there(own: Own) -> None:
    one = tier(own)
    asked(one, "abab")
    again = one.restarted()
    again.check_integrity()
    assert there(again, "ab") == "ab"
    asked(again, "abab", 10)
    asked(again, "cdefghij", 20)
    assert there(again, "ab") == ("ab" if own is Own.ARC else "")
