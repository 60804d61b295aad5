"""Which of those that wait are set aside so that the most are in time: Moore and Hodgson's rule on several engines.

In order of deadline, each is put on the engine that is free first. One that could not start there in time makes room:
of those placed so far the one with the longest prefill is set aside, if that is longer than its own and lets it start
in time; else it is set aside itself. What is set aside waits on: it goes as soon as a later plan has room for it, and
is refused at its latest start, or goes late (`policies.late_service`).

The rule keeps the most jobs in time on one machine; on several it is a good one, not the best (that is NP-hard).
A request that is protected (it lags behind, see `policies.ordering.fairness`) makes room for nobody but one like it.
A plan looks at the first PLAN_MAX; those behind them are as good as set aside until it is their turn.

Source: Moore (1968), with Hodgson's proof; list scheduling (Graham, 1969) for several engines.
Example: see `policies.ordering.slo_aware`.
"""

from collections.abc import Sequence
from heapq import heapify, heappush, heapreplace
from typing import NamedTuple

PLAN_MAX = 128
"""Requests that one plan looks at."""


class Job(NamedTuple):
    """One that waits: how much later than now it must start at the latest, and its prefill."""

    slack_ns: int
    work_ns: int
    protected: bool = False


def kept(jobs: Sequence[Job], free_ns: Sequence[int]) -> list[int]:
    """The positions of those that are not set aside, in order. `jobs` come in order of deadline; `free_ns` says
    for each engine after how much time it is free. O(n log n), and n is at most PLAN_MAX."""
    free = [(after_ns, engine) for engine, after_ns in enumerate(free_ns)]
    heapify(free)
    placed: list[tuple[bool, int, int, int]] = []
    """(protected, -prefill, position, engine), so that the first is the longest that may make room."""
    aside: dict[int, None] = {}
    for position, job in enumerate(jobs[:PLAN_MAX]):
        after_ns, engine = free[0]
        entry = (job.protected, -job.work_ns, position)
        if after_ns <= job.slack_ns:
            heapreplace(free, (after_ns + job.work_ns, engine))
            heappush(placed, (*entry, engine))
            continue
        swapped = _make_room(job, entry, placed, free) if placed else None
        aside[position if swapped is None else swapped] = None
    return [position for position in range(min(len(jobs), PLAN_MAX)) if position not in aside]


def _make_room(
    job: Job, entry: tuple[bool, int, int], placed: list[tuple[bool, int, int, int]], free: list[tuple[int, int]]
) -> int | None:
    """The position of the one that goes instead, both books changed; None when that would not help."""
    longest = placed[0]
    if longest[:2] >= entry[:2]:
        return None
    engine = longest[3]
    at = next(place for place, (_, number) in enumerate(free) if number == engine)
    start_ns = free[at][0] + longest[1]
    if start_ns > job.slack_ns:
        return None
    heapreplace(placed, (*entry, engine))
    free[at] = (start_ns + job.work_ns, engine)
    heapify(free)
    return longest[2]
