"""Facts about the house itself: time, settings, owners."""

from typing import Any

import msgspec

from events.base import Event


class Ticked(Event, frozen=True, kw_only=True, tag="ticked.v1"):
    """Time went on. The record's `ts_ns` is the pool's time; `n` counts the ticks of one clock."""

    n: int


class PolicyConfigured(Event, frozen=True, kw_only=True, tag="policy_configured.v1"):
    """Settings of one actor were changed, live: only the keys named here. Validated before it was written."""

    actor: str
    settings: dict[str, Any]


class ActorStarted(Event, frozen=True, kw_only=True, tag="actor_started.v1"):
    """An instance took an actor over. It stands among that actor's decisions, so it fences the one before.

    `watermark` is the last cause that the owners before it answered ("" = none); causes after it are this
    owner's. `settings` are its own from here on. `tags` are the events that it takes in; others are no-ops.
    `snapshot_seq` is where its rebuilt state began (0 = from the first record).
    """

    instance: str
    code_version: str
    policy_digest: str
    watermark: str = ""
    snapshot_seq: int = 0
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    tags: tuple[str, ...] = ()


class EventQuarantined(Event, frozen=True, kw_only=True, tag="event_quarantined.v1"):
    """This actor cannot take in the record at `position` (`seq.item`); every replay skips it there."""

    position: str
    error: str


class IngestRefused(Event, frozen=True, kw_only=True, tag="ingest_refused.v1"):
    """Messages that the ingest did not let into the log since it last said so, by reason."""

    client: str
    reason: str
    count: int
