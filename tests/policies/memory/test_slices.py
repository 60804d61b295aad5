"""Which slice is evicted: the kinds, what they learn from use, and the order that shields change."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.memory import reuse
from policies.memory.evictable import Evictable, Shield
from policies.memory.kinds import RANKS, EvictionKind, kind_of, rank_of
from policies.memory.reuse import GONE_MAX, HEAT_ONE, LET_GO_MAX, Heat, Past, Use

S = 10**9
HORIZON = 400 * S


def use(stored_s: int = 0, *, cost_ns: int = 10_000, size: int = 1) -> Use:
    return Use(stored_s * S, cost_ns, size)


def let_go(past: Past, one: Use, at_s: int, *, from_end: int = 0, length: int = 1) -> Use:
    reuse.let_go(past, one, at_s * S, from_end=from_end, length=length)
    return one


def first_to_go(kind: EvictionKind, past: Past, **slices: Use) -> str:
    return min(slices, key=lambda name: rank_of(kind, slices[name], past))


def test_lru_evicts_what_was_let_go_longest_ago() -> None:
    past = Past()
    assert first_to_go(EvictionKind.LRU, past, a=let_go(past, use(0), 20), b=let_go(past, use(5), 10)) == "b"


def test_fifo_evicts_what_was_computed_longest_ago() -> None:
    past = Past()
    assert first_to_go(EvictionKind.FIFO, past, a=let_go(past, use(0), 20), b=let_go(past, use(5), 10)) == "a"


def test_hotness_evicts_what_was_used_least_of_late() -> None:
    past, often, once = Past(), use(), use()
    for second in range(5):
        reuse.used(past, often, second * S, let_go=False, horizon_ns=HORIZON)
    reuse.used(past, once, 50 * S, let_go=False, horizon_ns=HORIZON)
    assert first_to_go(EvictionKind.HOTNESS, past, often=often, once=once) == "once"
    reuse.used(past, once, 5_000 * S, let_go=False, horizon_ns=HORIZON)
    assert first_to_go(EvictionKind.HOTNESS, past, often=often, once=once) == "often", "heat fades"


def test_slo_aware_evicts_what_costs_less_per_byte_where_reuse_is_as_likely() -> None:
    past = Past()
    cheap, dear = let_go(past, use(cost_ns=10_000), 1), let_go(past, use(cost_ns=20_000), 1)
    assert first_to_go(EvictionKind.SLO_AWARE, past, dear=dear, cheap=cheap) == "cheap"
    large = let_go(past, use(cost_ns=20_000, size=4), 1)
    assert first_to_go(EvictionKind.SLO_AWARE, past, dear=dear, large=large) == "large"


def test_slo_aware_evicts_what_is_less_likely_to_come_back() -> None:
    """Long prompts come back here, short ones do not: learned from what was let go before."""
    past = Past()
    for n in range(20):
        let_go(past, use(), n, length=1)
        back = let_go(past, use(), n, length=100)
        reuse.used(past, back, (n + 1) * S, let_go=True, horizon_ns=HORIZON)
    short, long = let_go(past, use(), 30, length=1), let_go(past, use(), 30, length=100)
    assert reuse.come_back_ppm(past, short) < 100_000
    assert reuse.come_back_ppm(past, long) > 900_000
    assert first_to_go(EvictionKind.SLO_AWARE, past, short=short, long=long) == "short"


def test_a_slice_of_value_is_overtaken_by_what_comes_when_it_is_not_used() -> None:
    past = Past()
    old = rank_of(EvictionKind.SLO_AWARE, let_go(past, use(cost_ns=100_000), 1), past)
    past.floor = old + 1
    assert rank_of(EvictionKind.SLO_AWARE, let_go(past, use(cost_ns=10), 2), past) > old


def test_what_was_evicted_too_early_counts_as_having_come_back() -> None:
    past, one = Past(), use()
    let_go(past, one, 1)
    reuse.evicted(past, "a", one)
    again = reuse.stored(past, "a", 2 * S, cost_ns=1, size=1, horizon_ns=HORIZON)
    assert past.groups[one.group].came_back == 1
    assert again.uses == 2
    assert not past.gone


def test_what_comes_back_after_the_horizon_does_not_count() -> None:
    past, one, other = Past(), use(), use()
    let_go(past, one, 1)
    reuse.used(past, one, HORIZON + 2 * S, let_go=True, horizon_ns=HORIZON)
    let_go(past, other, 1)
    reuse.evicted(past, "a", other)
    reuse.stored(past, "a", HORIZON + 2 * S, cost_ns=1, size=1, horizon_ns=HORIZON)
    assert all(group.came_back == 0 for group in past.groups.values())


def test_what_is_remembered_is_bounded() -> None:
    past = Past()
    for n in range(GONE_MAX + 5):
        one = let_go(past, use(), 1, from_end=n, length=n + 1)
        reuse.evicted(past, n, one)
    assert len(past.gone) == GONE_MAX
    assert 0 not in past.gone, "the oldest is forgotten"
    for _ in range(3 * LET_GO_MAX):
        let_go(past, use(), 1)
    assert all(group.let_go < LET_GO_MAX for group in past.groups.values())


def test_an_unknown_kind_is_lru() -> None:
    assert kind_of("arc") is EvictionKind.LRU
    assert [kind_of(kind.value) for kind in EvictionKind] == list(EvictionKind)
    assert list(RANKS) == list(EvictionKind)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**13), min_size=2, max_size=20), st.integers(1, 10**12))
def test_heat_grows_with_every_use_and_none_is_worth_more_than_two(uses_ns: list[int], half_life_ns: int) -> None:
    heat, before = Heat(), -1
    for now_ns in sorted(uses_ns):
        heat.add(now_ns, half_life_ns)
        assert heat.order() > before, "a use makes it hotter"
        before = heat.order()
    assert heat.amount <= 2 * HEAT_ONE * len(uses_ns)


QUEUE = st.lists(
    st.tuples(st.sampled_from(["put", "drop", "pop"]), st.integers(0, 9), st.sampled_from(Shield), st.integers(0, 5)),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(QUEUE)
def test_the_queue_gives_the_smallest_and_what_is_kept_last(steps: list[tuple[str, int, Shield, int]]) -> None:
    queue, plain = Evictable[int](), dict[int, tuple[Shield, int]]()
    for what, name, shield, rank in steps:
        if what == "put" and name not in plain:
            queue.put(name, shield, rank)
            plain[name] = (shield, rank)
        elif what == "drop":
            queue.drop(name)
            plain.pop(name, None)
        elif what == "pop" and plain:
            assert plain.pop(popped := queue.pop()) <= min(plain.values(), default=(Shield.KEPT, 9)), popped
        assert len(queue) == len(plain)
    left = [queue.pop() for _ in range(len(queue))]
    assert sorted(left) == sorted(plain)
    assert all(plain[a] <= plain[b] for a, b in pairwise(left))
    with pytest.raises(IndexError):
        queue.pop()
