"""Requests that are deferred: one line per kind and model, in order of arrival.

A line's head may be passed by a bounded number of later ones, so a large request behind which small ones still fit
holds nothing up and is not starved either.
"""

import msgspec

from events.base import EngineId, RequestId
from events.request import RequestArrived


class Waiting(msgspec.Struct, kw_only=True):
    """One deferred request. `until_ns` is the latest start that can still meet its deadline; `work_ns` the prefill
    that it brings; `avoid` the engine it was lost on; `passed` how many later ones went before it while it was the
    head of its line."""

    request: RequestArrived
    arrived_ns: int = 0
    avoid: EngineId = EngineId("")
    until_ns: int = 0
    work_ns: int = 0
    passed: int = 0


class Line(msgspec.Struct):
    """The deferred requests of one kind and model, and the sum of their work."""

    entries: dict[RequestId, Waiting] = msgspec.field(default_factory=dict)
    work_ns: int = 0


class Lines(msgspec.Struct):
    """All lines (a line is there while somebody waits in it), and in which one each request is."""

    by_group: dict[str, Line] = msgspec.field(default_factory=dict)
    group_of: dict[RequestId, str] = msgspec.field(default_factory=dict)


def group(request: RequestArrived) -> str:
    """What shares a line."""
    return f"{request.kind.value}:{request.model}"


def put(lines: Lines, waiting: Waiting) -> None:
    """To the end of its line."""
    request = waiting.request
    name = group(request)
    line = lines.by_group.setdefault(name, Line())
    line.entries[request.request_id] = waiting
    line.work_ns += waiting.work_ns
    lines.group_of[request.request_id] = name


def take(lines: Lines, request_id: RequestId) -> Waiting | None:
    """Out of its line; None when it waits in none."""
    name = lines.group_of.pop(request_id, None)
    if name is None:
        return None
    line = lines.by_group[name]
    waiting = line.entries.pop(request_id)
    line.work_ns -= waiting.work_ns
    if not line.entries:
        del lines.by_group[name]
    return waiting


def note_admitted(lines: Lines, request: RequestArrived) -> None:
    """This one goes now; if it is not the head of its line, the head was passed."""
    line = lines.by_group.get(group(request))
    if line is not None:
        head_id, head = next(iter(line.entries.items()))
        if head_id != request.request_id:
            head.passed += 1
