"""A request's whole story as a log tells it: what happened to it, when, and what was predicted beside what came.

Also where to look when somebody asks about an id: a request's, or the place of a decision in the log.
"""

from collections import deque
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice
from typing import Any

import msgspec

from events import codec
from events.base import Cause, Event, Recorded
from events.decisions import HolderLost, RequestAdmitted, RequestPreempted, RequestRejected, TransferOrdered
from events.request import (
    FirstTokenSeen,
    RequestAborted,
    RequestArrived,
    RequestExpired,
    RequestFinished,
)
from replay.replayer import Source

NEAR_MAX = 3
"""Ids that are offered in place of one that is not there."""
IDS_MAX = 65_536
"""Ids that are looked through for them: the last ones that arrived."""
_ENDS = (RequestFinished, RequestRejected, RequestExpired, HolderLost)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to a request. `since_ns` counts from its arrival; `actor` is who decided it, "" for a
    fact."""

    at: str
    ts_ns: int
    since_ns: int
    actor: str
    owner: str
    cause: str
    event: dict[str, Any]


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """A predicted amount beside the actual one. `low` is the lower end of what was predicted (None = none was
    said)."""

    name: str
    predicted: int
    actual: int
    low: int | None = None


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """A request from its arrival to its end. `decisions` are the places of what was decided about it, in order;
    `ended` is false where its end is not in the log."""

    request_id: str
    ended: bool
    steps: tuple[Step, ...]
    decisions: tuple[str, ...]
    beside: tuple[Beside, ...]


def story_of(source: Source, request_id: str) -> Story | None:
    """What the log says of a request; None when it says nothing. Reads the log once."""
    records = list(_records_about(source, request_id))
    if not records:
        return None
    arrived = next((one for one in records if isinstance(one.event, RequestArrived)), records[0])
    return Story(
        request_id=request_id,
        ended=_is_end(records[-1].event),
        steps=tuple(_step(one, arrived.ts_ns) for one in records),
        decisions=tuple(str(one.at) for one in records if one.actor and one.cause and _is_about(one, request_id)),
        beside=tuple(_beside([one for one in records if _is_about(one, request_id)])),
    )


def _records_about(source: Source, request_id: str) -> Iterator[Recorded]:
    """The records that name a request, the beats of its holder left out."""
    needle = msgspec.json.encode(request_id)
    for message in source:
        if needle not in message.body:
            continue
        for recorded in codec.decode(message.seq, message.subject, message.body):
            if _is_about(recorded, request_id) or _names(recorded.event, request_id):
                yield recorded


def _is_about(recorded: Recorded, request_id: str) -> bool:
    return getattr(recorded.event, "request_id", None) == request_id


def _names(event: Event, request_id: str) -> bool:
    match event:
        case HolderLost():
            return request_id in event.requests
        case RequestPreempted() | TransferOrdered():
            return event.for_request == request_id
        case _:
            return False


def _is_end(event: Event) -> bool:
    return isinstance(event, _ENDS) or (isinstance(event, RequestAborted) and event.final)


def _step(recorded: Recorded, arrived_ns: int) -> Step:
    return Step(
        at=str(recorded.at), ts_ns=recorded.ts_ns, since_ns=recorded.ts_ns - arrived_ns, actor=recorded.actor,
        owner=recorded.owner, cause=recorded.cause, event=msgspec.to_builtins(recorded.event),
    )  # fmt: skip


def _beside(records: list[Recorded]) -> Iterator[Beside]:
    """What the last admission predicted, beside what came of it."""
    last: dict[type[Event], Recorded] = {type(one.event): one for one in records}
    admitted, finished = last.get(RequestAdmitted), last.get(RequestFinished)
    if admitted is None:
        return
    said, first = admitted.event, last.get(FirstTokenSeen)
    assert isinstance(said, RequestAdmitted), "records are looked up by their kind"
    if first is not None and first.ts_ns >= admitted.ts_ns and said.ttft_predicted_ns:
        yield Beside(name="ttft_ns", predicted=said.ttft_predicted_ns, actual=first.ts_ns - admitted.ts_ns)
    if finished is None or not isinstance(finished.event, RequestFinished):
        return
    done = finished.event
    yield Beside(
        name="output_tokens", predicted=said.output_tokens_predicted, actual=done.output_tokens,
        low=said.output_tokens_low or None,
    )  # fmt: skip
    yield Beside(name="cached_tokens", predicted=said.cached_tokens_predicted, actual=done.cached_tokens)
    yield Beside(name="kv_cache_tokens", predicted=said.kv_cache_tokens, actual=done.kv_cache_tokens)
    arrived = last.get(RequestArrived)
    if arrived is not None and isinstance(arrived.event, RequestArrived):
        slack_ns = arrived.event.slo_ttft_ns - done.ttft_ns
        yield Beside(name="slo_slack_ns", predicted=said.slo_slack_ns, actual=slack_ns)
    if done.embedding_workspace_bytes:
        predicted = said.embedding_workspace_bytes
        yield Beside(name="embedding_workspace_bytes", predicted=predicted, actual=done.embedding_workspace_bytes)


def record_at(source: Source, place: Cause) -> tuple[Recorded | None, int]:
    """The record at a place (None where there is none), and the last message of the log that was read for it."""
    last = 0
    for message in source:
        last = message.seq
        if message.seq == place.seq:
            records = codec.decode(message.seq, message.subject, message.body)
            return (records[place.item] if place.item < len(records) else None), last
    return None, last


def answers_to(source: Source, place: Cause) -> tuple[str, ...]:
    """The places of the decisions that answer a record."""
    needle = f'"{place}"'.encode()
    return tuple(
        str(recorded.at)
        for message in source
        if codec.actor_of(message.subject) and needle in message.body
        for recorded in codec.decode(message.seq, message.subject, message.body)
        if recorded.cause == str(place)
    )


def near(source: Source, request_id: str) -> list[str]:
    """Ids of requests in the log that look like one that is not there: those that have it as a part first (a client's
    own id without the client's name before it)."""
    ids: deque[str] = deque(maxlen=IDS_MAX)
    for message in source:
        if RequestArrived.event_tag().encode() in message.body:
            records = codec.decode(message.seq, message.subject, message.body)
            ids += [one.event.request_id for one in records if isinstance(one.event, RequestArrived)]
    having = list(islice((one for one in ids if request_id in one), NEAR_MAX))
    return having or get_close_matches(request_id, ids, n=NEAR_MAX)
