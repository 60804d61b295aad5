"""Moore and Hodgson's rule: who is kept when not all can be in time."""

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from policies.ordering.set_aside import PLAN_MAX, Job, kept

ONE = [0]
TABLE = [
    ("all fit", [Job(0, 2), Job(2, 3), Job(5, 1)], ONE, [0, 1, 2]),
    ("the longest makes room", [Job(0, 2), Job(2, 9), Job(9, 3)], ONE, [0, 2]),
    ("one that is itself the longest is set aside", [Job(0, 2), Job(1, 9)], ONE, [0]),
    ("nobody makes room in vain", [Job(0, 2), Job(2, 9), Job(1, 3)], ONE, [0, 1]),
    ("two engines take two", [Job(0, 5), Job(0, 5), Job(4, 6)], [0, 0], [0, 1]),
    ("a busy engine is not used", [Job(0, 5), Job(4, 6)], [0, 90], [0]),
    ("what is late anyway is set aside", [Job(-1, 1), Job(0, 1)], ONE, [1]),
    ("a protected one stays", [Job(0, 9, True), Job(5, 1)], ONE, [0]),
    ("a protected one takes the place of one that is not", [Job(0, 2), Job(1, 1, True)], ONE, [1]),
    ("a shorter protected one takes the place of a longer", [Job(0, 9, True), Job(5, 1, True)], ONE, [1]),
]


@pytest.mark.parametrize(("why", "jobs", "free", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_the_table(why: str, jobs: list[Job], free: list[int], expected: list[int]) -> None:
    assert kept(jobs, free) == expected


def in_time(jobs: Sequence[Job], chosen: Sequence[int]) -> bool:
    at = 0
    for position in chosen:
        if at > jobs[position].slack_ns:
            return False
        at += jobs[position].work_ns
    return True


@given(some.lists(some.tuples(some.integers(1, 12), some.integers(0, 20)), max_size=8))
def test_on_one_engine_as_many_are_kept_as_can_be_and_all_of_them_are_in_time(drawn: list[tuple[int, int]]) -> None:
    jobs = sorted((Job(slack, work) for work, slack in drawn), key=lambda job: job.slack_ns + job.work_ns)
    chosen = kept(jobs, ONE)
    assert in_time(jobs, chosen)
    best = max(
        size
        for size in range(len(jobs) + 1)
        if any(in_time(jobs, some) for some in combinations(range(len(jobs)), size))
    )
    assert len(chosen) == best


@given(
    some.lists(some.tuples(some.integers(1, 12), some.integers(-3, 30), some.booleans()), max_size=30),
    some.lists(some.integers(0, 20), min_size=1, max_size=4),
)
def test_a_plan_is_a_part_of_those_who_wait_in_their_order(drawn: list[tuple[int, int, bool]], free: list[int]) -> None:
    jobs = [Job(slack, work, protected) for work, slack, protected in drawn]
    chosen = kept(jobs, free)
    assert chosen == sorted(set(chosen))
    assert all(jobs[position].slack_ns >= min(free) for position in chosen), "nobody is kept who cannot be in time"


def test_a_plan_is_bounded() -> None:
    assert len(kept([Job(10**9, 1)] * (PLAN_MAX + 50), ONE)) == PLAN_MAX
