"""What an event is, and what its place in the log adds to it."""

from enum import StrEnum
from functools import lru_cache
from typing import ClassVar, NewType

import msgspec

PoolId = NewType("PoolId", str)
EngineId = NewType("EngineId", str)
RequestId = NewType("RequestId", str)
TenantId = NewType("TenantId", str)
ModelId = NewType("ModelId", str)
HolderId = NewType("HolderId", str)
SessionId = NewType("SessionId", str)
SliceId = NewType("SliceId", str)
"""Fingerprint of a slice: 32 hex digits (BLAKE2b-16, keyed by cache domain, chained)."""
Seq = NewType("Seq", int)
"""Position of a message in the stream of its pool, from 1; 0 means "before the first"."""

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
PPM = 1_000_000
TICK_MAX_NS = 2 * NS_PER_S
"""How far one record may move the pool's time beyond the last tick."""


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Something that happened or was ordered. Past tense, flat, integers for amounts, never edited.

    The tag is `kind.vN`. A new field comes with a default; a changed meaning is a new kind.
    """

    @classmethod
    def event_tag(cls) -> str:
        """The tag that stands in the body as `type`, such as `request_arrived.v1`."""
        tag = cls.__struct_config__.tag
        assert isinstance(tag, str), "every event class names its tag"
        return tag

    @classmethod
    def event_kind(cls) -> str:
        """The tag without its version: the last token of the subject."""
        return cls.event_tag().rpartition(".")[0]


class Unknown(Event, frozen=True, kw_only=True, tag="unknown.v1"):
    """A record whose tag this version does not know: kept in its place, taken in by nobody, counted."""

    raw_tag: str


class Cause(msgspec.Struct, frozen=True, order=True):
    """The record that a decision answers: message `seq`, event `item` inside it. Written `seq.item`."""

    seq: int
    item: int

    def __str__(self) -> str:
        return f"{self.seq}.{self.item}"

    @staticmethod
    def parse(text: str) -> "Cause":
        """Read `seq.item`. Raises ValueError on anything else."""
        return _cause(text)


@lru_cache(maxsize=64)
def _cause(text: str) -> Cause:
    """Kept for a while: a record is read by several actors, and answered by several decisions."""
    seq, dot, item = text.partition(".")
    if not (dot and seq.isdecimal() and item.isdecimal()):
        raise ValueError(f"cause {text!r} is not <seq>.<item>")
    return Cause(int(seq), int(item))


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """An event in its place in the log.

    `actor` is who decided it ("" for a fact), `owner` the instance that wrote it, `cause` what it answers
    ("" for a fact without one), `ts_ns` the writer's pool time.
    """

    seq: int
    item: int
    event: Event
    actor: str = ""
    owner: str = ""
    cause: str = ""
    ts_ns: int = 0

    @property
    def at(self) -> Cause:
        """The record's own position, as its answers will name it."""
        return Cause(self.seq, self.item)


class RequestKind(StrEnum):
    """What is asked of an engine: tokens out, or a vector."""

    LLM = "llm"
    EMBEDDING = "embedding"


class LogError(Exception):
    """The log failed. `where` is the address or file; the mend is what a person can do."""

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str, mend: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.mend = what, where, mend

    def __str__(self) -> str:
        return f"{self.what} ({self.where})" + (f": {self.mend}" if self.mend else "")


class LogDamaged(LogError):
    """What stands in the log is not what was written: never read past this point."""

    exit_code: ClassVar[int] = 1


class Fenced(LogError):
    """Another owner has taken this actor over; whoever gets this stops."""

    exit_code: ClassVar[int] = 3
