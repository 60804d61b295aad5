"""`tidegate replay`: logs as files that can be handed on, verified, brought back and made."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from events.base import PoolId
from services.commands.logged import logged
from services.commands.options import Settings, refuse_overwriting, with_force, with_output, with_settings
from services.commands.simulate import simulate
from services.commands.whatif import whatif
from services.runtime.output import Exit, Output

JOURNAL = click.Path(path_type=Path, dir_okay=False)


@click.group()
def command() -> None:
    """Export, verify, import and simulate logs; try other policies on them."""


command.add_command(simulate)
command.add_command(whatif)


@command.command()
@click.option("--pool", help="Whose log; the configured pool if not given.")
@click.option("--out", "path", type=JOURNAL, required=True, help="The journal: a name in .jsonl, or .jsonl.zst.")
@with_force
@with_settings
@with_output
def export(pool: str | None, path: Path, force: bool, settings: Settings, out: Output) -> int:
    """Write a pool's log into a journal."""
    from services import journals
    from services.runtime.aio import run

    refuse_overwriting(path, force=force)
    config = settings.load()
    with out.progress(f"export to {path}") as advance:
        done = run(journals.export(config, PoolId(pool or config.pool), path, on_progress=advance))
    text = f"exported {done.messages} messages of pool {done.pool} to {path}, digest {done.digest}"
    out.result(done, lambda console: console.print(text))
    return Exit.FINE


@command.command()
@click.argument("path", type=click.Path(path_type=Path), required=False, metavar="[FILE]")
@click.option("--pool", help="Verify this pool's live log instead of a file.")
@click.option("--any-version", is_flag=True, help="Hold decisions of other code versions against this code too.")
@click.option("--complete", is_flag=True, help="Pending decisions are a no as well.")
@click.option("--engine", is_flag=True, help="FILE is an engine's own journal of choices, or the folder of them.")
@click.option("--log", "said", type=JOURNAL, help="With --engine: the pool's journal, whose choices must be the same.")
@with_settings
@with_output
def verify(
    path: Path | None, pool: str | None, any_version: bool, complete: bool, engine: bool, said: Path | None,
    settings: Settings, out: Output,
) -> int:  # fmt: skip
    """Whether every decision in a log follows from it. Exit code 1 when not, or when the log is damaged."""
    if (path is None) == (pool is None):
        raise click.UsageError("name a journal, or a pool with --pool")
    if said is not None and not engine:
        raise click.UsageError("--log goes with --engine")
    if engine:
        if path is None:
            raise click.UsageError("an engine's journal is a file: --engine FILE")
        return _verify_choices(path, said, any_version=any_version, out=out)
    with logged(settings, path, pool, out) as journal:
        return _verify(journal, any_version=any_version, complete=complete, out=out)


def _verify_choices(path: Path, said: Path | None, *, any_version: bool, out: Output) -> int:
    from events.log.journal import read_journal
    from replay.choice_journal import ChoicesDamaged, NoChoices, files_of
    from replay.code_version import code_version
    from replay.verify_choices import verify_choices
    from services.commands.choices_text import show_choices

    log = read_journal(said)[1] if said is not None else None
    files = files_of(path) if path.is_dir() else [path]
    if not files:
        raise NoChoices("there is no journal of choices", where=str(path))
    try:
        report = verify_choices(files, code_version="" if any_version else code_version(), log=log)
    except ChoicesDamaged as error:
        if not out.as_json:
            raise
        out.line({"identical": False, "damaged": error.what, "first_bad": error.number, "where": error.where})
        return Exit.NO
    out.result(report, lambda console: show_choices(report, console))
    return Exit.FINE if report.identical else Exit.NO


def _verify(path: Path, *, any_version: bool, complete: bool, out: Output) -> int:
    from events.base import LogDamaged
    from policies.catalog import ACTORS
    from replay.code_version import code_version
    from replay.journal_source import JournalSource
    from replay.verify import verify as hold
    from services.commands.verify_text import show

    source = JournalSource(path)
    started = time.perf_counter()
    try:
        with out.progress(f"verify {path.name}") as advance, _no_collector():
            version = "" if any_version else code_version()
            report = hold(source, source.pool, ACTORS, code_version=version, on_progress=advance)
    except LogDamaged as error:
        if not out.as_json:
            raise
        out.line(
            {"identical": False, "damaged": error.what, "first_bad": getattr(error, "seq", None), "where": error.where}
        )
        return Exit.NO
    out.result(report, lambda console: show(report, console))
    seconds = time.perf_counter() - started
    out.remark(f"{report.events / seconds:,.0f} events/s ({seconds:.2f} s)")
    return Exit.FINE if report.identical and not (complete and report.pending) else Exit.NO


@contextmanager
def _no_collector() -> Iterator[None]:
    """Records make no cycles, and a collector that walks all that is held of a log costs up to a third."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@command.command("import")
@click.argument("path", type=JOURNAL, metavar="FILE")
@click.option("--pool", help="Into this pool's stream, which must be empty; the journal's own pool if not given.")
@with_settings
@with_output
def import_(path: Path, pool: str | None, settings: Settings, out: Output) -> int:
    """Bring a journal back into a stream. (`tidegate trace import` makes journals of request traces.)"""
    from services import journals
    from services.runtime.aio import run

    with out.progress(f"import {path.name}") as advance:
        done = run(journals.bring_back(settings.load(), path, PoolId(pool) if pool else None, on_progress=advance))
    lines = [f"imported {done.messages} messages into pool {done.pool}, digest {done.digest}"]
    if done.digest != done.journal_digest:
        lines.append(
            f"the digest names the pool: in the journal (pool {done.journal_pool}) it is {done.journal_digest}"
        )
    out.result(done, lambda console: console.print("\n".join(lines)))
    return Exit.FINE
