"""A verify report as a person reads it: the verdict, the owners, and the first difference with its causes."""

from typing import Any

from rich.console import Console
from rich.text import Text

from replay.chain import Link
from replay.verify import Divergence, Report
from services.runtime.output import table

SHOWN_MAX = 4


def show(report: Report, console: Console) -> None:
    """Print the whole report."""
    verdict = "IDENTICAL" if report.identical else "NOT IDENTICAL"
    console.print(Text(f"verify: {verdict} {report.digest}", style="bold green" if report.identical else "bold red"))
    counts = f"pool {report.pool}: {report.events} events in {report.messages} messages, {report.decisions} decisions"
    console.print(f"{counts}, {report.compared} compared")
    for text in _remarks(report):
        console.print(text)
    if report.epochs:
        console.print(table(
            ("actor", "owner", "from record", "code version", "causes", "decisions", "status"),
            [
                (e.actor, e.owner or "-", str(e.seq), e.code_version or "-", str(e.causes), str(e.decisions), e.status)
                for e in report.epochs
            ],
        ))  # fmt: skip
    if report.first_divergence is not None:
        _show_divergence(report.first_divergence, console)


def _remarks(report: Report) -> list[str]:
    said = []
    if report.pending:
        said.append(f"{report.pending} decisions were not yet written when the log ended (pending)")
    if report.taken_in:
        said.append(f"{report.taken_in} decisions were made by another version of the code and taken in as recorded")
    if report.taken_in and not report.compared:
        said.append("nothing could be compared: --any-version holds all of it against this code")
    if report.unknown:
        said.append(f"{report.unknown} events are of a kind that this version does not know")
    for actor, count in report.unverified.items():
        said.append(f"{count} decisions of {actor!r}, an actor that this version does not know, were not verified")
    if report.differences:
        said.append("differences: " + ", ".join(f"{kind} {count}" for kind, count in report.differences.items()))
    if report.two_owners:
        said.append(f"{report.two_owners} decisions have two owners")
    return said


WHAT = {
    "changed": "is not what follows from the log",
    "missing": "follows from the log and is not in it",
    "extra": "does not follow from the log",
    "twice": "was made before",
    "stranger": "was written by an instance that does not own the actor",
    "watermark": "names another last answer than the log holds",
    "failed": "breaks the policy",
}


def _show_divergence(first: Divergence, console: Console) -> None:
    console.print(Text(f"first difference: record {first.at}", style="bold"))
    body = first.recorded or first.recomputed or {}
    console.print(Text(f"  {first.actor}: {body.get('type', '')} {WHAT[first.kind]}, cause {first.cause or '-'}"))
    if first.error:
        console.print(Text(f"  {first.error}"))
    for name in first.fields:
        console.print(
            Text(f"  {name}: recorded {_field(first.recorded, name)}, recomputed {_field(first.recomputed, name)}")
        )
    for link in first.chain:
        console.print(Text(f"  {link.at:>10}  {link.owner or '-'}  {plain_link(link)}"))


def _field(values: dict[str, Any] | None, name: str) -> str:
    return repr((values or {}).get(name))


def plain_link(link: Link) -> str:
    """A record on one line."""
    fields = ", ".join(f"{name}={_short(value)}" for name, value in link.event.items() if name != "type")
    return f"{link.event.get('type', '')}({fields})"


def _short(value: Any) -> str:
    """A value on a line; of a long list only how long it is (fingerprints say nothing to people)."""
    if isinstance(value, list | tuple) and len(value) > SHOWN_MAX:
        return f"[{len(value)} of them]"
    return repr(value)
