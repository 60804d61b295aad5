"""`tidegate trace`: recorded requests as journals of facts: import them, look at them, take a part, hide names."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from events.base import NS_PER_S
from services.commands.options import Amount, refuse_overwriting, with_force, with_output
from services.commands.trace_options import FORMATS, with_reading
from services.runtime.output import Exit, Output

if TYPE_CHECKING:
    from replay.traces.base import Trace
    from replay.traces.formats import Reading
    from replay.workloads.facts import TraceRow

FILE = click.Path(path_type=Path, dir_okay=False)
POOL = "trace"
PROFILE = "llama-3-8b_h100"
SHIFT_S_MAX = 10**10
"""Times are moved by three hundred years at most."""


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A journal that was written. `left_out` were too long for the context; `interrupted`: it is the first part."""

    journal: str
    pool: str
    requests: int
    digest: str
    left_out: int = 0
    estimated: bool = False
    interrupted: bool = False


@click.group()
def command() -> None:
    """Recorded requests as journals of facts: import, look at, take a part of, hide names in."""


def _with_made(command: Any) -> Any:
    command = with_force(command)
    return click.option("--out", "made", type=FILE, required=True,
                        help="The journal to write: a name in .jsonl, or .jsonl.zst.")(command)  # fmt: skip


@command.command("import")
@click.argument("path", type=FILE, metavar="FILE")
@click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="What FILE is.")
@_with_made
@click.option("--pool", default=POOL, show_default=True, help="The pool that the journal names.")
@click.option("--profile", default=PROFILE, show_default=True, metavar="NAME",
              help="Model and device whose KV and step times expected memory and SLOs follow from.")  # fmt: skip
@with_reading
@with_output
def import_(
    path: Path, form: str, made: Path, force: bool, pool: str, profile: str, reading: "Reading", out: Output
) -> int:
    """Make a journal of facts of a trace: each request with its session, think time and expected memory.

    Nothing is skipped in silence: what is wrong is refused with file, line and mend. Ctrl-C leaves a whole journal of
    what was written until then.
    """
    from events.subjects import token

    try:
        token(pool, what="--pool")
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    refuse_overwriting(made, force=force)
    trace, rows = _read(path, form, profile, reading, out)
    done = _write(rows, len(trace.arrivals), made, pool=pool, out=out)
    done = msgspec.structs.replace(done, left_out=trace.left_out, estimated=trace.estimated)
    return _said(done, f"of {path.name}", len(trace.arrivals), out)


@command.command()
@click.argument("path", type=FILE, required=False, metavar="[FILE]")
@click.option("--format", "form", type=click.Choice(FORMATS), default="journal", show_default=True,
              help="What FILE is.")  # fmt: skip
@click.option("--profile", default=PROFILE, show_default=True, metavar="NAME",
              help="Model and device whose KV is counted.")  # fmt: skip
@with_reading
@with_output
def info(path: Path | None, form: str, profile: str, reading: "Reading", out: Output) -> int:
    """What is in a trace; without a file: formats, where the public traces come from, and the one that ships."""
    from services.commands.trace_text import show_description, show_sources, sources

    if path is None:
        known = sources()
        out.result(known, lambda console: show_sources(known, console))
        return Exit.FINE
    from replay.costmodel import PROFILES
    from replay.traces.describe import describe

    trace, rows = _read(path, form, profile, reading, out)
    told = describe(list(rows), token_bytes=PROFILES[profile].kv.token_bytes())
    read = {"file": str(path), "format": form, "profile": profile, "left_out": trace.left_out}
    value = {**read, **msgspec.to_builtins(told)}
    out.result(value, lambda console: show_description(told, path.name, profile, trace.left_out, console))
    return Exit.FINE


@command.command()
@click.argument("path", type=FILE, metavar="JOURNAL")
@_with_made
@click.option("--share", type=Amount(min=0, max=1, min_open=True), help="This share of all sessions.")
@click.option("--count", type=click.IntRange(min=1), help="So many sessions.")
@click.option("--seed", type=int, default=1, show_default=True, help="Which ones.")
@with_output
def sample(path: Path, made: Path, force: bool, share: float | None, count: int | None, seed: int, out: Output) -> int:
    """A part of a trace, by whole sessions: turns stay with the turns that they wait for and go on with."""
    from replay.traces.sample import sample as sampled

    if (share is None) == (count is None):
        raise click.UsageError("say how much: --share or --count")
    refuse_overwriting(made, force=force)
    rows = _rows(path, out)
    chosen = sampled(rows, seed=seed, share=share or 1.0, count=count or 0)
    done = _write(chosen, len(chosen), made, pool=_pool(path), out=out)
    return _said(done, f"of {len(rows)} in {path.name}", len(chosen), out)


@command.command()
@click.argument("path", type=FILE, metavar="JOURNAL")
@_with_made
@click.option("--key-file", type=FILE, help="16 to 64 bytes: the same key gives the same names; else a fresh one.")
@click.option("--shift", type=Amount(min=0, max=SHIFT_S_MAX), default=0.0, metavar="SECONDS",
              help="All times so much later.")  # fmt: skip
@with_output
def anonymise(path: Path, made: Path, force: bool, key_file: Path | None, shift: float, out: Output) -> int:
    """A trace to give away: ids, tenants, sessions and prefixes become keyed hashes; what was equal stays equal.

    Lengths, gaps between requests and names of models stay as they are.
    """
    from replay.traces.anonymise import anonymised

    refuse_overwriting(made, force=force)
    key = _key(key_file)
    rows = _rows(path, out)
    hidden = anonymised(rows, key=key, shift_ns=round(shift * NS_PER_S))
    done = _write(hidden, len(rows), made, pool=POOL, out=out)
    return _said(done, "without names", len(rows), out)


def _read(path: Path, form: str, profile: str, reading: "Reading", out: Output) -> "tuple[Trace, Iterator[TraceRow]]":
    """What is in the file, and its rows with what they are expected to hold on an engine of that profile."""
    from replay.costmodel import PROFILES, registered
    from replay.traces.base import TraceError
    from replay.traces.formats import JOURNAL, read_trace
    from replay.workloads.facts import row_of

    if profile not in PROFILES:
        raise click.UsageError(f"there is no profile {profile!r}: one of {', '.join(PROFILES)}")
    size = path.stat().st_size if path.is_file() and form != JOURNAL else None
    with out.progress(f"read {path.name}", size) as advance:
        trace = read_trace(path, form, reading=reading, on_progress=lambda done, _size: advance(done))
    if not trace.arrivals:
        raise TraceError("no request arrives in it", file=str(path), line=0, mend="see `tidegate trace info`")
    engine = registered("trace", sorted({arrival.model for arrival in trace.arrivals}), profile=profile)
    return trace, (row_of(arrival, engine) for arrival in trace.arrivals)


def _rows(path: Path, out: Output) -> "list[TraceRow]":
    """The requests in a journal. Raises TraceError where there are none."""
    from replay.journal_source import JournalSource
    from replay.traces.base import TraceError
    from replay.traces.formats import heard
    from replay.workloads.facts import rows_of

    with out.progress(f"read {path.name}") as advance:
        rows = rows_of(heard(JournalSource(path), lambda done, _size: advance(done)))
    if not rows:
        raise TraceError("no request arrives in it", file=str(path), line=0, mend="see `tidegate trace info`")
    return rows


def _pool(path: Path) -> str:
    from events.log.journal import read_journal

    return read_journal(path)[0].pool


def _key(file: Path | None) -> bytes:
    from replay.traces.anonymise import KEY_BYTES_MAX, KEY_BYTES_MIN

    if file is None:
        return os.urandom(KEY_BYTES_MAX)
    try:
        key = file.read_bytes()
    except OSError as error:
        raise click.UsageError(f"--key-file {file}: {error.strerror}") from error
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise click.UsageError(f"--key-file {file}: {len(key)} bytes: give {KEY_BYTES_MIN} to {KEY_BYTES_MAX}")
    return key


def _write(rows: "Iterable[TraceRow]", count: int, made: Path, *, pool: str, out: Output) -> Written:
    """Write them as a journal; after Ctrl-C as many as there are by then."""
    from events.base import PoolId
    from events.log.journal import JournalWriter
    from replay.workloads.facts import rows_to_messages
    from services.runtime.interrupt import held_interrupt

    progress = out.progress(f"write {made.name}", count)
    with held_interrupt() as asked, JournalWriter(made, PoolId(pool)) as writer, progress as advance:
        for message in rows_to_messages(rows, pool=PoolId(pool)):
            writer.write(message)
            advance(message.seq)
            if asked.now:
                break
    return Written(
        journal=str(made), pool=pool, requests=writer.seq, digest=writer.digest.hex(),
        interrupted=asked.now and writer.seq < count,
    )  # fmt: skip


def _said(done: Written, what: str, count: int, out: Output) -> int:
    lines = [f"{done.requests:,} requests {what} are in {done.journal}, digest {done.digest}"]
    if done.left_out:
        lines.append(f"{done.left_out:,} were left out: their prompts fill the context")
    if done.estimated:
        lines.append("lengths are estimates: the trace has text, and there is no tokenizer here")
    if done.interrupted:
        lines.append(f"interrupted: {count - done.requests:,} were not written; what is there is whole")
    out.result(done, lambda console: console.print("\n".join(lines)))
    return Exit.INTERRUPTED if done.interrupted else Exit.FINE
