"""A report on an engine's own choices as a person reads it."""

from rich.console import Console
from rich.text import Text

from policies.memory.delegate_ops import Choice
from replay.verify_choices import CHANGED, SAID_OTHERWISE, STATE, ChoiceDivergence, ChoicesReport

SHOWN_MAX = 4
WHAT = {
    CHANGED: "is not what follows from what the engine was told and asked",
    STATE: "does not begin with what the journal before it comes to",
    SAID_OTHERWISE: "stands in the log as another choice",
}


def show_choices(report: ChoicesReport, console: Console) -> None:
    """Print the whole report."""
    verdict = "IDENTICAL" if report.identical else "NOT IDENTICAL"
    style = "bold green" if report.identical else "bold red"
    console.print(Text(f"verify: {verdict}, choices of engine {report.engine}", style=style))
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.choices.items()) or "none"
    entries = f"entries {report.first} to {report.last}" if report.ops else "no entries"
    console.print(f"{entries} in {report.files} journals; choices: {kinds}")
    if report.directive_versions:
        shown = ", ".join(map(str, report.directive_versions[:SHOWN_MAX]))
        more = len(report.directive_versions) - SHOWN_MAX
        console.print(f"under directives {shown}" + (f" and {more} more" if more > 0 else ""))
    for text in _remarks(report):
        console.print(text)
    if report.first_divergence is not None:
        _show_divergence(report.first_divergence, console)


def _remarks(report: ChoicesReport) -> list[str]:
    said = []
    if report.other_version:
        said.append(f"made by another version of the code, and not compared: {report.other_version} (--any-version)")
    if not report.ended:
        said.append("the last journal breaks off: it is still written, or the engine was killed")
    if report.said or report.unsaid or report.elsewhere:
        said.append(
            f"{report.said} choices stand in the log, too; {report.unsaid} only here, {report.elsewhere} only there"
        )
    return said


def _show_divergence(first: ChoiceDivergence, console: Console) -> None:
    console.print(Text(f"first difference: entry {first.number} {first.op}", style="bold"))
    console.print(Text(f"  {WHAT[first.kind]}"))
    if first.said is not None:
        console.print(Text(f"  in the log:   {first.said.kind} {list(first.said.chosen)}"))
    for name, choice in (("in the journal", first.recorded), ("recomputed", first.recomputed)):
        if choice is not None:
            console.print(Text(f"  {name}: {_plain(choice)}"))


def _plain(choice: Choice) -> str:
    return (
        f"{choice.kind} {list(choice.chosen)} of {choice.candidates} (digest {choice.candidates_digest}, "
        f"directive {choice.directive_version})"
    )
