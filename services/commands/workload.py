"""`tidegate workload`: profiles of traffic in YAML: list them, show them, draw from them, fit one to a trace."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from services.commands.options import Amount, refuse_overwriting, with_force, with_output
from services.runtime.output import Exit, Output, table

if TYPE_CHECKING:
    from rich.console import Console

    from replay.workloads.base import Arrival
    from replay.workloads.profile import Fit, Profile

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def command() -> None:
    """Traffic as a profile: lengths, pace, sessions, tenants, SLOs. A seed gives the same requests everywhere."""


@command.command(name="list")
@with_output
def listed(out: Output) -> int:
    """The profiles that come with the program."""
    from replay.workloads.profile import load, shipped

    profiles = [load(name) for name in shipped()]
    value = [{"name": one.name, "about": one.about, "source": one.source, "seconds": one.seconds} for one in profiles]
    rows = [(one.name, one.about, one.source or "made, fitted to nothing") for one in profiles]
    out.result(value, lambda console: console.print(table(("profile", "what it is", "fitted to"), rows)))
    return Exit.FINE


@command.command()
@click.argument("profile")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--scale", type=Amount(min=0, min_open=True), default=1.0, show_default=True,
              help="So many times the sessions and jobs, at the same pace each.")  # fmt: skip
@click.option("--seconds", type=click.IntRange(min=1), help="How long; as the profile says if not given.")
@with_output
def show(profile: str, seed: int, scale: float, seconds: int | None, out: Output) -> int:
    """What a profile says, and what one drawing of it comes to. PROFILE is a shipped name or a YAML file."""
    from replay.workloads.profile import load, written

    chosen = load(profile)
    drawn = _draw(chosen, seed, scale, seconds)
    told = _told(drawn)
    value = {"profile": msgspec.to_builtins(chosen, str_keys=True), "seed": seed, "scale": scale, "drawn": told}

    def show_it(console: "Console") -> None:
        console.print(written(msgspec.structs.replace(chosen, fit=None)), markup=False)
        rows = [(name, _number(number)) for name, number in told.items()]
        console.print(table((f"drawn with seed {seed}", ""), rows))
        if chosen.fit is not None:
            console.print(table(("fit", "trace", "profile"), _fit_rows(chosen.fit)))

    out.result(value, show_it)
    return Exit.FINE


@command.command()
@click.argument("profile")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--scale", type=Amount(min=0, min_open=True), default=1.0, show_default=True,
              help="So many times the sessions and jobs, at the same pace each.")  # fmt: skip
@click.option("--seconds", type=click.IntRange(min=1), help="How long; as the profile says if not given.")
@click.option("--out", "made", type=FILE, required=True, help="The journal of facts to write; .zst compresses it.")
@with_force
@with_output
def draw(
    profile: str, seed: int, scale: float, seconds: int | None, made: Path, force: bool, out: Output
) -> int:  # fmt: skip
    """Draw requests, and write them as a trace that `replay simulate` and `bench run` take.

    PROFILE is a shipped name or a YAML file.
    """
    from replay.workloads.profile import ProfileError, load

    refuse_overwriting(made, force=force)
    chosen = load(profile)
    drawn = _draw(chosen, seed, scale, seconds)
    if not drawn:
        raise ProfileError("no request comes in so short a time", where=profile, mend="raise --scale or --seconds")
    _write(made, chosen.name, drawn)
    value = {"journal": str(made), "profile": chosen.name, "seed": seed, "scale": scale, **_told(drawn)}
    out.result(value, lambda console: console.print(f"{made}: {len(drawn)} requests of {chosen.name}, seed {seed}"))
    return Exit.FINE


@command.command()
@click.argument("path", type=FILE, metavar="TRACE")
@click.option(
    "--format", "form", default="journal", show_default=True, help="What TRACE is: see `tidegate trace info`."
)
@click.option("--name", required=True, help="What the profile is called.")
@click.option("--source", default="", help="Where the trace comes from; the file's name if not given.")
@click.option("--seed", type=int, default=1, show_default=True, help="What the fit is judged with.")
@click.option("--out", "made", type=FILE, help="The YAML file to write; else it is printed.")
@with_force
@with_output
def fit(
    path: Path, form: str, name: str, source: str, seed: int, made: Path | None, force: bool, out: Output
) -> int:  # fmt: skip
    """A profile with the lengths, sessions and pace of a trace, and how near it comes to it."""
    from replay.workloads.fit import fit as fitted
    from replay.workloads.profile import ProfileError, parse, written
    from services.runtime.snapshot import replace_file

    refuse_overwriting(made, force=force)
    with out.progress("fit") as advance:
        arrivals = _arrivals(path, form)
        advance(len(arrivals))
    try:
        found = fitted(arrivals, name=name, source=source or path.name, seed=seed)
    except ValueError as error:
        raise ProfileError(str(error), where=str(path), mend="take a trace of LLM requests") from error
    if jobs := sum(not one.output_tokens for one in arrivals):
        out.remark(
            f"{jobs:,} of {len(arrivals):,} requests have no answer (embedding jobs): they are not in the profile"
        )
    text = written(found)
    parse(text.encode(), where=f"--name {name}")
    if made is not None:
        replace_file(made, text.encode())
    assert found.fit is not None
    judged = found.fit
    value = {"profile": msgspec.to_builtins(found, str_keys=True), "file": str(made or "")}

    def show_it(console: "Console") -> None:
        if made is None:
            console.print(text, markup=False)
        console.print(table(("fit", "trace", "profile"), _fit_rows(judged)))

    out.result(value, show_it)
    return Exit.FINE


def _draw(profile: "Profile", seed: int, scale: float, seconds: int | None) -> "list[Arrival]":
    from replay.workloads.drawn import draw as drawn
    from replay.workloads.profile import ProfileError

    try:
        return drawn(profile, seed=seed, scale=scale, seconds=seconds or 0)
    except ValueError as error:
        raise ProfileError(str(error), where=profile.name, mend="lower --scale or --seconds") from error


def _arrivals(path: Path, form: str) -> "list[Arrival]":
    from replay.traces.formats import FORMATS, read_trace
    from services.runtime.config_sources import ConfigError, meant

    if form not in FORMATS:
        raise ConfigError(
            f"no format {form!r}{meant(form, list(FORMATS))}", where="--format", key="", allowed=", ".join(FORMATS)
        )
    return read_trace(path, form).arrivals


def _write(made: Path, name: str, drawn: "list[Arrival]") -> None:
    from events.base import PoolId
    from events.log.journal import JournalWriter
    from replay.costmodel import registered
    from replay.workloads.facts import arrivals_to_messages

    models = sorted({one.model for one in drawn})
    pool = PoolId(name)
    with JournalWriter(made, pool) as writer:
        for message in arrivals_to_messages(drawn, registered("trace", models), pool=pool):
            writer.write(message)


def _told(drawn: "list[Arrival]") -> dict[str, Any]:
    """What a drawing comes to. Tokens are means over requests with answers."""
    from events.base import NS_PER_S
    from replay.belady import ideal_share
    from replay.workloads.fit import dispersion

    asked = [one for one in drawn if one.output_tokens]
    span_s = (drawn[-1].at_ns - drawn[0].at_ns) / NS_PER_S if drawn else 0.0
    return {
        "requests": len(drawn),
        "sessions": len({one.session for one in drawn if one.session}),
        "embedding_jobs": len(drawn) - len(asked),
        "requests_per_s": round(len(drawn) / max(1.0, span_s), 3),
        "dispersion_10s": round(dispersion([one.at_ns for one in drawn]), 2),
        "prompt_tokens_mean": round(sum(one.prompt_tokens for one in asked) / max(1, len(asked))),
        "output_tokens_mean": round(sum(one.output_tokens for one in asked) / max(1, len(asked))),
        "ideal_hit_share": round(ideal_share(asked), 4),
    }


def _fit_rows(fit: "Fit") -> list[tuple[str, str, str]]:
    pairs = {
        "requests per second": fit.requests_per_s,
        "dispersion in 10 s": fit.dispersion,
        "ideal prefix hit share": fit.ideal_hit_share,
    }
    rows = [(name, _number(trace), _number(profile)) for name, (trace, profile) in pairs.items()]
    return [("prompt lengths, KS distance", "", f"{fit.prompt_ks:.3f}"),
            ("answer lengths, KS distance", "", f"{fit.answer_ks:.3f}"), *rows]  # fmt: skip


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
