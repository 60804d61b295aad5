"""A part of a trace, by whole sessions: what a turn waits for, and the prefixes that it goes on with, come along.

Sessions are drawn, not rows: a tenth of the rows of every session would have none of its reuse. Requests that belong to
none are found by their prefixes, else they are sessions of one. What sessions have in common with each other becomes
rarer with them.
"""

from collections.abc import Sequence
from random import Random

from replay.workloads.facts import TraceRow


def sample(rows: Sequence[TraceRow], *, seed: int, share: float = 1.0, count: int = 0) -> list[TraceRow]:
    """`count` sessions, or `share` of them where `count` is 0 (at least one), at their times and in their order."""
    roots = _roots(rows)
    sessions = list(dict.fromkeys(roots))
    wanted = min(len(sessions), count or max(1, round(share * len(sessions))))
    chosen = dict.fromkeys(Random(seed).sample(sessions, wanted))  # noqa: S311
    return [row for row, root in zip(rows, roots, strict=True) if root in chosen]


def sessions_of(rows: Sequence[TraceRow]) -> list[list[TraceRow]]:
    """Rows by session, in order of their first. Together belong those of one name and tenant, those that wait for each
    other, and of those without a name the ones whose prompt goes on with an earlier one's whole prefix; a single unit
    in common says nothing."""
    groups: dict[int, list[TraceRow]] = {}
    for row, root in zip(rows, _roots(rows), strict=True):
        groups.setdefault(root, []).append(row)
    return list(groups.values())


def _roots(rows: Sequence[TraceRow]) -> list[int]:
    """For every row the first row of its session."""
    parents = list(range(len(rows)))
    named: dict[tuple[str, str], int] = {}
    requests: dict[str, int] = {}
    ends: dict[str, int] = {}
    for index, row in enumerate(rows):
        arrived, after = row.arrived, row.traced.after
        before = [requests[after]] if after in requests else []
        if arrived.session:
            before.append(named.setdefault((arrived.tenant, arrived.session), index))
        elif len(arrived.slices) > 1:
            before += [ends[name] for name in reversed(arrived.slices[1:]) if name in ends][:1]
            ends[arrived.slices[-1]] = index
        requests[arrived.request_id] = index
        for other in before:
            _unite(parents, index, other)
    return [_root(parents, index) for index in range(len(rows))]


def _unite(parents: list[int], one: int, other: int) -> None:
    """The earlier of the two roots stands for both."""
    low, high = sorted((_root(parents, one), _root(parents, other)))
    parents[high] = low


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index
