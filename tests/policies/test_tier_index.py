"""What an engine has of a prompt, and how quick it is there."""

import msgspec
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from events.base import NS_PER_MS, SliceId
from events.slice import Tier
from policies import tier_index
from policies.tier_index import BIT, ENTRIES_MAX, Leading, SliceFact, TierIndex, holds, leading, load_ns
from tests.policies.tier_words import DRAM, HBM, SSD, cleared, gauged, hit, removed, stored
from tests.policies.words import slices


def index_of(*facts: SliceFact) -> TierIndex:
    index = TierIndex()
    for fact in facts:
        tier_index.heed(index, fact, 7)
    return index


PROMPT = slices(*"abcdefg")


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ([], Leading(0, 0, 0, 0)),
        ([stored(HBM, *"abcdefg")], Leading(7, 0, 0, 0)),
        ([stored(HBM, *"abg"), stored(DRAM, *"cd"), stored(SSD, *"de")], Leading(2, 2, 2, 1)),
        ([stored(SSD, *"a"), stored(DRAM, *"b")], Leading(0, 0, 1, 1)),
        ([stored(HBM, *"bcd"), stored(SSD, *"bcd")], Leading(0, 0, 0, 0)),
        ([stored(HBM, *"ac"), stored(DRAM, *"bc"), stored(HBM, *"d")], Leading(1, 2, 2, 0)),
        ([stored(DRAM, *"abc"), removed(DRAM, *"b")], Leading(0, 1, 1, 0)),
        ([stored(DRAM, *"abc"), stored(SSD, *"ab"), cleared(DRAM)], Leading(0, 0, 0, 2)),
        ([removed(SSD, *"a"), hit(SSD, *"a")], Leading(0, 0, 0, 0)),
    ],
    ids=["nothing", "all in HBM", "the example", "SSD first", "a hole first", "HBM behind DRAM", "one removed",
         "a tier cleared", "what it never had"],
)  # fmt: skip
def test_what_it_has_of_a_prompt(facts: list[SliceFact], found: Leading) -> None:
    assert leading(index_of(*facts), PROMPT) == found


def test_what_runs_there_counts_as_there() -> None:
    index = index_of(stored(HBM, "a"), stored(SSD, "c"))
    assert leading(index, PROMPT, {SliceId("b"): 1}) == Leading(2, 0, 0, 1)


def test_a_load_waits_for_both_links_and_for_what_stands_before_it() -> None:
    index = index_of(gauged(DRAM), gauged(SSD, queue=3))
    assert load_ns(index, dram=0, ssd=0) == 0
    assert load_ns(index, dram=10, ssd=0) == NS_PER_MS // 10
    assert load_ns(index, dram=0, ssd=7) == NS_PER_MS + 7 * NS_PER_MS // 100
    assert load_ns(index, dram=0, ssd=7, queued_bytes=10_000) == 2 * NS_PER_MS + 7 * NS_PER_MS // 100
    assert index.gauges[SSD].at_ns == 7


def test_a_cleared_tier_is_as_quick_as_before_and_empty() -> None:
    index = index_of(gauged(SSD, used=9, queue=9), stored(SSD, "a"), cleared(SSD))
    assert (index.tiers_of, index.gauges[SSD].bytes_used, index.gauges[SSD].read_queue_bytes) == ({}, 0, 0)
    assert load_ns(index, dram=0, ssd=10) == NS_PER_MS


def test_what_was_used_longest_ago_is_forgotten_first_and_of_a_prompt_its_end() -> None:
    index = index_of(stored(SSD, "old"), stored(SSD, *(f"s{n}" for n in range(ENTRIES_MAX - 1))), hit(SSD, "old"))
    tier_index.heed(index, stored(DRAM, "new"), 0)
    assert len(index.tiers_of) == ENTRIES_MAX
    assert holds(index, SliceId("old"), SSD)
    assert not holds(index, SliceId(f"s{ENTRIES_MAX - 2}"), SSD)
    assert holds(index, SliceId("s0"), SSD)


NAMES = st.lists(st.sampled_from("abcdefg"), unique=True)
FACTS = st.lists(
    st.one_of(
        st.builds(lambda tier, names: stored(tier, *names), st.sampled_from(Tier), NAMES),
        st.builds(lambda tier, names: removed(tier, *names), st.sampled_from(Tier), NAMES),
        st.builds(lambda tier, names: hit(tier, *names), st.sampled_from(Tier), NAMES),
        st.builds(cleared, st.sampled_from(Tier)),
    ),
    max_size=30,
)


@drawn(FACTS)
def test_it_holds_what_was_said_last_and_a_repeat_changes_nothing(facts: list[SliceFact]) -> None:
    held: dict[Tier, set[str]] = {tier: set() for tier in Tier}
    index = TierIndex()
    for fact in facts:
        for _ in range(2):
            tier_index.heed(index, fact, 0)
        if type(fact).__name__ == "SlicesStored":
            held[fact.tier] |= set(fact.slices)  # type: ignore[union-attr]
        elif type(fact).__name__ == "SlicesRemoved":
            held[fact.tier] -= set(fact.slices)  # type: ignore[union-attr]
        elif type(fact).__name__ == "SlicesCleared":
            held[fact.tier] = set()
    for tier, names in held.items():
        assert {name for name in PROMPT if holds(index, name, tier)} == names
    assert all(0 < tiers < 2 * BIT[SSD] for tiers in index.tiers_of.values())
    assert msgspec.json.decode(msgspec.json.encode(index), type=TierIndex) == index
