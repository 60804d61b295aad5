"""The bound of prefix caching: it is the best that can be done, and every kind stays below it."""

from functools import cache
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import RequestKind
from policies.memory.kinds import EvictionKind
from replay.belady import Hits, ideal_hits, kind_hits, unique_bytes
from replay.workloads.base import Arrival

UNIT, BYTES = 10, 4
S = 10**9


def asks(*prompts: tuple[int, ...]) -> list[Arrival]:
    """One prompt a second, of these slices and one token more."""
    return [
        Arrival(
            at_ns=n * S, request_id=f"r{n}", prompt_tokens=len(prefix) * UNIT + 1, output_tokens=1, prefix=prefix,
            prefix_tokens=UNIT,
        )
        for n, prefix in enumerate(prompts)
    ]  # fmt: skip


def ideal(arrivals: list[Arrival], slices: int) -> int:
    """Slices that are hit with room for so many."""
    found = ideal_hits(arrivals, capacity_bytes=slices * UNIT * BYTES, token_bytes=BYTES)
    return found.hit_tokens // UNIT


def best(arrivals: list[Arrival], slices: int) -> int:
    """The same, by trying every content that the cache could have after each prompt."""

    @cache
    def from_here(turn: int, cached: frozenset[int]) -> int:
        if turn == len(arrivals):
            return 0
        prompt = arrivals[turn].prefix
        hits = next((depth for depth, key in enumerate(prompt) if key not in cached), len(prompt))
        might = sorted(cached | set(prompt))
        contents = chain.from_iterable(combinations(might, count) for count in range(min(slices, len(might)) + 1))
        return hits + max(from_here(turn + 1, frozenset(content)) for content in contents)

    return from_here(0, frozenset())


PROMPTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3)).map(
        lambda drawn: (0, *(10 * (drawn[0] + 1) + n for n in range(drawn[1])))
    ),
    min_size=1,
    max_size=30,
)


def test_what_is_needed_again_soonest_stays() -> None:
    assert ideal(asks((1,), (2,), (3,), (2,), (1,), (3,)), 1) == 1
    assert ideal(asks((1,), (2,), (3,), (2,), (1,), (3,)), 2) == 2


def test_the_beginning_of_a_prompt_stays_before_its_end() -> None:
    assert ideal(asks((1, 2, 3), (1, 2, 3)), 2) == 2


def test_at_least_the_last_token_of_a_prompt_is_computed() -> None:
    whole = Arrival(at_ns=0, request_id="r", prompt_tokens=20, output_tokens=1, prefix=(1, 2), prefix_tokens=UNIT)
    assert ideal_hits([whole, whole], capacity_bytes=99 * UNIT, token_bytes=1).hit_tokens == UNIT


def test_embedding_jobs_have_no_prefix() -> None:
    jobs = [
        Arrival(at_ns=n, request_id=f"r{n}", kind=RequestKind.EMBEDDING, prompt_tokens=20, output_tokens=0)
        for n in range(2)
    ]
    assert ideal_hits(jobs, capacity_bytes=99, token_bytes=1) == Hits(prompt_tokens=0, hit_tokens=0)
    assert ideal_hits(jobs, capacity_bytes=99, token_bytes=1).share_ppm == 0


@settings(max_examples=60, deadline=None)
@given(PROMPTS.filter(lambda prompts: len(prompts) <= 6), st.integers(0, 4))
def test_nothing_does_better(prompts: list[tuple[int, ...]], slices: int) -> None:
    arrivals = asks(*prompts)
    assert ideal(arrivals, slices) == best(arrivals, slices)


@settings(max_examples=100, deadline=None)
@given(PROMPTS, st.integers(0, 12), st.sampled_from(EvictionKind))
def test_every_kind_stays_below_and_more_room_never_hurts_the_bound(
    prompts: list[tuple[int, ...]], slices: int, kind: EvictionKind
) -> None:
    arrivals = asks(*prompts)
    room = {"capacity_bytes": slices * UNIT * BYTES, "token_bytes": BYTES}
    assert kind_hits(arrivals, kind, **room).hit_tokens <= ideal_hits(arrivals, **room).hit_tokens
    assert ideal(arrivals, slices) <= ideal(arrivals, slices + 1)


@pytest.mark.parametrize("kind", EvictionKind)
def test_with_room_for_all_every_kind_has_what_the_bound_has(kind: EvictionKind) -> None:
    arrivals = asks(*((0, 1 + n % 5, 10 * (1 + n % 5) + n % 7) for n in range(40)))
    room = unique_bytes(arrivals, token_bytes=BYTES)
    assert room == (1 + 5 + 35) * UNIT * BYTES
    ideal_there = ideal_hits(arrivals, capacity_bytes=room, token_bytes=BYTES)
    assert kind_hits(arrivals, kind, capacity_bytes=room, token_bytes=BYTES) == ideal_there
