"""Prompts for live targets: shared where the trace shares, of the length that was asked, the same in every process."""

import json
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.base import RequestKind
from replay.workloads.base import Arrival
from services.target.prompts import WORDS, Sizes, fresh, text_prompts, token_prompts


def arrival(name: str, tokens: int, prefix: tuple[int, ...] = (), **more: Any) -> Arrival:
    return Arrival(
        at_ns=0, request_id=name, prompt_tokens=tokens, output_tokens=1, prefix=prefix, prefix_tokens=64, **more
    )


def words(sizes: Sizes, one: Arrival) -> list[str]:
    text: str = json.loads(text_prompts(sizes)(one))
    return text.split(" ")


@given(
    st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6), st.integers(1, 600),
    st.sampled_from([1.0, 1.3, 4.9]),
)  # fmt: skip
def test_two_prompts_share_the_words_of_the_prefix_that_they_share(
    left: list[int], right: list[int], tokens: int, per_word: float
) -> None:
    sizes = Sizes(per_word)
    one, other = (words(sizes, arrival(name, tokens, tuple(ids))) for name, ids in (("a", left), ("b", right)))
    shared_ids = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
    unit = sizes.words(64)
    shared = min(shared_ids * unit, len(one) // unit * unit)
    assert one[:shared] == other[:shared]


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(1.25, 1), Sizes(4.7)])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 1_000])
def test_a_prompt_has_the_tokens_that_were_asked_to_within_a_word(sizes: Sizes, tokens: int) -> None:
    made = words(sizes, arrival("r", tokens, (1, 2, 3)))
    assert abs(len(made) * sizes.per_word + sizes.beside - tokens) <= sizes.per_word or len(made) == 1
    assert set(made) <= set(WORDS)


def test_prompts_of_different_requests_differ_where_nothing_is_shared() -> None:
    assert words(Sizes(), arrival("a", 50)) != words(Sizes(), arrival("b", 50))
    assert words(Sizes(), arrival("a", 128, (1, 2))) != words(Sizes(), arrival("a", 128, (1, 3)))


def test_the_same_prompt_is_made_again_in_every_process() -> None:
    assert words(Sizes(), arrival("a", 4, ())) == ["business", "office", "reason", "city"]


def test_fresh_requests_share_with_each_other_what_they_shared_and_nothing_with_others() -> None:
    old = [arrival("a", 200, (1, 2)), arrival("b", 200, (1, 3)), arrival("c", 200)]
    new, other = fresh(old, "now"), fresh(old, "later")
    assert [len(set(each)) for each in zip(*(one.prefix for one in new[:2]), strict=True)] == [1, 2]
    assert [one.prompt_tokens for one in new] == [200, 200, 200]
    every = [*old, *new, *other]
    assert len({one.request_id for one in every}) == len({token_prompts(one) for one in every}) == len(every)
    assert len({" ".join(words(Sizes(), one)) for one in every}) == len(every)


def test_inputs_of_an_embedding_stand_side_by_side() -> None:
    inputs = json.loads(text_prompts(Sizes())(arrival("e", 120, kind=RequestKind.EMBEDDING, inputs=3)))
    assert [len(text.split(" ")) for text in inputs] == [40, 40, 40]
    assert len(set(inputs)) == 3


def test_prompts_of_token_ids_are_exact() -> None:
    assert len(json.loads(token_prompts(arrival("t", 200, (1, 2))))) == 200
