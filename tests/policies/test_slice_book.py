"""What requests tell of slices: how often they are asked for, and what stands behind what."""

from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from events.base import NS_PER_S, ModelId, SliceId
from policies import slice_book
from policies.slice_book import KNOWN_MAX, SliceBook, children_first, come_back_ppm, depth, hot, reachable
from policies.tier_index import BIT
from tests.policies.tier_words import SSD
from tests.policies.words import arrived, slices

HORIZON = 300 * NS_PER_S


def book_of(*prompts: str) -> SliceBook:
    book = SliceBook()
    for number, prompt in enumerate(prompts):
        request = arrived(f"r{number}", 10 * len(prompt), slices=slices(*prompt))
        slice_book.asked(book, request, number * NS_PER_S, horizon_ns=HORIZON, hot_uses_min=2)
    return book


def test_the_example_of_the_page() -> None:
    book = book_of("sa", "sb", "sa")
    assert [(one, known.use.uses, known.depth, known.parent) for one, known in sorted(book.known.items())] == [
        ("a", 2, 1, "s"), ("b", 1, 1, "s"), ("s", 3, 0, "")
    ]  # fmt: skip
    assert book.slice_tokens == 10


def test_hot_is_what_was_used_most_of_late_parents_first_and_it_cools() -> None:
    book = book_of("sab", "sac", "sab", "x")
    assert hot(book, 3 * NS_PER_S, uses_min=2, most=9, horizon_ns=HORIZON) == ["s", "a", "b"]
    slice_book.configured(book, hot_uses_min=3)
    assert hot(book, 3 * NS_PER_S, uses_min=3, most=9, horizon_ns=HORIZON) == ["s", "a"]
    slice_book.configured(book, hot_uses_min=2)
    assert hot(book, 3 * NS_PER_S, uses_min=2, most=1, horizon_ns=HORIZON) == ["s"]
    assert hot(book, 4 * HORIZON, uses_min=2, most=9, horizon_ns=HORIZON) == []


def test_what_comes_back_is_learned_from_slices_like_it() -> None:
    often = book_of(*["ab"] * 9)
    assert come_back_ppm(often, SliceId("a")) > 600_000
    never = book_of(*(f"{chr(97 + n)}" for n in range(20)))
    assert come_back_ppm(never, SliceId("a")) < 100_000
    assert (come_back_ppm(often, SliceId("?")), depth(often, SliceId("?"))) == (0, 0)


def test_what_was_used_longest_ago_is_forgotten() -> None:
    book = book_of("a")
    for number in range(KNOWN_MAX // 1_000 + 1):
        names = slices(*(f"{number}.{n}" for n in range(1_000)))
        slice_book.asked(book, arrived("r", 10_000, slices=names), 0, horizon_ns=HORIZON, hot_uses_min=2)
    assert len(book.known) == KNOWN_MAX
    assert "a" not in book.known


def test_only_what_is_reachable_comes_up() -> None:
    book = book_of("abcd", "xyz")
    tiers = {SliceId("a"): BIT[SSD] | 1, SliceId("b"): 4, SliceId("c"): 4, SliceId("y"): 4}

    def found(most: int = 9, *left_alone: str, models: tuple[ModelId, ...] = (ModelId("m"),)) -> str:
        return "".join(reachable(
            book, slices(*"ydcba?"), tiers, exactly=4, models=models, left_alone=slices(*left_alone), most=most
        ))  # fmt: skip

    assert found() == "bc", "y has no forerunner there, d is nowhere, a is higher already"
    assert (found(1), found(0), found(models=())) == ("b", "", "")
    assert found(9, "b") == "c", "what is on its way is there soon"


@pytest.mark.parametrize("prompts", [["aa"], ["abab"], ["ab", "b", "?", "ba"]])
def test_invented_names_that_stand_behind_themselves_hold_nobody_up(prompts: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(slice_book, "KNOWN_MAX", 2)
    book, names = book_of(*prompts), slices(*"ab")
    tiers = dict.fromkeys(names, BIT[SSD])
    found = reachable(book, names, tiers, exactly=BIT[SSD], models=(ModelId("m"),), left_alone=(), most=9)
    assert set(found) <= set(book.known)
    assert set(children_first(book, [(one, 1) for one in book.known])) == set(book.known)


def test_what_stands_before_one_that_stays_is_left_out() -> None:
    book = book_of("abcd", "ax")
    worth = [(SliceId(name), 1) for name in "abcx"]
    assert children_first(book, worth, staying=slices("d")) == ["x"]
    assert children_first(book, worth, staying=slices("?")) == ["c", "b", "x", "a"]


@drawn(st.lists(st.text("abcd", min_size=1, max_size=4), max_size=9), st.dictionaries(st.sampled_from("abcd"),
                                                                                     st.integers(0, 5)))  # fmt: skip
def test_no_slice_goes_before_one_that_stands_behind_it(families: list[str], worth: dict[str, int]) -> None:
    chains = [[f"{chain[:n]}" for n in range(1, len(chain) + 1)] for chain in families]
    book = SliceBook()
    for chain in chains:
        slice_book.asked(book, arrived("r", 40, slices=slices(*chain)), 0, horizon_ns=HORIZON, hot_uses_min=2)
    values = [(SliceId(name), worth.get(name[-1], 0)) for name in book.known]
    order = children_first(book, values)
    assert sorted(order) == sorted(book.known)
    for place, name in enumerate(order):
        parent = book.known[name].parent
        assert not parent or parent in order[place:]
