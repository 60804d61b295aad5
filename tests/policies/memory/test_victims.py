"""Who gives way: whom the rule protects, in what order it takes, and that it says so when it cannot free enough."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import PPM, RequestId, TenantId
from policies.memory.victims import (
    CANDIDATES_MAX,
    CannotFree,
    Chosen,
    Running,
    Urgent,
    choose,
    is_protected,
    less_urgent,
    may_give_way,
)

MS, S = 10**6, 10**9
PROTECT = 800_000


def one(name: str, **about: Any) -> Running:
    """Ten blocks, a second to be where it is, a minute of slack."""
    known: dict[str, Any] = {"blocks_freed": 10, "lost_ns": S, "slack_ns": 60 * S, "tokens_expected": 100}
    tenant = TenantId(about.pop("tenant", "t"))
    return Running(request_id=RequestId(name), tenant=tenant, **(known | about))


def names(found: Chosen | CannotFree) -> list[str]:
    return [victim.request_id for victim in found.victims] if isinstance(found, Chosen) else []


URGENT = Urgent(slack_ns=S)

ORDERS: list[tuple[str, list[Running], int, list[str]]] = [
    ("nobody is chosen beyond what is needed", [one("a"), one("b"), one("c")], 15, ["a", "b"]),
    ("most slack first", [one("a", slack_ns=30 * S), one("b", slack_ns=500 * S)], 10, ["b"]),
    ("lowest priority first", [one("a", priority=2), one("b", priority=1)], 10, ["b"]),
    ("slack goes before priority", [one("a", slack_ns=500 * S), one("b", priority=-1)], 10, ["a"]),
    ("least work lost first", [one("a", lost_ns=4 * S), one("b")], 10, ["b"]),
    ("of like losses most blocks freed", [one("a"), one("b", blocks_freed=11)], 10, ["b"]),
    ("a little more slack is no reason", [one("a", slack_ns=61 * S, lost_ns=3 * S), one("b")], 10, ["b"]),
    ("work sunk before counts", [one("a", preempted=1), one("b")], 10, ["b"]),
    ("who is late already, after who stays on time", [one("a", slack_ns=-S), one("b")], 10, ["b"]),
    ("who is made late, last", [one("a", slack_ns=S, lost_ns=2 * S), one("b", slack_ns=-S)], 10, ["b"]),
    ("the tenant that holds most pays first", [one("a"), one("b", tenant="u"), one("c", tenant="u")], 10, ["b"]),
    (
        "and only until it holds no more than its part",
        [one("a", slack_ns=9_000 * S), *(one(f"b{n}", tenant="u") for n in range(3))],
        30,
        ["b0", "a", "b1"],
    ),
    ("fairness makes nobody late", [one("a"), *(one(f"b{n}", tenant="u", slack_ns=0) for n in range(3))], 10, ["a"]),
    ("who turned out needless is spared", [one("a", blocks_freed=5, lost_ns=1), one("b")], 10, ["b"]),
    ("who frees nothing is not asked", [one("a", blocks_freed=0, slack_ns=900 * S), one("b")], 10, ["b"]),
    ("equal in all: the lower id", [one("b"), one("a")], 10, ["a"]),
]


@pytest.mark.parametrize(("running", "need", "chosen"), [row[1:] for row in ORDERS], ids=[row[0] for row in ORDERS])
def test_the_order(running: list[Running], need: int, chosen: list[str]) -> None:
    assert names(choose(running, need_blocks=need, urgent=None, protect_ppm=PROTECT)) == chosen


REFUSALS: list[tuple[str, Running, bool]] = [
    ("it may give way", one("a"), True),
    ("nearly complete", one("a", first_token=True, tokens_done=80), False),
    ("not yet nearly complete", one("a", first_token=True, tokens_done=79), True),
    ("of unknown length", one("a", first_token=True, tokens_done=500, tokens_expected=0), True),
    ("gave way often enough", one("a", preempted=3), False),
    ("more important", one("a", priority=1), False),
    ("less important, whatever its slack", one("a", priority=-1, slack_ns=0), True),
    ("as urgent itself", one("a", slack_ns=S), False),
    ("as urgent once it had given way", one("a", slack_ns=2 * S), False),
    ("less urgent even then", one("a", slack_ns=2 * S + 1), True),
    ("late already", one("a", slack_ns=-1), True),
]


@pytest.mark.parametrize(("running", "may"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_who_may_be_chosen(running: Running, may: bool) -> None:
    assert may_give_way(running, URGENT, protect_ppm=PROTECT) is may
    found = choose([running], need_blocks=1, urgent=URGENT, protect_ppm=PROTECT)
    assert found == (Chosen(victims=(running,), blocks_freed=10, lost_ns=S) if may else CannotFree(freed_max=0))


def test_one_that_is_late_displaces_nobody_of_its_priority() -> None:
    assert not less_urgent(one("a"), Urgent(slack_ns=-1))
    assert less_urgent(one("a", priority=-1), Urgent(slack_ns=-1))


def test_without_the_capability_only_who_has_no_first_token() -> None:
    running = [one("a", first_token=True, slack_ns=900 * S), one("b")]
    assert names(choose(running, need_blocks=1, urgent=URGENT, protect_ppm=PROTECT, can_preempt=False)) == ["b"]


def test_it_says_what_could_have_been_freed() -> None:
    running = [one("a"), one("b", first_token=True, tokens_done=99), one("c")]
    assert choose(running, need_blocks=21, urgent=None, protect_ppm=PROTECT) == CannotFree(freed_max=20)


def test_where_the_orderly_way_takes_too_many_the_largest_go() -> None:
    running = [*(one(f"a{n}", blocks_freed=1, lost_ns=1) for n in range(9)), one("b", blocks_freed=9)]
    found = choose(running, need_blocks=9, urgent=None, protect_ppm=PROTECT, victims_max=2)
    assert names(found) == ["b"]
    assert choose(running, need_blocks=11, urgent=None, protect_ppm=PROTECT, victims_max=2) == CannotFree(freed_max=10)


def test_no_more_are_looked_at_than_the_limit() -> None:
    running = [one(f"{n}", blocks_freed=0) for n in range(CANDIDATES_MAX)] + [one("beyond")]
    assert choose(running, need_blocks=1, urgent=None, protect_ppm=PROTECT) == CannotFree(freed_max=0)


CROWD = st.lists(
    st.builds(
        Running,
        request_id=st.integers(0, 999).map(lambda n: RequestId(f"r{n}")),
        tenant=st.sampled_from(["t", "u", "v"]).map(TenantId),
        priority=st.integers(-2, 2),
        slack_ns=st.integers(-5 * S, 60 * S),
        tokens_done=st.integers(0, 120),
        tokens_expected=st.integers(0, 120),
        blocks_freed=st.integers(0, 50),
        lost_ns=st.integers(0, 9 * S),
        first_token=st.booleans(),
        preempted=st.integers(0, 4),
    ),
    max_size=30,
    unique_by=lambda running: running.request_id,
)


@settings(max_examples=200, deadline=None)
@given(
    CROWD,
    st.integers(1, 300),
    st.none() | st.builds(Urgent, priority=st.integers(-2, 2), slack_ns=st.integers(-S, 20 * S)),
    st.integers(0, PPM),
    st.booleans(),
    st.integers(1, 8),
)
def test_laws(
    running: list[Running], need: int, urgent: Urgent | None, protect_ppm: int, can_preempt: bool, victims_max: int
) -> None:
    """Enough is freed, nobody protected is chosen and nobody in vain; or not enough could have been freed. The order
    in which requests are given does not matter."""
    asked: dict[str, Any] = {"protect_ppm": protect_ppm, "can_preempt": can_preempt}
    found = choose(running, need_blocks=need, urgent=urgent, victims_max=victims_max, **asked)
    assert found == choose(running[::-1], need_blocks=need, urgent=urgent, victims_max=victims_max, **asked)
    allowed = [each for each in running if may_give_way(each, urgent, **asked)]
    largest = sum(sorted((each.blocks_freed for each in allowed), reverse=True)[:victims_max])
    if isinstance(found, CannotFree):
        assert found.freed_max == largest < need
        return
    assert largest >= need
    assert found.blocks_freed == sum(victim.blocks_freed for victim in found.victims) >= need
    assert found.lost_ns == sum(victim.lost_ns for victim in found.victims)
    assert 0 < len(found.victims) <= victims_max
    for victim in found.victims:
        assert victim in allowed
        assert not is_protected(victim, protect_ppm)
        assert found.blocks_freed - victim.blocks_freed < need, "nobody gives way in vain"


@settings(max_examples=80, deadline=None)
@given(CROWD, st.integers(0, PPM))
def test_no_two_push_each_other_out(running: list[Running], protect_ppm: int) -> None:
    """Whoever gave way for another, with its slack less by what it lost, cannot take the place back."""
    for pusher in running:
        urgent = Urgent(priority=pusher.priority, slack_ns=pusher.slack_ns)
        for victim in running:
            if may_give_way(victim, urgent, protect_ppm=protect_ppm):
                back = Urgent(priority=victim.priority, slack_ns=victim.slack_ns - victim.lost_ns)
                assert not less_urgent(pusher, back)
