"""`tidegate bench`: what policies and predictors are worth, in virtual time and on traces."""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from services.commands.options import with_output
from services.runtime.config_sources import ConfigError, meant
from services.runtime.output import Exit, Output

if TYPE_CHECKING:
    from replay.bench.policies import Plan

FILE = click.Path(path_type=Path, dir_okay=False)
TRACE_BESIDE = Path("../shared/traces/mooncake/conversation_trace.t0-1800000ms.jsonl.gz")
"""Where the conversation trace is looked for when none is named."""
TUNING = "tuning"
SUBCOMMANDS: dict[str, str] = {
    "calibrate": "services.commands.bench_calibrate",
    "compare": "services.commands.bench_compare",
    "engines": "services.commands.bench_engines",
    "predictors": "services.commands.bench_predictors",
    "run": "services.commands.bench_run",
}
"""Subcommands with a module of their own, whose attribute `command` they are."""
QUICK_LOADS = (1.0, 1.2, 1.5)
QUICK_CHUNKS = (1_024, 2_048)
QUICK_EXTENT = {"window_s": 180, "mixed_s": 120}
QUICK_SWEEP_EVERY = 2


class _Bench(click.Group):
    """A group whose other subcommands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *SUBCOMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return super().get_command(ctx, cmd_name)
        found: click.Command = importlib.import_module(SUBCOMMANDS[cmd_name]).command
        return found


@click.group(cls=_Bench)
def command() -> None:
    """Measure policies and predictors. No server is started: it all runs in virtual time, in child processes."""


@command.command()
@click.option("--trace", type=FILE, help="A Mooncake conversation trace; else one beside the checkout, else drawn.")
@click.option("--quick", is_flag=True, help="One seed, short windows, three loads: a look, not a result.")
@click.option("--seeds", help="So many of the judging seeds, a list (1,2,3), or 'tuning'.")
@click.option("--loads", help="Multiples of the knee, such as 0.8,1.2.")
@click.option("--presets", help="Only these, such as default,first_come.")
@click.option(
    "--workloads",
    default="conversation,mixed",
    show_default=True,
    help="Any of conversation, conversation_spread, conversation_embedding, mixed.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time (default: one a core).")
@click.option("--out", "made", type=FILE, help="Write the whole report there as JSON, too.")
@click.option("--strict", is_flag=True, help="Exit code 1 when a goal is not met.")
@with_output
def policies(
    trace: Path | None, quick: bool, seeds: str | None, loads: str | None, presets: str | None, workloads: str | None,
    jobs: int | None, made: Path | None, strict: bool, out: Output,
) -> int:  # fmt: skip
    """Every preset on the same arrivals, at loads around the knee of first come, first served with prefix affinity.

    Engines are simulated: an H100's step times with Llama-3-8B, which the policies know exactly. See docs/benchmarks.md
    for what the figures mean and what they do not.
    """
    from policies.catalog import PRESETS
    from replay.bench.goals import goals
    from replay.bench.policies import compare, runs_of
    from services.commands.bench_text import show
    from services.runtime.snapshot import replace_file

    if trace is None and TRACE_BESIDE.is_file():
        trace = TRACE_BESIDE
    plan = _plan(trace, quick=quick, jobs=jobs)
    plan = _narrowed(plan, seeds=seeds, loads=loads, presets=presets, workloads=workloads)
    with out.progress("runs", runs_of(plan)) as advance:
        report = compare(plan, on_progress=advance)
    reached = [goal for found in report.found for goal in goals(found, list(PRESETS))]
    value = {
        "report": msgspec.to_builtins(report),
        "goals": [{**msgspec.to_builtins(goal), "met": goal.met} for goal in reached],
    }
    if made is not None:
        replace_file(made, msgspec.json.format(msgspec.json.encode(value)))
    out.result(value, lambda console: show(report, reached, console))
    return Exit.NO if strict and any(goal.met is False for goal in reached) else Exit.FINE


def _plan(trace: Path | None, *, quick: bool, jobs: int | None) -> "Plan":
    from replay.bench.offered import SWEEPS, Extent
    from replay.bench.policies import SEEDS, Plan, variants

    plan = Plan(
        presets=tuple(variants()), trace=str(trace.absolute()) if trace is not None else "", jobs=jobs or cores()
    )
    if not quick:
        return plan
    return msgspec.structs.replace(
        plan, seeds=SEEDS[:1], loads=QUICK_LOADS, chunks=QUICK_CHUNKS, extent=Extent(**QUICK_EXTENT),
        sweeps={workload: scales[::QUICK_SWEEP_EVERY] for workload, scales in SWEEPS.items()},
    )  # fmt: skip


def _narrowed(
    plan: "Plan", *, seeds: str | None, loads: str | None, presets: str | None, workloads: str | None
) -> "Plan":  # fmt: skip
    from replay.bench.offered import Workload
    from replay.bench.policies import variants

    changes: dict[str, object] = {}
    if seeds is not None:
        changes["seeds"] = seeds_of(seeds)
    if loads is not None:
        changes["loads"] = loads_of(loads)
    if presets is not None:
        changes["presets"] = chosen("--presets", presets, list(variants()))
    if workloads is not None:
        names = [workload.value for workload in Workload]
        changes["workloads"] = tuple(Workload(name) for name in chosen("--workloads", workloads, names))
    return msgspec.structs.replace(plan, **changes)


def seeds_of(text: str) -> tuple[int, ...]:
    """The seeds that an option names. Raises ConfigError."""
    from replay.bench.policies import SEEDS, TUNING_SEEDS

    if text == TUNING:
        return TUNING_SEEDS
    try:
        if "," in text:
            return tuple(int(part) for part in text.split(","))
        count = int(text)
    except ValueError:
        count = 0
    if not 1 <= count <= len(SEEDS):
        raise ConfigError(
            f"{text!r} is no number of seeds", where="--seeds", key="", allowed=f"1 to {len(SEEDS)}, a list, or tuning"
        )
    return SEEDS[:count]


def loads_of(text: str) -> tuple[float, ...]:
    """The loads that an option names. Raises ConfigError."""
    return tuple(_load(part) for part in text.split(","))


def _load(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise ConfigError(f"{text!r} is no load", where="--loads", key="", allowed="numbers above 0 and below 100")
    return value


def chosen(where: str, text: str, known: list[str]) -> tuple[str, ...]:
    """The names in an option, all of them known. Raises ConfigError."""
    names = tuple(text.split(","))
    for name in names:
        if name not in known:
            what = f"there is no {name!r}{meant(name, known)}"
            raise ConfigError(what, where=where, key="", allowed=", ".join(known))
    return names


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
