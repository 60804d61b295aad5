"""Requests that are deferred: one line per kind and model, each in the order of the strategy in force.

A line's head may be passed by a bounded number of later ones, so a large request behind which small ones still fit
holds nothing up and is not starved either. The order is kept as requests come and go: a key each, fixed while it waits,
so nothing is sorted when a record is decided.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

import msgspec

from events.base import EngineId, RequestId, TenantId
from events.request import RequestArrived
from policies.predictors.output_question import Foretold

Key = tuple[int, int]
"""What a line is ordered by, least first."""


class Waiting(msgspec.Struct, kw_only=True):
    """One deferred request. `until_ns` is the latest start that can still meet its deadline, or how long one that is
    served late may wait; `work_ns` the prefill that it brings; `avoid` the engine it was lost on; `passed` how many
    later ones went before it while it was the head of its line. `key` is its place in its line, and `number` tells
    equals apart: who was deferred first. One that waits for what only others like it can free, or until nobody waits
    who can be in time, has a line apart with them, `lane`, so that it holds up nobody else; `bytes_wanted` is what it
    costs its tenant at the least.

    One that was preempted comes back with `preemptions` (how often), `preempted_on` (where last), and, where it had its
    first token at `token_ns`, `resume_on`: the only engine it can go on at, with `output_tokens` made so far and the
    rest `foretold`."""

    request: RequestArrived
    arrived_ns: int = 0
    avoid: EngineId = EngineId("")
    until_ns: int = 0
    work_ns: int = 0
    passed: int = 0
    preemptions: int = 0
    preempted_on: EngineId = EngineId("")
    resume_on: EngineId = EngineId("")
    output_tokens: int = 0
    token_ns: int = 0
    foretold: Foretold = Foretold()
    key: Key = (0, 0)
    number: int = 0
    lane: str = ""
    bytes_wanted: int = 0


Place = tuple[Key, int, RequestId]


class Line(msgspec.Struct):
    """The deferred requests of one kind and model, their places in order, and the sum of their work."""

    entries: dict[RequestId, Waiting] = msgspec.field(default_factory=dict)
    order: list[Place] = msgspec.field(default_factory=list)
    work_ns: int = 0

    def head(self) -> Waiting:
        """The first in the order."""
        return self.entries[self.order[0][2]]

    def ordered(self) -> Iterator[Waiting]:
        """All of them, in order."""
        return (self.entries[request_id] for _, _, request_id in self.order)


class Lines(msgspec.Struct):
    """All lines (a line is there while somebody waits in it), and in which one each request is."""

    by_group: dict[str, Line] = msgspec.field(default_factory=dict)
    group_of: dict[RequestId, str] = msgspec.field(default_factory=dict)
    number: int = 0
    """How many were put in so far."""


def group(request: RequestArrived) -> str:
    """What shares a line."""
    return f"{request.kind.value}:{request.model}"


def line_name(waiting: Waiting) -> str:
    """The line that it waits, or would wait, in."""
    return group(waiting.request) + waiting.lane


SESSIONS_LANE = "\n\nsessions"
"""The lane of turns that wait until fewer sessions are active. No tenant's name has a line break."""


LATE_LANE = "\n\nlate"
"""The lane of those that cannot be in time any more (`policies.late_service`)."""


def tenant_lane(tenant: TenantId) -> str:
    """The lane of those that wait for their own tenant's requests to end."""
    return f"\n{tenant}"


def place(waiting: Waiting) -> Place:
    """Where it stands among those of its line."""
    return (waiting.key, waiting.number, waiting.request.request_id)


def put(lines: Lines, waiting: Waiting) -> None:
    """Into its line, at the place that its key says."""
    request, name = waiting.request, line_name(waiting)
    line = lines.by_group.setdefault(name, Line())
    line.entries[request.request_id] = waiting
    lines.number += 1
    waiting.number = lines.number
    insort(line.order, place(waiting))
    line.work_ns += waiting.work_ns
    lines.group_of[request.request_id] = name


def take(lines: Lines, request_id: RequestId) -> Waiting | None:
    """Out of its line; None when it waits in none."""
    name = lines.group_of.pop(request_id, None)
    if name is None:
        return None
    line = lines.by_group[name]
    waiting = line.entries.pop(request_id)
    del line.order[bisect_left(line.order, place(waiting))]
    line.work_ns -= waiting.work_ns
    if not line.entries:
        del lines.by_group[name]
    return waiting


def note_admitted(lines: Lines, waiting: Waiting) -> None:
    """This one goes now; if it is not the head of its line, the head was passed."""
    line = lines.by_group.get(line_name(waiting))
    if line is not None:
        head = line.head()
        if head is not waiting:
            head.passed += 1


def reorder(lines: Lines, key: Callable[[Waiting], Key]) -> None:
    """Another strategy is in force: every line is sorted anew."""
    for line in lines.by_group.values():
        for waiting in line.entries.values():
            waiting.key = key(waiting)
        line.order = sorted(place(waiting) for waiting in line.entries.values())
