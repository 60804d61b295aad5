"""`tidegate watch`: the committed log as it grows, one line per event; a readable `nats sub`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import NamedTuple

import click
import msgspec

from events.base import NS_PER_MS, NS_PER_S, PPM, Event, PoolId, Recorded
from services.commands.options import Settings, with_output, with_settings
from services.runtime.output import Exit, Output

PENDING_MESSAGES_MAX = 65_536
MB = 10**6
POINT_IN_TIME_NS = 10**6 * NS_PER_S
"""No time that lasts is as long; the pool's time of a live log is far beyond."""


class _Filter(NamedTuple):
    """What is shown. Empty = everything."""

    kinds: tuple[str, ...]
    actor: str
    request: str

    def takes(self, recorded: Recorded) -> bool:
        kind = recorded.event.event_kind()
        return (
            (not self.kinds or any(fnmatchcase(kind, pattern) for pattern in self.kinds))
            and (not self.actor or recorded.actor == self.actor)
            and (not self.request or getattr(recorded.event, "request_id", "") == self.request)
        )


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """One event with its place, for `--json`."""

    at: str
    subject: str
    owner: str
    ts_ns: int
    cause: str
    event: Event


@click.command()
@click.option("--pool", help="Whose log; the configured pool if not given.")
@click.option("--kind", "kinds", multiple=True, help="Only events of this kind; wildcards: --kind 'request_*'.")
@click.option("--actor", default="", help="Only decisions of this actor.")
@click.option("--request", default="", help="Only events about this request.")
@click.option("--from", "first", type=click.IntRange(min=1), help="Begin with this record instead of now.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many lines.")
@with_settings
@with_output
def command(
    pool: str | None, kinds: tuple[str, ...], actor: str, request: str, first: int | None, count: int | None,
    settings: Settings, out: Output,
) -> int:  # fmt: skip
    """Follow the committed log, one line per event: record, pool time, who, what, and its cause.

    Only what the log has taken is shown: refused messages never are. Ends with Ctrl-C, or after --count lines.
    """
    from services.runtime.aio import run

    config = settings.load()
    name = PoolId(pool or config.pool)
    return run(_watch(settings, name, _Filter(kinds, actor, request), first=first, count=count, out=out))


async def _watch(
    settings: Settings, pool: PoolId, wanted: _Filter, *, first: int | None, count: int | None, out: Output
) -> int:
    shown = 0
    records = _stored(settings, pool, first) if first is not None else _live(settings, pool, out)
    async with aclosing(records):
        async for subject, recorded in records:
            if not wanted.takes(recorded):
                continue
            _show(subject, recorded, out)
            shown += 1
            if shown == count:
                break
    return Exit.FINE


async def _stored(settings: Settings, pool: PoolId, first: int) -> AsyncGenerator[tuple[str, Recorded], None]:
    """From a record on, out of the stream itself; then as it grows."""
    from events import codec
    from services.runtime.servers import open_log

    async with open_log(settings.load(), pool) as log, aclosing(log.read(after=first - 1, follow=True)) as batches:
        async for batch in batches:
            for message in batch:
                for recorded in codec.decode(message.seq, message.subject, message.body):
                    yield message.subject, recorded


async def _live(settings: Settings, pool: PoolId, out: Output) -> AsyncGenerator[tuple[str, Recorded], None]:
    """What is republished from now on; a line says where this was too slow to see everything."""
    from events import codec, subjects
    from events.log.jetstream import connect
    from services.runtime.servers import nats_url

    config = settings.load()
    client = await connect(nats_url(config), name="tidegate-watch", creds=config.nats.creds)
    try:
        subscription = await client.subscribe(subjects.watch_of(pool), pending_msgs_limit=PENDING_MESSAGES_MAX)
        await client.flush()
        out.remark(f"watching pool {pool} on {client.where}; Ctrl-C ends")
        last = 0
        async for message in subscription.messages:
            seq = int((message.headers or {}).get("Nats-Sequence", last + 1))
            if last and seq != last + 1:
                out.remark(f"... {seq - last - 1} messages were not seen (too slow)")
            last = seq
            subject = message.subject.removeprefix("watch.")
            for recorded in codec.decode(seq, subject, message.data):
                yield subject, recorded
    finally:
        await client.close()


def _show(subject: str, recorded: Recorded, out: Output) -> None:
    if out.as_json:
        out.line(
            _Line(
                at=str(recorded.at), subject=subject, owner=recorded.owner, ts_ns=recorded.ts_ns,
                cause=recorded.cause, event=recorded.event,
            )
        )  # fmt: skip
        return
    from rich.text import Text

    out.console.print(
        Text.assemble(
            (f"{recorded.at!s:>9} ", "dim"),
            (f"{recorded.ts_ns // NS_PER_MS % 100_000_000 / 1000:>10.3f} ", "dim"),
            (f"{recorded.actor or subject.split('.')[4]:<10} ", "cyan" if recorded.actor else "default"),
            (f"{recorded.event.event_kind():<24} ", "bold" if recorded.actor else "default"),
            fields(recorded.event),
            (f"  <- {recorded.cause}" if recorded.cause else "", "dim"),
        )
    )


def fields(event: Event) -> str:
    """What an event says, on one line for people: shares in percent, memory in MB, times in ms (points in time as they
    are), long lists as their length. `--json` has every digit."""
    plain: dict[str, object] = msgspec.to_builtins(event)
    return " ".join(f"{name}={_short(name, value)}" for name, value in plain.items() if name != "type")


def _short(name: str, value: object) -> str:
    if isinstance(value, list | tuple) and len(value) > 2:
        return f"[{len(value)}]"
    if isinstance(value, int) and not isinstance(value, bool):
        if name.endswith("_ppm"):
            return f"{value / PPM:.1%}"
        if "bytes" in name and abs(value) >= MB:
            return f"{value / MB:.1f}MB"
        if name.endswith("_ns") and abs(value) < POINT_IN_TIME_NS:
            return f"{value / NS_PER_MS:.1f}ms"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
