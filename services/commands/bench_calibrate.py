"""`tidegate bench calibrate`: simulated engines held against measured runs of vLLM."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from services.commands.options import with_output
from services.runtime.config_sources import ConfigError
from services.runtime.output import Exit, Output, table

if TYPE_CHECKING:
    from rich.console import Console

    from replay.bench.memory.report import Calibration

RUNS_BESIDE = Path("../shared/profiles/llmservingsim/bench_RTXPRO6000_Llama-3.1-8B")
"""Where the measured run is looked for when none is named."""
LIGHT, SCHEDULER = "light", "vllm_scheduler"
SMALL = 10
"""Figures below it have three decimals: shares have nothing else."""


@click.command("calibrate")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of the measured run; else one beside the checkout, else what was found last.")  # fmt: skip
@click.option("--engine", "engines", type=click.Choice([LIGHT, SCHEDULER]), multiple=True,
              help="Which simulated engines (default: both, where vLLM is installed).")  # fmt: skip
@click.option("--engine-python", type=click.Path(path_type=Path, dir_okay=False),
              help="An interpreter that has vLLM (default: .venv-engine/bin/python).")  # fmt: skip
@click.option("--out", "made", type=click.Path(path_type=Path, dir_okay=False), help="Write what was found there.")
@click.option("--strict", is_flag=True, help="Exit code 1 when a goal is not met.")
@with_output
def command(
    runs: Path | None, engines: tuple[str, ...], engine_python: Path | None, made: Path | None, strict: bool,
    out: Output,
) -> int:  # fmt: skip
    """TTFT, TPOT and throughput of simulated engines beside those of a real server with the same requests.

    Goals: medians within 10 %, p99 within 20 %, throughput within 5 %. See docs/calibration.md.
    """
    from replay.calibration import calibrations
    from services.runtime.snapshot import replace_file

    if runs is None and RUNS_BESIDE.is_dir():
        runs = RUNS_BESIDE
    if runs is None:
        out.remark("no measured run was given, and none lies beside the checkout: this is what was found last")
        found = [one for one in calibrations() if not engines or (LIGHT in engines) == one.model.startswith(LIGHT)]
    else:
        found = _found(runs, engines, engine_python, out)
    if made is not None:
        replace_file(made, msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    out.result([plain(one) for one in found], lambda console: show(found, console))
    return Exit.NO if strict and not all(one.calibrated for one in found) else Exit.FINE


def _found(runs: Path, engines: tuple[str, ...], python: Path | None, out: Output) -> "list[Calibration]":
    from replay.bench.far import FarError, engine_python, far_players
    from replay.bench.memory.report import EngineModel
    from replay.calibration import Against, found_for, measured_runs

    try:
        measured_runs(runs)
    except (OSError, ValueError, KeyError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"that is no measured run: {error}", where="--runs", key="",
            allowed="a folder with requests.jsonl, timeseries.csv and meta.json of LLMServingSim's bench",
        ) from None  # fmt: skip
    found: list[Calibration] = []
    folder = str(runs.absolute())
    if not engines or LIGHT in engines:
        found += found_for(Against(runs=folder, engine=EngineModel.LIGHT))
    if not engines or SCHEDULER in engines:
        interpreter = engine_python(python)
        if interpreter is None and (engines or python is not None):
            raise _no_engine("it is not there")
        if interpreter is None:
            out.remark("vLLM's environment is not there: only the light model is held against the runs")
            return found
        try:
            with far_players(interpreter, 1, found_for) as play:
                task = Against(runs=folder, engine=EngineModel.VLLM_SCHEDULER)
                found += play([task], lambda _number, _found: None)[0]
        except FarError as error:
            raise _no_engine(error.why.strip().rpartition("\n")[2]) from None
    return found


def _no_engine(what: str) -> ConfigError:
    return ConfigError(what, where="--engine-python", key="", allowed="an interpreter that has vLLM 0.32")


def plain(one: "Calibration") -> dict[str, object]:
    """A calibration for JSON, with what follows from its numbers."""
    checked = [{**msgspec.to_builtins(item), "off": item.off} for item in one.checked]
    return {**msgspec.to_builtins(one), "checked": checked, "calibrated": one.calibrated}


def show(
    found: "list[Calibration]", console: "Console", sides: tuple[str, str] = ("measured", "modelled")
) -> None:  # fmt: skip
    """Calibrations for people, every quantity beside its limit. `sides` are what is held against what."""
    from replay.bench.memory.said import number as said

    for number, one in enumerate(found):
        if number:
            console.print()
        console.print(f"{one.model}\n  against {one.against}; {one.requests} requests")
        rows = [
            (item.name, *(said(value, 3 if abs(value) < SMALL else 1) for value in (item.measured, item.modelled)),
             item.unit, f"{100 * (item.modelled / item.measured - 1):+.1f} %" if item.measured else "-",
             f"{100 * item.off_max:.0f} %",
             "within" if item.off <= item.off_max else "NOT within")
            for item in one.checked
        ]  # fmt: skip
        console.print(table(("quantity", *sides, "unit", "off", "may be", ""), rows))
        console.print(one.note)
        console.print("calibrated" if one.calibrated else "uncalibrated: a goal is not reached")
