"""Which subject a message goes to. Tokens are ASCII, bounded and low in number; payload never stands here."""

import re
from typing import Final

from events.base import PoolId

VERSION: Final = "v1"
SEVERAL: Final = "several"
TOKEN_MAX: Final = 64
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


def token(text: str, *, what: str) -> str:
    """`text` if it can stand in a subject; else ValueError that says what is wrong with which name."""
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{what} {text!r}: use 1 to {TOKEN_MAX} of A-Z a-z 0-9 _ -")
    return text


def fact(pool: PoolId, source: str, kind: str) -> str:
    """Where a source (gateway, ingest, sensor, clock, policy) writes a fact."""
    return f"tg.{VERSION}.{pool}.fact.{source}.{kind}"


def decision(pool: PoolId, actor: str, kind: str) -> str:
    """Where an actor writes a decision."""
    return f"tg.{VERSION}.{pool}.decision.{actor}.{kind}"


def decisions_of(pool: PoolId, actor: str) -> str:
    """All that one actor says: the unit of ownership."""
    return f"tg.{VERSION}.{pool}.decision.{actor}.>"


def shadow_decision(pool: PoolId, actor: str, kind: str) -> str:
    """Where a shadow says what it would have decided: beside the log, so that nobody carries it out."""
    return f"tg.shadow.{pool}.decision.{actor}.{kind}"


def shadow_difference(pool: PoolId, actor: str) -> str:
    """Where a shadow says what it would have decided otherwise."""
    return f"tg.shadow.{pool}.difference.{actor}"


def log_of(pool: PoolId) -> str:
    """All that a pool's stream holds."""
    return f"tg.{VERSION}.{pool}.>"


def watch_of(pool: PoolId | None = None) -> str:
    """What people watch: the committed log, republished."""
    return f"watch.tg.{VERSION}.{pool}.>" if pool else "watch.tg.>"


def ingest_of(pool: PoolId) -> str:
    """Where clients with their own data plane publish: `tg.in.<pool>.<client>.<kind>`."""
    return f"tg.in.{pool}.*.*"


def rpc(pool: PoolId, name: str) -> str:
    """Request-reply lives apart from the log: inside it the stream would answer with its PubAck."""
    return f"tg.rpc.{pool}.{name}"


def stream_of(pool: PoolId) -> str:
    """Name of the pool's stream."""
    return f"TG_{pool}"


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject falls under a NATS pattern (`*` one token, `>` one or more at the end)."""
    wanted, given = pattern.split("."), subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(given) > index
        if index >= len(given) or (part not in ("*", given[index])):
            return False
    return len(wanted) == len(given)
