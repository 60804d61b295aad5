"""`tidegate bench engines`: the light engine held against vLLM's own scheduler, in virtual time."""

from contextlib import ExitStack
from itertools import count
from pathlib import Path

import click

from services.commands.bench_calibrate import plain, show
from services.commands.bench_run import TRACES_BESIDE
from services.commands.options import with_output
from services.runtime.config_sources import ConfigError
from services.runtime.output import Exit, Output

SECONDS, WINDOWS = 240, 6
SIDES = ("vLLM's own", "light")


@click.command("engines")
@click.option("--seconds", type=click.IntRange(min=10), default=SECONDS, show_default=True,
              help="Virtual seconds of each run.")  # fmt: skip
@click.option("--windows", type=click.IntRange(min=1), default=WINDOWS, show_default=True,
              help="Runs of each workload, by seed; their means are judged.")  # fmt: skip
@click.option("--traces", type=click.Path(exists=True, path_type=Path, file_okay=False),
              help="Folder of public traces (default: one beside the checkout, else drawn).")  # fmt: skip
@click.option("--engine-python", type=click.Path(path_type=Path, dir_okay=False),
              help="An interpreter that has vLLM (default: .venv-engine/bin/python).")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time.")
@click.option("--strict", is_flag=True, help="Exit code 1 when a quantity is not within its limit.")
@with_output
def command(
    seconds: int, windows: int, traces: Path | None, engine_python: Path | None, jobs: int, strict: bool, out: Output
) -> int:  # fmt: skip
    """Three workloads, short of memory, on both kinds of simulated engine: how far the light one is off.

    Both are models, in virtual time: vLLM's scheduler is its own code with its KV cache manager and CPU offload. With
    --json its figures are `measured`, those of the light engine `modelled`.
    """
    from replay.bench.engines import SHAPES, compared, play
    from replay.bench.far import ENGINE_PYTHON, FarError, far_players
    from replay.bench.far import engine_python as found
    from replay.bench.runs import players

    python = found(engine_python)
    if python is None:
        raise ConfigError(
            f"{engine_python or ENGINE_PYTHON} is not there", where="--engine-python", key="",
            allowed="an interpreter with vLLM 0.32 and msgspec (make test-engine makes one)",
        )  # fmt: skip
    folder = traces or (TRACES_BESIDE if TRACES_BESIDE.is_dir() else None)
    with ExitStack() as stack:
        advance = stack.enter_context(out.progress("bench engines", 2 * windows * len(SHAPES)))
        here = stack.enter_context(players(jobs, play))
        far = stack.enter_context(far_players(python, jobs, play))
        done = count(1)
        try:
            calibrations = compared(
                here, far, folder, seconds=seconds, windows=windows, on_done=lambda: advance(next(done))
            )  # fmt: skip
        except FarError as error:
            raise ConfigError(
                f"vLLM's scheduler did not run there: {error.why.rpartition(chr(10))[2]}", where="--engine-python",
                key="", allowed="an interpreter with vLLM 0.32 and msgspec",
            ) from None  # fmt: skip
    out.result([plain(one) for one in calibrations], lambda console: show(calibrations, console, SIDES))
    return Exit.NO if strict and not all(one.calibrated for one in calibrations) else Exit.FINE
