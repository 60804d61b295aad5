"""`tidegate bench run`: the memory benchmark in virtual time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec.structs import replace

from services.commands.bench import chosen, cores, loads_of, seeds_of
from services.commands.bench_compare import baseline_of, parse_fail_on, regressions_of, show_regressions
from services.commands.bench_target import live_report, target_options
from services.commands.options import with_output
from services.runtime.config_sources import ConfigError
from services.runtime.output import Exit, Output

if TYPE_CHECKING:
    from rich.console import Console

    from replay.bench.memory.plan import Plan, Stage
    from replay.bench.memory.regression import Regression
    from replay.bench.memory.report import Report
    from replay.bench.memory.rounds import Players
    from services.target.suite import Live

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
TRACES_BESIDE = Path("../shared/traces")
"""Where traces are looked for when no folder is named."""
SUITES = ("smoke", "standard", "full")
SECONDS_MAX = 86_400
QUICK = "smoke"
"""The suite that is over before an estimate of its time would be of use."""
SWEEPS = ("ratio", "quota", "eviction", "admission", "routing", "tiers")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line said."""

    mode: str
    suite: str
    sweep: str | None
    systems: str | None
    workloads: str | None
    loads: str | None
    seeds: str | None
    seconds: int | None
    traces: Path | None
    engine_python: Path | None
    light_only: bool
    jobs: int | None
    folder: Path | None
    against: Path | None
    fail_on: str
    strict: bool

    @property
    def narrowed(self) -> bool:
        """Whether less is run than the suite has."""
        return self.light_only or any((self.systems, self.workloads, self.loads, self.seeds))


@click.command("run")
@click.option("--mode", type=click.Choice(["memory"]), default="memory", show_default=True, help="What is measured.")
@click.option("--suite", type=click.Choice(SUITES), default="smoke", show_default=True,
              help="smoke: under a minute; standard: half an hour; full: hours, it says how many.")  # fmt: skip
@click.option("--sweep", type=click.Choice(SWEEPS),
              help="Our policy with one thing changed at a time, instead of all systems.")  # fmt: skip
@click.option("--systems", help="Only these, such as as_shipped,careful,tidegate.")
@click.option("--workloads", help="Only these, such as conversation,coding.")
@click.option("--loads", help="Multiples of the careful baseline's knee, such as 0.8,1.2.")
@click.option("--seeds", help="So many of the judging seeds, a list (1,2,3), or 'tuning'.")
@click.option("--seconds", type=click.IntRange(min=30, max=SECONDS_MAX),
              help="Virtual seconds of each run on light engines.")  # fmt: skip
@click.option("--traces", type=click.Path(exists=True, path_type=Path, file_okay=False),
              help="Folder of public traces (default: one beside the checkout, else drawn).")  # fmt: skip
@click.option("--engine-python", type=FILE, help="An interpreter that has vLLM (default: .venv-engine/bin/python).")
@click.option("--light-only", is_flag=True, help="Leave out the part on vLLM's scheduler.")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time (default: one a core).")
@click.option("--out", "folder", type=FOLDER,
              help="Keep runs and report there: JSON, CSV, a page. What is there is not run again.")  # fmt: skip
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="A report that is the baseline.")
@click.option("--fail-on", default="drift,lost-win", show_default=True, help="With --against: exit code 1 on these.")
@click.option("--strict", is_flag=True, help="Exit code 1 when a goal is not met.")
@target_options
@with_output
def command(out: Output, live: "Live | None", **said: Any) -> int:
    """Hold the default policy against vLLM as shipped, a careful baseline, an honest rival, and bounds.

    All run on the same arrivals, engines and step times, in virtual time. Goals come last, met or not, with the bound
    that stops what is not. See docs/benchmarks.md for what the figures mean and what they do not.
    """
    wanted = Wanted(**said)
    plan = planned(wanted)
    parse_fail_on(wanted.fail_on)
    if live is not None:
        _refuse_with_target(wanted)
    elif missing := _drawn_though_named(wanted, plan):
        out.remark(f"{wanted.traces} has no trace for {', '.join(missing)}: drawn instead")
    before = baseline_of(wanted.against, plan.suite) if wanted.against is not None else None
    report = _run(wanted, plan, out) if live is None else live_report(live, plan, out)
    if wanted.folder is not None:
        _keep(report, wanted.folder)
        if report.stopped_early and live is None:
            out.remark(f"stopped: {wanted.folder} has what was done, and the same command goes on from there")
    lost, rest = ([], []) if before is None or report.stopped_early else _lost(wanted, before, report)

    def show(console: "Console") -> None:
        from services.commands.bench_run_text import show as show_report

        show_report(report, console)
        if before is not None and not report.stopped_early:
            show_regressions(lost, console)
            if rest:
                console.print(f"narrowed: {len(rest)} wins of the baseline were not measured, and none of them is lost")

    out.result({"report": report, "regressions": lost, "unmeasured": rest}, show)
    if report.stopped_early:
        return Exit.INTERRUPTED
    missed = wanted.strict and any(goal.met is False for goal in report.goals)
    return Exit.NO if missed or lost else Exit.FINE


def _refuse_with_target(wanted: Wanted) -> None:
    """Raises ConfigError for what means nothing to a live target."""
    if wanted.against is not None:
        raise ConfigError("no baseline is of a live target", where="--against", key="", allowed="bench compare A B")
    own = {"--sweep": wanted.sweep, "--systems": wanted.systems, "--engine-python": wanted.engine_python,
           "--light-only": wanted.light_only or None}  # fmt: skip
    for option, said in own.items():
        if said is not None:
            raise ConfigError("a live target has its own engines and its own policy", where=option, key="",
                              allowed="leave it out, or run it without --target")  # fmt: skip


def _drawn_though_named(wanted: Wanted, plan: "Plan") -> list[str]:
    """The workloads that have no trace in the folder that was named for them."""
    from replay.bench.memory.workloads import WORKLOADS

    if wanted.traces is None:
        return []
    names = dict.fromkeys(name for stage in plan.stages for name in stage.workloads)
    return [name for name in names if WORKLOADS[name].file and not plan.traces[name]]


def _lost(wanted: Wanted, before: "Report", report: "Report") -> "tuple[list[Regression], list[str]]":
    """What is worse than in the baseline, and which of its wins a narrowed run did not measure."""
    from replay.bench.memory.regression import unmeasured

    kinds, _ = parse_fail_on(wanted.fail_on)
    rest = unmeasured(before, report) if wanted.narrowed else []
    return regressions_of(before, report, kinds, narrowed=wanted.narrowed), rest


def _keep(report: "Report", folder: Path) -> None:
    """All files of it, also when Ctrl-C is pressed meanwhile."""
    from replay.bench.memory.files import write_report
    from services.runtime.interrupt import held_interrupt

    with held_interrupt():
        write_report(report, folder)


def planned(wanted: Wanted) -> "Plan":
    """The suite, narrowed to what was asked for. Raises ConfigError for names and numbers that are not there."""
    from replay.bench.memory.plan import SUITES as PLANS
    from replay.bench.memory.report import EngineModel
    from replay.bench.memory.sweeps import Sweep, swept
    from replay.bench.memory.workloads import WORKLOADS, trace_of

    plan = PLANS[wanted.suite]
    if wanted.sweep is not None:
        plan = swept(plan, Sweep(wanted.sweep))
    stages = [one for stage in plan.stages if (one := _narrowed(stage, wanted, plan)).workloads]
    folder = wanted.traces or (TRACES_BESIDE if TRACES_BESIDE.is_dir() else None)
    traces = {name: trace_of(workload, folder) for name, workload in WORKLOADS.items()}
    if wanted.light_only:
        stages = [stage for stage in stages if stage.engine is EngineModel.LIGHT]
    return replace(plan, stages=tuple(stages), traces=traces)


def _narrowed(stage: "Stage", wanted: Wanted, plan: "Plan") -> "Stage":
    from replay.bench.memory.report import EngineModel
    from replay.bench.memory.workloads import WORKLOADS

    changes: dict[str, object] = {}
    if wanted.systems is not None:
        changes["systems"] = chosen("--systems", wanted.systems, list(plan.systems))
    if wanted.workloads is not None:
        names = chosen("--workloads", wanted.workloads, list(WORKLOADS))
        changes["workloads"] = tuple(name for name in names if plan.is_for(stage, name))
    if wanted.loads is not None:
        changes["loads"] = loads_of(wanted.loads)
    if wanted.seeds is not None:
        changes["seeds"] = seeds_of(wanted.seeds)
    if wanted.seconds is not None and stage.engine is EngineModel.LIGHT:
        changes.update(seconds=wanted.seconds, shorter={})
    return replace(stage, **changes)


def _run(wanted: Wanted, plan: "Plan", out: Output) -> "Report":
    from replay.bench.far import vllm_release
    from replay.bench.memory.plan import runs_of
    from replay.bench.memory.report import EngineModel
    from replay.bench.memory.rounds import Runs
    from replay.bench.memory.store import Store
    from replay.bench.memory.suite import run_suite
    from replay.calibration import calibrations, uncalibrated
    from replay.code_version import code_version

    jobs, release = wanted.jobs or cores(), code_version().partition("+")[0]
    python = _far_python(plan, wanted, out)
    store = Store(wanted.folder, {EngineModel.VLLM_SCHEDULER: vllm_release(python)} if python is not None else None)
    with _players(python, jobs) as players:
        if wanted.suite != QUICK:
            _say_hours(plan, players, jobs, out)
        with out.progress("runs", runs_of(plan)) as advance:
            report = run_suite(plan, Runs(store, players, advance), version=release)
    found = calibrations()
    return replace(report, calibrations=found, uncalibrated=uncalibrated(found))


def _say_hours(plan: "Plan", players: "Players", jobs: int, out: Output) -> None:
    """How long it will take, from the speed of short runs on each kind of engine."""
    from replay.bench.memory.plan import hours
    from replay.bench.memory.suite import speed

    speeds = {engine: speed(plan, engine, players[engine]) for engine in players}
    said = ", ".join(f"{engine.value} {one:,.0f} x real time" for engine, one in speeds.items())
    out.remark(f"about {hours(plan, speeds, jobs):.1f} h with {jobs} runs at a time (an engine: {said})")


def _far_python(plan: "Plan", wanted: Wanted, out: Output) -> Path | None:
    """The Python that has vLLM, where the plan needs it. Without it one line says that its part is left out."""
    from replay.bench.far import engine_python
    from replay.bench.memory.report import EngineModel

    if all(stage.engine is not EngineModel.VLLM_SCHEDULER for stage in plan.stages):
        return None
    python = engine_python(wanted.engine_python)
    if python is None and wanted.engine_python is not None:
        raise ConfigError(
            f"{wanted.engine_python} is not there", where="--engine-python", key="",
            allowed="an interpreter that has vLLM 0.32, or --light-only",
        )  # fmt: skip
    if python is None:
        out.remark("vLLM's environment is not there: its part is left out (make test-engine builds it)")
    return python


@contextmanager
def _players(python: Path | None, jobs: int) -> "Iterator[Players]":
    """Somewhere to run what the plan has: here, and in the Python that has vLLM, if there is one."""
    from replay.bench.far import far_players
    from replay.bench.memory.report import EngineModel
    from replay.bench.memory.task import play
    from replay.bench.runs import players
    from services.engines import vllm_virtual

    with ExitStack() as stack:
        found = {EngineModel.LIGHT: stack.enter_context(players(jobs, play))}
        if python is not None:
            found[EngineModel.VLLM_SCHEDULER] = stack.enter_context(far_players(python, jobs, vllm_virtual.play))
        yield found
