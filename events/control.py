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


class ShadowChange(msgspec.Struct, frozen=True, array_like=True):
    """Where another rule would have fired: [code as recorded, code as tried, how often]."""

    recorded: str
    tried: str
    count: int


class ShadowCompared(Event, frozen=True, kw_only=True, tag="shadow_compared.v1"):
    """What a second policy, which nobody goes by, would have said beside one actor from record `since_seq` to `to_seq`.

    `shadow` names this start of it, `policy` what is tried; `settings` are what it would write as the actor's. What a
    step says of one subject is a word: `words` = `same` + other `amounts` + other `outcomes` + those still other in the
    same way (`standing`) + other `wakes`. `changes` are the most frequent ones, `first` is the cause of the first other
    outcome. `failed`: its policy broke, and nothing behind that is compared. `ended`: this is its last word.
    """

    shadow: str
    policy: str
    actor: str
    settings: dict[str, Any]
    code_version: str
    since_seq: int
    to_seq: int
    words: int = 0
    same: int = 0
    amounts: int = 0
    outcomes: int = 0
    standing: int = 0
    wakes: int = 0
    changes: tuple[ShadowChange, ...] = ()
    first: str = ""
    failed: str = ""
    ended: bool = False


class IngestRefused(Event, frozen=True, kw_only=True, tag="ingest_refused.v1"):
    """Messages that the ingest did not let into the log since it last said so, by reason."""

    client: str
    reason: str
    count: int
