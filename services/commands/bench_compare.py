"""`tidegate bench compare`: two reports of the memory benchmark, and what differs beyond noise."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.commands.options import with_output
from services.runtime.config_sources import ConfigError, meant
from services.runtime.output import Exit, Output, table

if TYPE_CHECKING:
    from rich.console import Console

    from replay.bench.memory.compare import Comparison, Difference
    from replay.bench.memory.regression import Kind, Regression
    from replay.bench.memory.report import Report

WORSE = "worse"
DIFFERENT = "different"
COLUMNS = ("workload", "system", "engines", "load", "what", "first", "second", "change", "counts from", "")
REPORT = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("first", type=REPORT)
@click.argument("second", type=REPORT)
@click.option("--all", "everything", is_flag=True, help="Also what does not differ beyond noise.")
@click.option(
    "--fail-on",
    default="",
    help="Exit code 1 on any of: worse, different, drift, lost-win (the last two as `bench run --against` has them). "
    "Where nothing could be compared, worse and different are.",
)
@with_output
def command(first: Path, second: Path, everything: bool, fail_on: str, out: Output) -> int:
    """Hold the report SECOND against the report FIRST: files of JSON, or the folders that `bench run` wrote.

    A difference counts beyond the spread over seeds and a margin: 1 %, or 5 % where there are fewer than three seeds.
    """
    from replay.bench.memory.compare import Verdict, compare
    from replay.bench.memory.files import read_report

    before, now = read_report(first), read_report(second)
    kinds, others = parse_fail_on(fail_on, also=(WORSE, DIFFERENT))
    found = compare(before, now)
    lost = regressions_of(before, now, kinds)
    shown = found.differences if everything else found.counted()
    value = {
        "differences": shown, "compared": len(found.differences), "only_first": found.only_first,
        "only_second": found.only_second, "few_seeds": found.few_seeds, "other_offers": found.other_offers,
        "unlike": found.unlike, "regressions": lost,
    }  # fmt: skip

    def show(console: "Console") -> None:
        show_comparison(found, shown, console)
        if kinds:
            show_regressions(lost, console)

    out.result(value, show)
    failed = (
        bool(lost)
        or (WORSE in others and bool(found.counted(Verdict.WORSE)))
        or (DIFFERENT in others and bool(found.counted() or found.only_first or found.only_second))
        or (bool(others) and not found.differences)  # Nothing that both have: nothing was held against anything.
    )
    return Exit.NO if failed else Exit.FINE


def parse_fail_on(text: str, *, also: Sequence[str] = ()) -> "tuple[list[Kind], list[str]]":
    """The kinds of regression that a list with commas names, and what of `also` it names. Raises ConfigError."""
    from replay.bench.memory.regression import Kind

    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [*also, *(kind.value for kind in Kind)]
    for name in names:
        if name not in known:
            what = f"there is no {name!r}{meant(name, known)}"
            raise ConfigError(what, where="--fail-on", key="", allowed=", ".join(known))
    return [kind for kind in Kind if kind.value in names], [name for name in names if name in also]


def baseline_of(path: Path, suite: str) -> "Report":
    """A report that a run of a suite can be held against: said before hours of runs. Raises ReportError,
    NotComparable."""
    from replay.bench.memory.files import read_report
    from replay.bench.memory.regression import check_baseline

    report = read_report(path)
    check_baseline(report, suite)
    return report


def regressions_of(
    before: "Report", now: "Report", kinds: "Collection[Kind]", *, narrowed: bool = False
) -> "list[Regression]":
    """What is worse than it was, of these kinds; where the run was narrowed, of what it measured. Raises
    NotComparable."""
    from replay.bench.memory.regression import regressions

    return regressions(before, now, kinds=kinds, narrowed=narrowed) if kinds else []


def show_comparison(found: "Comparison", shown: "Sequence[Difference]", console: "Console") -> None:
    """A row for each of `shown`, and what it is a part of."""
    from replay.bench.memory.compare import MARGIN_FEW, SEEDS_MIN, Verdict

    if shown:
        console.print(table(COLUMNS, [_row(one) for one in shown]))
    better, worse = (len(found.counted(verdict)) for verdict in (Verdict.BETTER, Verdict.WORSE))
    same = len(found.differences) - better - worse
    console.print(f"{len(found.differences)} quantities: {better} better, {worse} worse, {same} within noise")
    if found.few_seeds:
        margin = f"{MARGIN_FEW:.0%}"
        console.print(
            f"{found.few_seeds} cells have fewer than {SEEDS_MIN} seeds: their noise is not known, and a difference"
            f" counts from {margin} on"
        )
    if found.other_offers:
        console.print(
            f"{found.other_offers} cells were offered more or fewer requests a second than in the first (a load is a"
            " multiple of each report's own knee): read ratios and shares, not requests a second"
        )
    for what in found.unlike:
        console.print(f"not the same workload: {what}", markup=False)
    for places, which in ((found.only_first, "first"), (found.only_second, "second")):
        if places:
            names = ", ".join(
                dict.fromkeys(f"{place.workload}/{place.system}/{place.engine.value}" for place in places)
            )
            console.print(f"only in the {which}: {len(places)} cells of {names}", markup=False)


def show_regressions(found: "Sequence[Regression]", console: "Console") -> None:
    """A row for each; one line where there are none."""
    if not found:
        console.print("nothing is worse than in the baseline")
        return
    rows = [(one.kind.value, one.what, one.before, one.now) for one in found]
    console.print(table(("worse", "", "baseline", "now"), rows))


def _row(one: "Difference") -> tuple[str, ...]:
    place = one.place
    change = "" if one.share is None else f"{one.share:+.1%}"
    needed = f"{one.needed / one.first:.1%}" if one.first and one.second is not None else ""
    return (
        place.workload, place.system, place.engine.value, f"{place.load:g}", one.metric, _said(one.metric, one.first),
        _said(one.metric, one.second), change, needed, one.verdict.value,
    )  # fmt: skip


def _said(metric: str, value: float | None) -> str:
    from replay.bench.memory import said

    if metric.endswith("_ns"):
        return said.span(value)
    return said.number(value, 3)
