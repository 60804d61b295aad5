"""Bytes to events and back. The body is JSON, so that `nats sub 'watch.tg.>'` can be read by a person.

A body is an envelope: who wrote it, at what pool time, and one or more events, each with its cause:

    {"owner": "gw-1", "ts_ns": 17, "said": [{"event": {"type": "ticked.v1", "n": 3}}]}

Decoding never raises: what this version cannot read becomes `Unknown` in its place, because a log with one
bad record must still be read to its end.
"""

import re
from typing import Any, Union

import msgspec

from events import control, decisions, engine, quota, request, slice, subjects, upcast
from events.base import Event, Recorded, Unknown

EVENTS: tuple[type[Event], ...] = (
    request.RequestArrived, request.DispatchStarted, request.FirstTokenSeen, request.RequestFinished,
    request.RequestAborted, request.RequestExpired, request.HolderBeat, request.HolderStopped, request.OutputPredicted,
    request.OutputTraced,
    engine.EngineRegistered, engine.EngineRemoved, engine.EngineHealthChanged, engine.EngineMeasured,
    engine.DeviceMeasured, engine.DevicesUnseen,
    slice.SlicesStored, slice.SlicesRemoved, slice.SlicesCleared, slice.SlicesPinned,
    slice.SlicesHit, slice.TierMeasured, slice.TransferFinished, slice.ChoiceMade,
    control.Ticked, control.PolicyConfigured, control.ActorStarted, control.EventQuarantined,
    control.ShadowCompared, control.IngestRefused,
    quota.TenantQuotaAsked, quota.ShareBoundsAsked,
    decisions.RequestAdmitted, decisions.RequestDeferred, decisions.RequestRejected, decisions.HolderLost,
    decisions.WakeAsked, decisions.RequestPreempted, decisions.MiscoverageNoticed, decisions.SharesSet,
    decisions.TenantQuotaSet, decisions.EngineDirected, decisions.TransferOrdered, decisions.TransferCancelled,
    decisions.LinkSuspended,
    Unknown,
)  # fmt: skip
BY_TAG: dict[str, type[Event]] = {cls.event_tag(): cls for cls in EVENTS}
MALFORMED = "malformed"
DEPTH_MAX = 256
"""A body that nests deeper is malformed. Said here, because the interpreter's own bound depends on its version and on
how deep the caller's stack is: the same record would be read here and refused there."""
_BRACKET_OR_STRING = re.compile(rb'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)


class Said(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event and what it answers."""

    cause: str = ""
    event: Union[EVENTS]  # type: ignore[valid-type]  # noqa: UP007


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """The body of one message."""

    owner: str
    ts_ns: int
    said: list[Said]


class _RawSaid(msgspec.Struct, frozen=True, kw_only=True):
    cause: str = ""
    event: dict[str, Any]


class _RawEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    owner: str
    ts_ns: int
    said: list[_RawSaid]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Envelope).decode
_decode_raw = msgspec.json.Decoder(_RawEnvelope).decode


def encode(*, owner: str, ts_ns: int, said: list[Said]) -> bytes:
    """The body of one message."""
    return _encode(Envelope(owner=owner, ts_ns=ts_ns, said=said))


def kind_of(said: list[Said]) -> str:
    """The last token of a message's subject: the kind that all its events are of, or `several`."""
    kinds = {type(each.event) for each in said}
    cls: type[Event] | None = kinds.pop() if len(kinds) == 1 else None
    return subjects.SEVERAL if cls is None else cls.event_kind()


def decode(seq: int, subject: str, body: bytes) -> list[Recorded]:
    """The events of one message in order, at least one. Never raises; see the module."""
    actor = actor_of(subject)
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX and _depth(body) > DEPTH_MAX:
        return [_malformed(seq, actor)]
    try:
        envelope = _decode(body)
    except ValueError:  # Wrong JSON or fields, or wrong UTF-8.
        return _decode_old(seq, actor, body)
    if not envelope.said:
        return [_malformed(seq, actor)]
    owner, ts_ns = envelope.owner, envelope.ts_ns
    return [
        Recorded(seq=seq, item=item, event=said.event, actor=actor, owner=owner, cause=said.cause, ts_ns=ts_ns)
        for item, said in enumerate(envelope.said)
    ]


def actor_of(subject: str) -> str:
    """The actor that a decision's subject names; "" for a fact."""
    parts = subject.split(".")
    return parts[4] if len(parts) > 5 and parts[3] == "decision" else ""


def event_of(raw: dict[str, Any]) -> Event:
    """One event from plain values: upcast first, `Unknown` when this version cannot read it."""
    raw = upcast.to_newest(raw)
    tag = str(raw.get("type", ""))
    cls = BY_TAG.get(tag)
    if cls is None:
        return Unknown(raw_tag=tag)
    try:
        event: Event = msgspec.convert(raw, cls)
    except msgspec.ValidationError:
        return Unknown(raw_tag=f"invalid:{tag}")
    return event


def _decode_old(seq: int, actor: str, body: bytes) -> list[Recorded]:
    try:
        envelope = _decode_raw(body)
    except ValueError:  # Wrong JSON or fields, or wrong UTF-8.
        return [_malformed(seq, actor)]
    owner, ts_ns = envelope.owner, envelope.ts_ns
    return [
        Recorded(
            seq=seq, item=item, event=event_of(said.event),
            actor=actor, owner=owner, cause=said.cause, ts_ns=ts_ns,
        )
        for item, said in enumerate(envelope.said)
    ]  # fmt: skip


def _depth(body: bytes) -> int:
    """How deep lists and objects lie in one another at the deepest; brackets inside of strings do not count."""
    depth = deepest = 0
    for token in _BRACKET_OR_STRING.findall(body):
        if token in (b"{", b"["):
            depth += 1
            deepest = max(deepest, depth)
        elif token in (b"}", b"]"):
            depth -= 1
    return deepest


def _malformed(seq: int, actor: str) -> Recorded:
    return Recorded(seq=seq, item=0, event=Unknown(raw_tag=MALFORMED), actor=actor)
