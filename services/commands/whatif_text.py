"""A what-if as a person reads it: decisions side by side, the first difference with its causes, modelled outcomes."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from events.base import NS_PER_MS, NS_PER_S
from replay.differences import Difference
from replay.outcome import text
from replay.whatif import OpenLoop, Tried
from replay.whatif_closed import ClosedLoop, Measure
from services.commands.verify_text import SHOWN_MAX, plain_link
from services.runtime.output import table

if TYPE_CHECKING:
    from services.commands.whatif import Answer

COUNTED = {
    "words": "decisions",
    "same": "same",
    "amounts": "details differ",
    "outcomes": "outcome differs",
    "standing": "still differs",
    "wakes": "wake-up differs",
}
"""What is counted of decisions beside each other, as people read it. JSON keeps the names."""
COUNTED_SAID = (
    "a decision is all that one step says of one request, engine or order; details are reason, amount and time; "
    "still differs: as when that was last decided, so counted once; wake-up: when the policy wants to look again"
)
CHANGES_MAX = 12
TENANTS_SHOWN_MAX = 8


def show(answer: "Answer", console: Console, journal: str) -> None:
    """Print all of it."""
    _show_open(answer.open_loop, console, journal)
    if answer.closed_loop is not None:
        console.print()
        _show_closed(answer.closed_loop, console)


def _show_open(found: OpenLoop, console: Console, journal: str) -> None:
    console.print(Text("decisions: same facts, same past (observed log; each policy decides every step)", style="bold"))
    console.print(f"pool {found.pool}: {found.events} events in {found.messages} messages")
    columns = ("policy", *COUNTED.values(), "requests affected")
    names = (*COUNTED, "requests")
    console.print(table(columns, [(one.policy, *(str(one.total(name)) for name in names)) for one in found.tried]))
    console.print(Text(COUNTED_SAID, style="dim"))
    if len(found.tried[0].actors) == 0:
        console.print("nothing was decided in this log: a trace is run under any policy by `tidegate replay simulate`")
    elif found.not_run:
        console.print(f"never ran in this log, and not compared: {', '.join(found.not_run)}")
    if found.other_version:
        console.print(f"{found.other_version} owners ran another version of the code: differences may be the code's")
    for one in found.tried:
        _show_tried(one, console, journal)


def _show_tried(one: Tried, console: Console, journal: str) -> None:
    for actor in one.actors:
        if actor.failed:
            console.print(Text(f"{one.policy}: {actor.actor} breaks: {actor.failed}", style="bold red"))
    changes = sorted(
        ((actor.actor, change) for actor in one.actors for change in actor.changes),
        key=lambda pair: (-pair[1].count, pair[0], pair[1].recorded, pair[1].tried),
    )
    if changes:
        console.print()
        console.print(Text(one.policy, style="bold"))
        rows = [
            (actor, c.recorded, "elsewhere" if c.elsewhere else c.tried, str(c.count), c.first)
            for actor, c in changes[:CHANGES_MAX]
        ]
        console.print(table(("actor", "recorded", "tried", "times", "first at"), rows))
        if len(changes) > CHANGES_MAX:
            console.print(f"and {len(changes) - CHANGES_MAX} more: --json")
        _show_tenants(one, console)
    if one.first is not None:
        _show_first(one.first, console, journal)


def _show_tenants(one: Tried, console: Console) -> None:
    told: dict[str, int] = {}
    for actor in one.actors:
        for name, tenant in actor.tenants.items():
            told[name] = told.get(name, 0) + tenant.outcomes
    counted = sorted(((count, name) for name, count in told.items() if count), reverse=True)
    if counted:
        shown = ", ".join(f"{name or '(no tenant)'} {count}" for count, name in counted[:TENANTS_SHOWN_MAX])
        console.print(f"other outcomes by tenant: {shown}")


def _show_first(first: Difference, console: Console, journal: str) -> None:
    who = f" for {first.about}" if first.about else ""
    tenant = f" ({first.tenant})" if first.tenant else ""
    console.print(Text(f"first difference: record {first.cause}, {first.actor}{who}{tenant}", style="bold"))
    for whose, words, rule in (
        ("recorded", first.recorded, first.recorded_rule), ("tried", first.tried, first.tried_rule),
    ):  # fmt: skip
        console.print(Text(f"  {whose} {text(words)}" + (f": {rule.text}" if rule is not None else "")))
    recorded, ours = (said[-1] if said else {} for said in (first.recorded_decisions, first.tried_decisions))
    for name in first.fields[:SHOWN_MAX]:
        console.print(Text(f"  {name}: recorded {recorded.get(name)!r}, tried {ours.get(name)!r}"))
    for link in first.chain:
        console.print(Text(f"  {link.at:>10}  {link.owner or '-'}  {plain_link(link)}"))
    if first.recorded_decisions and journal:
        console.print(Text(f"  why: tidegate explain {first.at} --log {journal}"))


def _show_closed(found: ClosedLoop, console: Console) -> None:
    what = f"{found.requests} requests again, over {found.span_ns / NS_PER_S:.0f} s"
    console.print(Text(f"outcomes: {what} (engine model: {found.engine_model})", style="bold"))
    heads = [f"{one.policy}\n{one.origin.value}" for one in found.columns]
    rows = [
        (one.name, *(_value(value, one) for value in one.values), _error(one), ", ".join(one.beyond) or "-")
        for one in found.measures
    ]
    console.print(table(("", *heads, "error", "beyond the error"), rows))
    lengths = found.lengths
    console.print(
        f"lengths of answers: {lengths.seen} as observed, {lengths.traced} from the trace, {lengths.drawn} drawn; "
        f"{found.waiting_turns} turns wait for the answer before them; "
        f"from a decision to its engine {found.control_ns / NS_PER_MS:.1f} ms"
    )
    console.print("error: so far from what was observed is the recorded policy when it is modelled, at most")
    for note in found.notes:
        console.print(f"note: {note}")


def _value(value: float | None, of: Measure) -> str:
    if value is None:
        return "infinite"
    return _amount(value, of.unit)


def _amount(value: float, unit: str) -> str:
    match unit:
        case "share":
            return f"{value:.1%}"
        case "ns":
            return f"{value / NS_PER_MS:,.1f} ms"
        case "requests" | "times":
            return f"{value:,.0f}"
        case _:
            return f"{value:,.2f}"


def _error(of: Measure) -> str:
    if of.error is None:
        return "-"
    off = f" ({of.off:.1%})" if of.off is not None and of.unit != "share" else ""
    return _amount(of.error, of.unit) + off
