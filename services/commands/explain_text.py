"""An explanation as a person reads it: the story, then each decision with what was known, the rule, and the flip."""

from typing import TYPE_CHECKING, Any

from rich.text import Text

from events.base import NS_PER_MS, NS_PER_S, PPM
from replay.explain import NONE, SAME
from replay.outcome import NOTHING
from replay.outcome import text as outcome_text
from services.runtime.output import table

if TYPE_CHECKING:
    from rich.console import Console

    from replay.flip import Flip
    from replay.story import Beside, Step, Story
    from services.commands.explain import Answer, Told

LINE_MAX = 80
SAID: dict[str, tuple[str, ...]] = {
    "request_arrived.v1": ("kind", "model", "tenant", "prompt_tokens", "tokens_max", "slo_ttft_ns", "slo_tpot_ns"),
    "request_admitted.v1": ("engine_id", "output_tokens_predicted", "cached_tokens_predicted", "slo_slack_ns", "would"),
    "request_deferred.v1": ("reason", "until_ns"),
    "request_rejected.v1": ("reason", "retry_after_ns"),
    "request_preempted.v1": ("engine_id", "for_request", "reason"),
    "first_token_seen.v1": ("engine_id", "ttft_ns"),
    "request_finished.v1": ("engine_id", "output_tokens", "cached_tokens", "ttft_ns", "tpot_ns"),
    "request_aborted.v1": ("reason", "engine_id", "final"),
}
"""The fields of a step that a line has room for; of other kinds, all that fit."""
ENGINES_MAX = 4
"""Engines told of where the pool as a whole was spoken of; `--json` has all."""


def show(answer: "Answer", console: "Console") -> None:
    """Print all of it."""
    if answer.request is not None:
        _show_story(answer.request, console)
    for told in answer.decisions:
        console.print()
        _show_decision(told, console)
    for place in answer.unexplained:
        console.print()
        why = "nothing that this version knows leads to it; tidegate replay verify says where the log and the code part"
        _line(console, "", f"decision {place} is not explained: {why}")
    if answer.request is not None and not answer.request.decisions:
        console.print("nothing was decided about it before the log ended")


def _show_story(story: "Story", console: "Console") -> None:
    last = story.steps[-1]
    end = _name(last.event) if story.ended else "still open when the log ended"
    console.print(Text(f"request {story.request_id}: {end}", style="bold"))
    for step in story.steps:
        _line(console, f"{step.since_ns / NS_PER_S:+10.3f} s {step.at:>9}  ", f"{_name(step.event)} {_fields(step)}")
    if story.beside:
        rows = [(_label(one.name), _predicted(one), _amount(one.name, one.actual)) for one in story.beside]
        console.print(table(("", "predicted", "actual"), rows))


def _show_decision(told: "Told", console: "Console") -> None:
    one = told.explained
    console.print(Text(f"decision {one.at} of {one.actor}: {outcome_text(one.outcome)}", style="bold"))
    if one.other_version:
        _line(console, "  ", f"decided by another version of the code ({one.code_version}); told as recorded")
    if one.recomputed != SAME:
        words = ", ".join(str(said.get("type", "")) for said in one.computed) or "nothing"
        _line(console, "  ", f"this code decides otherwise here: {words}")
    _line(console, "  rule    ", one.rule.text)
    for number, link in enumerate(told.chain):
        said = f"{link.at} {link.owner or '-'}: {_name(link.event)} {link.event.get('request_id', '')}"
        _line(console, "  because " if number else "  record  ", said)
    for request in one.knew.get("requests", ()):
        _show_known(request, console)
    if "requests" not in one.knew and "engine_id" in one.decision:
        _show_engines(one.knew.get("engines", []), str(one.decision["engine_id"]), console)
    for flip in one.flips:
        nearest = "nearest " if flip == one.flip and len(one.flips) > 1 else ""
        _line(console, "  flip    ", nearest + _flip(flip))
    if not one.flips:
        why = "none in bounds" if one.flip_status == NONE else "not sought: this code does not decide the same here"
        _line(console, "  flip    ", why)


def _show_known(request: dict[str, Any], console: "Console") -> None:
    low, expected, high = (request[f"output_tokens_{name}"] for name in ("low", "expected", "high"))
    parts = [f"{request['request_id']}: slack {_amount('_ns', request['slack_ns'])}"]
    if request["predictor"]:
        parts.append(f"output {low:,} to {high:,} tokens, probably {expected:,} ({request['predictor']})")
    parts.append(f"{request['requests_before']} before it in line")
    if request["tenant_bytes_max"]:
        parts.append(f"tenant holds {request['tenant_bytes_held']:,} of {request['tenant_bytes_max']:,} bytes")
    if request["session_tokens_active"]:
        active, most = request["session_tokens_active"], request["session_tokens_max"]
        parts.append(f"sessions active with {active:,} of {most:,} tokens")
    _line(console, "  knew    ", ", ".join(parts))
    for engine in request["engines"]:
        _line(console, "          ", _engine(engine))


def _engine(engine: dict[str, Any]) -> str:
    name = engine["engine_id"]
    if not engine["candidate"]:
        return f"{name}: no candidate ({engine['health']})"
    share = f" (share {engine['share_blocks']:,})" if engine["share_blocks"] < engine["budget_blocks"] else ""
    load = f" (loaded in {_amount('_ns', engine['load_ns'])})" if engine["load_ns"] else ""
    return (
        f"{name}: rank {engine['rank'] + 1} (score {engine['score']:,}), TTFT {_amount('_ns', engine['ttft_ns'])}, "
        f"slack {_amount('_ns', engine['slack_ns'])}, cached {engine['cached_tokens']:,}{load}, peak "
        f"{engine['peak_blocks']:,} of {engine['budget_blocks']:,} blocks{share}, {engine['seqs']} of "
        f"{engine['seqs_max']} sequences{', blocked: ' + engine['blocked'] if engine['blocked'] else ''}"
    )


def _show_engines(engines: list[dict[str, Any]], spoken_of: str, console: "Console") -> None:
    """What an actor other than admission knew of an engine; of the first few where the pool was spoken of."""
    named = [engine for engine in engines if engine["engine_id"] == spoken_of] or engines[:ENGINES_MAX]
    for engine in named:
        known = _divided(engine) if "divided" in engine else _tiers(engine) if "tiers" in engine else _directed(engine)
        _line(console, "  knew    ", f"{engine['engine_id']}: {known}")


def _divided(engine: dict[str, Any]) -> str:
    if not engine["divided"]:
        return str(engine["enforced"])
    wanted, forecast, low, high = (
        _amount("_ppm", engine[f"embedding_{name}_ppm"]) for name in ("wanted", "forecast", "min", "max")
    )
    words = f"embedding jobs want {wanted} (forecast {forecast}) within {low} to {high}"
    if "embedding_ppm" in engine:
        had, goes = _amount("_ppm", engine["embedding_ppm"]), _amount("_ppm", engine["embedding_next_ppm"])
        words += f", had {had}, next {goes}"
    return f"{words}. {engine['enforced']}"


def _tiers(engine: dict[str, Any]) -> str:
    if not engine["tiers"]:
        return "nothing was measured yet"
    tiers = (
        f"{name} {_amount('_ppm', tier['used_ppm'])} full, reads {tier['read_bytes_per_s']:,} bytes/s behind "
        f"{tier['read_queue_bytes']:,}"
        for name, tier in engine["tiers"].items()
    )
    return f"{', '.join(tiers)}; {engine['kept']:,} slices are kept"


def _directed(engine: dict[str, Any]) -> str:
    kept = ", ".join(f"{len(engine[name])} {name}" for name in ("pinned", "needed", "hot"))
    protected = _amount("_ppm", engine["protect_ppm"])
    return f"eviction {engine['eviction'] or 'as it likes'}, answers protected from {protected}, slices: {kept}"


def _flip(flip: "Flip") -> str:
    size = f" ({_sign(flip)}{flip.relative_ppm * 100 / PPM:.2f} %)" if isinstance(flip.to, int) else ""
    change = f"{_amount(flip.name, flip.value)} -> {_amount(flip.name, flip.to)}{size}"
    then = outcome_text(flip.outcome).replace(NOTHING, "nothing is said")
    return f"{flip.kind} {flip.of}.{flip.name} {change}: then {then}"


def _sign(flip: "Flip") -> str:
    return "+" if flip.to > flip.value else "-"


def _predicted(one: "Beside") -> str:
    predicted = _amount(one.name, one.predicted)
    return predicted if one.low is None else f"{_amount(one.name, one.low)} to {predicted}"


def _fields(step: "Step") -> str:
    names = SAID.get(str(step.event.get("type", "")))
    shown = step.event if names is None else {name: step.event[name] for name in names if name in step.event}
    if "until_ns" in shown:  # Pool time says nothing to people: counted from the arrival, as the lines are.
        shown = shown | {"until_ns": shown["until_ns"] - step.ts_ns + step.since_ns}
    return ", ".join(
        f"{_label(name)} {_amount(name, value)}" for name, value in shown.items()
        if name not in ("type", "request_id") and not isinstance(value, list)
    )  # fmt: skip


def _name(event: dict[str, Any]) -> str:
    return str(event.get("type", "")).rpartition(".")[0]


def _label(name: str) -> str:
    return name.removesuffix("_ns").replace("_", " ")


def _amount(name: str, value: Any) -> str:
    """A value with its unit, as its name says."""
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    if name.endswith("_ns"):
        return f"{value / NS_PER_MS:,.3f} ms".replace(".000 ms", " ms")
    if name.endswith("_ppm"):
        return f"{value * 100 / PPM:g} %"
    return f"{value:,}"


def _line(console: "Console", head: str, body: str) -> None:
    """One entry, its further lines under its first."""
    wrapped = Text(body).wrap(console, max(20, min(console.width, LINE_MAX) - len(head)))
    for number, line in enumerate(wrapped):
        console.print(Text(head if number == 0 else " " * len(head)).append_text(line))
