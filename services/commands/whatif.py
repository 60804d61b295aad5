"""`tidegate replay whatif`: what other policies would have decided in a log, and what would have become of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from services.commands.logged import logged
from services.commands.options import Settings, with_output, with_settings
from services.runtime.config import Config
from services.runtime.config_sources import ConfigError, meant
from services.runtime.output import Exit, Output

if TYPE_CHECKING:
    from events.engine import StepModel
    from replay.bench.runs import Player
    from replay.journal_source import JournalSource
    from replay.tried import Candidate
    from replay.whatif import OpenLoop
    from replay.whatif_closed import Again, ClosedLoop, Modelled

FORMAT = "tidegate.whatif.v1"
SEEDS = 3
"""Draws of the lengths that a log does not tell: the control is modelled with each."""


class Answer(msgspec.Struct, kw_only=True):
    """What `--json` says. `open_loop` compares decisions, each with the same facts and the same past; `closed_loop`
    outcomes, where an engine model answers (None: not asked for)."""

    format: str = FORMAT
    pool: str
    open_loop: "OpenLoop"
    closed_loop: "ClosedLoop | None" = None


@click.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), required=False, metavar="[JOURNAL]")
@click.option("--pool", help="Try them on this pool's live log instead of a journal.")
@click.option("--policy", "policies", multiple=True, metavar="NAME",
              help="A preset, or recorded (as it was decided); several are tried side by side.")  # fmt: skip
@click.option("--closed-loop", "closed", is_flag=True, help="Also run it again, with an engine model that answers.")
@click.option("--own-times", is_flag=True, help="Turns of sessions come when they came, answered or not.")
@click.option("--step-model", metavar="PROFILE", help="Step times of engines that told none, such as llama-3-8b_h100.")
@click.option("--engine-model", "engine", type=click.Choice(["light", "vllm_scheduler"]), default="light",
              show_default=True, help="What answers: the light model, or vLLM's real scheduler.")  # fmt: skip
@click.option("--engine-python", "python", type=click.Path(path_type=Path, dir_okay=False),
              help="An interpreter that has vLLM (default: .venv-engine/bin/python).")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Modelled runs at a time.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the lengths of answers that nobody gave.")
@click.option("--same", is_flag=True,
              help="Exit code 1 unless every decision is the same (recorded, where no policy is named).")  # fmt: skip
@with_settings
@with_output
def whatif(
    path: Path | None, pool: str | None, policies: tuple[str, ...], closed: bool, own_times: bool,
    step_model: str | None, engine: str, python: Path | None, jobs: int, seed: int, same: bool, settings: Settings,
    out: Output,
) -> int:  # fmt: skip
    """What other policies would have decided, and what would have become of the requests.

    Policies are presets; --set ACTOR.KEY=VALUE changes each of them, or what was recorded where none is named.
    Decisions are compared step by step with the same facts and the same past. With --closed-loop an engine model
    answers; the recorded policy is modelled too, and its distance from what was observed is the error.
    """
    from replay.bench.memory.report import EngineModel
    from replay.tried import RECORDED

    if (path is None) == (pool is None):
        raise click.UsageError("name a journal, or a pool with --pool")
    if not closed and (own_times or step_model is not None or engine != "light"):
        raise click.UsageError("--own-times, --step-model and --engine-model go with --closed-loop")
    model = _step_model(step_model)
    changes, rest = split(settings)
    wanted = candidates(policies or ((RECORDED,) if same else ()), changes)
    if not wanted:
        raise click.UsageError("name what to try: --policy NAME, or --set ACTOR.KEY=VALUE")
    from replay.journal_source import JournalSource

    if path is not None and rest.overrides:
        rest.load()  # They play no part in a journal, and are held to what they say all the same.
    with logged(rest, path, pool, out) as journal:
        source = JournalSource(journal)
        answer = Answer(pool=source.pool, open_loop=_decisions(source, wanted, out))
        if closed:
            with _players(engine, python, jobs) as play_all:
                answer.closed_loop = _outcomes(
                    source, wanted, play_all, out, engine=EngineModel(engine), seeds=tuple(range(seed, seed + SEEDS)),
                    step_model=model, sessions_wait=not own_times,
                )  # fmt: skip
    from services.commands.whatif_text import show

    out.result(answer, lambda console: show(answer, console, str(path or "")))
    differ = any(one.total("differ") or any(d.failed for d in one.actors) for one in answer.open_loop.tried)
    return Exit.NO if same and differ else Exit.FINE


def split(settings: Settings) -> tuple[dict[str, dict[str, Any]], Settings]:
    """What the command line changes of policies, by actor (`admission.queue_max=7`, or with `policies.` before it), and
    the settings without that. Raises UsageError."""
    from policies.catalog import ACTORS
    from services.runtime.amounts import setting_of

    changes: dict[str, dict[str, Any]] = {}
    rest = []
    for text in settings.overrides:
        name, sign, value = text.removeprefix("policies.").partition("=")
        actor, dot, key = name.partition(".")
        if actor not in ACTORS and (text.startswith("policies.") or actor not in Config.__struct_fields__):
            known = f"ACTOR.KEY=VALUE, with one of {', '.join(ACTORS)}"
            raise click.UsageError(
                f"--set {text}: there is no actor {actor!r}{meant(actor, list(ACTORS))}: say {known}"
            )
        if actor not in ACTORS:
            rest.append(text)
            continue
        if not (dot and key and sign):
            raise click.UsageError(f"--set {text}: write ACTOR.KEY=VALUE")
        changes.setdefault(actor, {})[key] = setting_of(key, value)
    return changes, Settings(settings.file, tuple(rest))


def candidates(policies: tuple[str, ...], changes: dict[str, dict[str, Any]]) -> "list[Candidate]":
    """What is tried: each policy once, with the changes; without one the recorded policy, where anything is changed.
    Raises ConfigError."""
    from policies.catalog import PRESETS
    from replay.tried import RECORDED, candidate

    found = []
    for name in dict.fromkeys(policies or ((RECORDED,) if changes else ())):
        if name not in (RECORDED, *PRESETS):
            what = f"no policy {name!r}{meant(name, [RECORDED, *PRESETS])}"
            raise ConfigError(what, where="--policy", key="", allowed=", ".join([RECORDED, *PRESETS]))
        try:
            found.append(candidate(name, changes))
        except ValueError as error:
            raise ConfigError(str(error), where="--set", key="") from error
    return found


def _decisions(source: "JournalSource", wanted: "list[Candidate]", out: Output) -> "OpenLoop":
    from replay.code_version import code_version
    from replay.whatif import open_loop

    with out.progress("decide again") as advance:
        return open_loop(source, source.pool, wanted, code_version=code_version(), on_progress=advance)


def _step_model(name: str | None) -> "StepModel | None":
    from replay.costmodel import STEP_MODELS

    if name is not None and name not in STEP_MODELS:
        what = f"no step model {name!r}{meant(name, list(STEP_MODELS))}"
        raise ConfigError(what, where="--step-model", key="", allowed=", ".join(STEP_MODELS))
    return STEP_MODELS[name] if name is not None else None


@contextmanager
def _players(engine: str, python: Path | None, jobs: int) -> "Iterator[Player[Again, Modelled]]":
    from replay.bench.far import engine_python, far_players
    from replay.bench.runs import players
    from replay.whatif_closed import play_again
    from services.engines import vllm_virtual

    if engine == "light":
        with players(jobs, play_again) as play_all:
            yield play_all
        return
    interpreter = engine_python(python)
    if interpreter is None:
        what = "no interpreter that has vLLM 0.32"
        raise ConfigError(what, where="--engine-python", key="", allowed="make test-engine makes one in .venv-engine")
    with far_players(interpreter, jobs, vllm_virtual.play_again) as play_all:
        yield play_all


def _outcomes(
    source: "JournalSource", wanted: "list[Candidate]", play_all: "Player[Again, Modelled]", out: Output, **how: Any
) -> "ClosedLoop":
    from replay.bench.far import FarError
    from replay.recorded import NotModelled
    from replay.whatif_closed import closed_loop

    with out.progress("run again") as advance:
        try:
            return closed_loop(
                source, source.pool, wanted, play_all=play_all, on_progress=lambda done, _of: advance(done), **how
            )
        except NotModelled as error:
            mend = "--step-model PROFILE" if "step" in str(error) else "a journal of a pool that served requests"
            raise ConfigError(str(error), where=str(source.path), key="", allowed=mend) from error
        except FarError as error:
            raise click.ClickException(str(error)) from error
