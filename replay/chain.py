"""From a record back to where it came from: its cause, the cause's cause, and the arrival of its request."""

from typing import Any

import msgspec

from events import codec
from events.base import Cause, Recorded
from events.request import RequestArrived
from replay.replayer import Source

CHAIN_MAX = 16
"""How many causes are followed back."""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One record of a chain in plain values. `subject` tells who said it."""

    at: str
    subject: str
    owner: str
    ts_ns: int
    cause: str
    event: dict[str, Any]


def chain_of(position: str, source: Source, *, request_id: str = "") -> tuple[Link, ...]:
    """The record at `position` (`seq.item`), then its cause, and so on; last, where the chain does not reach it,
    the arrival of the request that it is about (`request_id`, else the first one named on the way). Each step
    reads the log once, up to the record."""
    links: list[Link] = []
    at = _parsed(position)
    while at is not None and len(links) < CHAIN_MAX:
        link = _record(at, source)
        if link is None:
            break
        links.append(link)
        request_id = request_id or str(link.event.get("request_id", ""))
        # A cause lies before what it caused; anything else is a damaged record and no way back.
        cause = _parsed(link.cause)
        at = cause if cause is not None and cause < at else None
    if request_id and not any(_is_arrival(link) for link in links):
        arrival = _arrival(request_id, source)
        links += [arrival] if arrival is not None else []
    return tuple(links)


def _parsed(text: str) -> Cause | None:
    try:
        return Cause.parse(text)
    except ValueError:
        return None


def _is_arrival(link: Link) -> bool:
    return link.event.get("type") == RequestArrived.event_tag()


def _record(at: Cause, source: Source) -> Link | None:
    for message in source:
        if message.seq == at.seq:
            records = codec.decode(message.seq, message.subject, message.body)
            return _link(records[at.item], message.subject) if at.item < len(records) else None
    return None


def _arrival(request_id: str, source: Source) -> Link | None:
    for message in source:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            if isinstance(recorded.event, RequestArrived) and recorded.event.request_id == request_id:
                return _link(recorded, message.subject)
    return None


def _link(recorded: Recorded, subject: str) -> Link:
    return Link(
        at=str(recorded.at), subject=subject, owner=recorded.owner, ts_ns=recorded.ts_ns,
        cause=recorded.cause, event=msgspec.to_builtins(recorded.event),
    )  # fmt: skip
