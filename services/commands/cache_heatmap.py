"""`tidegate cache heatmap` and `demo`: how slices are used over time, as a picture and in numbers."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from events.slice import Tier
from services.commands.logged import logged
from services.commands.options import Settings, refuse_overwriting, with_force, with_output, with_settings
from services.runtime.output import Exit, Output

if TYPE_CHECKING:
    from services.access_chart import Pattern
    from services.access_demo import Made

FILE = click.Path(path_type=Path, dir_okay=False)
ALL = "all"
COLUMNS_MAX = 2_000


class Drawn(msgspec.Struct, frozen=True, kw_only=True):
    """What was written ("" = nothing asked for), and what it says."""

    picture: str
    stats: str
    pattern: "Pattern"


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A demo: its files, and what they say."""

    made: "Made"
    pattern: "Pattern"


@click.command()
@click.option("--log", "path", type=FILE, help="The journal to look at.")
@click.option("--pool", help="Look at this pool's live log instead of a file.")
@click.option("-o", "--output", type=FILE, help="The picture: a name in .png (needs the extra charts) or .html.")
@click.option("--stats", "stats", type=FILE, help="Also what the picture is made of, as JSON.")
@click.option(
    "--type",
    "type_",
    type=click.Choice([ALL, *(tier.value for tier in Tier)]),
    default=ALL,
    show_default=True,
    help="Which tiers.",
)
@click.option("--columns", type=click.IntRange(1, COLUMNS_MAX), help="Windows of time in the picture.")
@click.option("--summary", is_flag=True, help="The numbers; alone, without a picture.")
@with_settings
@with_output
def heatmap(
    path: Path | None, pool: str | None, output: Path | None, stats: Path | None, type_: str, columns: int | None,
    summary: bool, settings: Settings, out: Output,
) -> int:  # fmt: skip
    """Draw which slices are used when, tier by tier, and say how well tiers are hit.

    A row is a slice, the most used first; time goes from left to right; the brighter, the more accesses.
    """
    from replay.journal_source import JournalSource
    from services.access_chart import pattern_of, write
    from services.access_pattern import COLUMNS, accesses_of
    from services.commands.cache_text import show_pattern
    from services.runtime.snapshot import replace_file

    if (path is None) == (pool is None):
        raise click.UsageError("name a journal with --log, or a pool with --pool")
    if output is None and stats is None and not summary:
        raise click.UsageError("name the picture with --output, or ask for --summary")
    if output is not None:
        check_name(output)
    with logged(settings, path, pool, out) as journal, out.progress("accesses"):
        export = accesses_of(JournalSource(journal), columns=columns or COLUMNS)
    pattern = pattern_of(export)
    if stats is not None:
        replace_file(stats, msgspec.json.format(msgspec.json.encode(export), indent=1))
    if output is not None:
        write(export, output, tiers=tuple(Tier) if type_ == ALL else (Tier(type_),))
    told = Drawn(picture=str(output or ""), stats=str(stats or ""), pattern=pattern)
    out.result(told, lambda console: show_pattern(pattern, console))
    return Exit.FINE


@click.command()
@click.option("--accesses", type=click.IntRange(1, 5_000_000), default=20_000, show_default=True, help="So many.")
@click.option(
    "-o",
    "--output",
    type=FILE,
    default=Path("cache-demo.jsonl.zst"),
    show_default=True,
    help="The journal: a name in .jsonl, or .jsonl.zst.",
)
@click.option("--picture", type=FILE, help="The picture: .png or .html; beside the journal, in .html, if not given.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same log.")
@with_force
@with_output
def demo(accesses: int, output: Path, picture: Path | None, seed: int, force: bool, out: Output) -> int:
    """Make up a log of slices in use, and draw it: something to try the other commands on.

    An engine with three tiers, asked by sessions that share system prompts; which of them are popular changes.
    """
    from events.log.journal import JournalWriter
    from replay.journal_source import JournalSource
    from services.access_chart import pattern_of, write
    from services.access_demo import POOL, Made, messages
    from services.access_pattern import accesses_of
    from services.commands.cache_text import show_pattern

    picture = picture or output.with_name(output.name.partition(".")[0] + ".html")
    check_name(picture)
    for file in (output, picture):
        refuse_overwriting(file, force=force)
    with out.progress("demo"), JournalWriter(output, POOL) as journal:
        for message in messages(accesses, seed=seed):
            journal.write(message)
    export = accesses_of(JournalSource(output))
    write(export, picture)
    made = Made(journal=str(output), picture=str(picture), messages=journal.seq, seed=seed)
    told = Shown(made=made, pattern=pattern_of(export))
    out.result(told, lambda console: show_pattern(told.pattern, console))
    out.remark(f"wrote {output} and {picture}; go on with: tidegate cache stats --log {output}")
    return Exit.FINE


def check_name(picture: Path) -> None:
    """Raise UsageError for a name that says no kind of picture, ModuleNotFoundError for one that needs more than is
    installed: before any work is done."""
    from services.access_chart import SUFFIXES

    if picture.suffix not in SUFFIXES:
        raise click.UsageError(f"{picture}: a picture's name ends in {' or '.join(SUFFIXES)}")
    if picture.suffix == ".png":
        import matplotlib as mpl  # noqa: F401
