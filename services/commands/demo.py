"""`tidegate demo`: see it work, from nothing to one table."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import msgspec

from events.base import PoolId, Recorded
from services.commands.options import with_output
from services.runtime.output import Exit, Output

SPEED_MIXED = 16
SPEED_TRACE = 20
REFRESH_PER_S = 8
LINE_EVERY_S = 2.0


@click.command()
@click.option("--seed", default=1, show_default=True, help="Of the mixed workload.")
@click.option("--trace", type=click.Path(path_type=Path, dir_okay=False), help="A Mooncake trace instead.")
@click.option("--limit", type=click.IntRange(min=1), default=2000, show_default=True, help="Rows of the trace.")
@click.option("--speed", type=click.IntRange(1, 100), help="Pool seconds per wall second; 16, or 20 for a trace.")
@click.option("--out", "folder", type=click.Path(path_type=Path, file_okay=False), help="Where the files go.")
@with_output
def command(seed: int, trace: Path | None, limit: int, speed: int | None, folder: Path | None, out: Output) -> int:
    """Real servers and workers, simulated engines, a live view, and a table that ends in `verify: IDENTICAL`."""
    from services import demo
    from services.runtime.aio import run

    started = time.monotonic()
    if trace is not None:
        with out.progress(f"read {trace.name}") as advance:
            plan = demo.plan_trace(trace, limit=limit, on_progress=lambda done, _size: advance(done))
    else:
        plan = demo.plan_mixed(seed)
    folder = folder or Path("out") / time.strftime("demo-%Y%m%d-%H%M%S")
    speed = speed or (SPEED_TRACE if trace is not None else SPEED_MIXED)
    run_live = _Live(plan, folder=folder, speed=speed, out=out)
    run(run_live.run())
    result = _judge(run_live, started=started)
    result.write(folder)
    out.result(result, lambda console: _show(result, console))
    return Exit.FINE if result.verify == "identical" else Exit.NO
