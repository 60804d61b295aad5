"""`tidegate demo`: see it work, from nothing to one table."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from events.base import LogError, Recorded
from services.commands.options import Amount, with_output
from services.runtime.output import Exit, Output

if TYPE_CHECKING:
    from rich.console import Console

    from services.demo import Plan
    from services.demo_report import DemoResult
    from services.live_view import LiveView
    from services.load import LoadResult
    from services.runtime.config import Config

SPEED_MIXED = 16
SPEED_TRACE = 20
REFRESH_PER_S = 8
LINE_EVERY_S = 2.0
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
GIB = 1 << 30


@click.command()
@click.option("--seed", default=1, show_default=True, help="Of the mixed workload.")
@click.option("--trace", type=click.Path(path_type=Path, dir_okay=False), help="A Mooncake trace instead.")
@click.option("--limit", type=click.IntRange(min=1), default=2000, show_default=True, help="Rows of the trace.")
@click.option("--speed", type=click.IntRange(1, 100), help="Pool seconds per wall second; 16, or 20 for a trace.")
@click.option("--dram-gib", type=Amount(min=0), default=0.0, show_default=True,
              help="DRAM behind each engine's device memory.")  # fmt: skip
@click.option("--ssd-gib", type=Amount(min=0), default=0.0, show_default=True, help="SSD behind that.")
@click.option("--out", "folder", type=click.Path(path_type=Path, file_okay=False), help="Where the files go.")
@with_output
def command(
    seed: int, trace: Path | None, limit: int, speed: int | None, dram_gib: float, ssd_gib: float,
    folder: Path | None, out: Output,
) -> int:  # fmt: skip
    """Real servers and workers, simulated engines, a live view, and a table that ends in `verify: IDENTICAL`."""
    from services import demo
    from services.runtime.aio import run

    if ssd_gib and not dram_gib:
        raise click.UsageError("what is in SSD goes by way of DRAM: give --dram-gib too")
    started = time.monotonic()
    tiers = {"dram_bytes": int(dram_gib * GIB), "ssd_bytes": int(ssd_gib * GIB)}
    if trace is not None:
        with out.progress(f"read {trace.name}") as advance:
            plan = demo.plan_trace(trace, limit=limit, on_progress=lambda done, _size: advance(done), **tiers)
    else:
        plan = demo.plan_mixed(seed, **tiers)
    folder = (folder or Path("out") / time.strftime("demo-%Y%m%d-%H%M%S")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    speed = speed or (SPEED_TRACE if trace is not None else SPEED_MIXED)
    journal = folder / "journal.jsonl.zst"
    out.remark(f"live: {plan.name}, {len(plan.arrivals)} requests, pool time {speed}x")
    journal.unlink(missing_ok=True)
    config = demo.config_of(plan, state_dir=folder / "state", speed=speed)
    load = run(_live(plan, config, _written(config, folder / "config.json"), journal, out))
    result = _judge(plan, journal, load, speed=speed, out=out)
    result.report = str(folder / "report.html")
    result.seconds = round(time.monotonic() - started, 3)
    result.write(folder)
    out.result(result, lambda console: _show(result, console))
    return Exit.FINE if result.verify == "identical" else Exit.NO


def _written(config: "Config", file: Path) -> Path:
    """The settings in a file that only the owner reads: it holds the tenants' keys."""
    file.touch(mode=0o600)
    file.write_bytes(msgspec.json.encode(config))
    return file


async def _live(plan: "Plan", config: "Config", file: Path, journal: Path, out: Output) -> "LoadResult":
    """Serve the plan by `tidegate up` with the settings in `file`; leave the log as a journal."""
    from events.base import PoolId
    from services import demo
    from services.journals import export_log
    from services.live_view import LiveView
    from services.runtime.servers import open_log

    view = LiveView(f"pool {config.pool}: {plan.name}")
    async with _house(file) as url, open_log(config, PoolId(config.pool)) as log:
        with _shown(view, out) as refresh:

            def on_record(recorded: Recorded) -> None:
                view.take(recorded)
                refresh()

            load = await demo.serve(plan, config, url=url, log=log, on_record=on_record)
        await export_log(log, journal)
    return load


@asynccontextmanager
async def _house(file: Path) -> AsyncIterator[str]:
    """`tidegate up` with the settings in `file`; the gateway's URL. It ends, in good order, with the block."""
    said = file.with_name("up.log")
    command = (sys.executable, "-m", "services.cli", "up", "--config", str(file), "--json")
    with said.open("wb") as stderr:
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=stderr)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            url = await _gateway_url(child, said)
        yield url
    finally:
        if child.returncode is None:
            child.terminate()
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await child.wait()


async def _gateway_url(child: asyncio.subprocess.Process, said: Path) -> str:
    assert child.stdout is not None, "stdout was asked for"
    line = await child.stdout.readline()
    if not line:
        raise LogError(f"the house did not start: {_last_line(said)}", where=str(said))
    ready: dict[str, str] = msgspec.json.decode(line)
    return ready["gateway"]


def _last_line(file: Path) -> str:
    return (file.read_text().splitlines() or ["it said nothing"])[-1]


@contextmanager
def _shown(view: "LiveView", out: Output) -> Iterator[Callable[[], None]]:
    """Show the view while the block runs: live on a terminal, a line now and then elsewhere, nothing with --json."""
    from rich.live import Live

    if out.as_json:
        yield lambda: None
        return
    if out.remarks.is_terminal:
        with Live(get_renderable=view.render, console=out.remarks, refresh_per_second=REFRESH_PER_S):
            yield lambda: None
        return
    said_s = time.monotonic()

    def line() -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= LINE_EVERY_S:
            said_s = time.monotonic()
            out.remark(view.summary())

    yield line


def _judge(plan: "Plan", journal: Path, load: "LoadResult", *, speed: int, out: Output) -> "DemoResult":
    """Verify the live log, score it, and run the plan in virtual time."""
    from policies.catalog import ACTORS
    from replay.code_version import code_version
    from replay.journal_source import JournalSource
    from replay.recorded import world_of
    from replay.score import score
    from replay.verify import verify
    from services.demo import compare
    from services.demo_report import DemoResult

    out.remark("virtual time: first come, first served and Tidegate, on the same arrivals")
    scores = compare(plan)
    source = JournalSource(journal)
    report = verify(source, source.pool, ACTORS, code_version=code_version())
    scores["live"] = score(list(source))
    return DemoResult(
        workload=plan.name, speed=speed, verify="identical" if report.identical else "diverged",
        digest=report.digest, events=report.events, decisions=report.decisions, requests=len(plan.arrivals),
        slo_attainment={name: each.slo_attainment for name, each in scores.items()},
        goodput_per_s={name: each.goodput_per_s for name, each in scores.items()},
        statuses={str(status): count for status, count in sorted(load.statuses.items())},
        load_late_max_s=round(load.late_max_s, 3), control_ns=world_of(source).control_ns or 0,
        seconds=0.0, code_version=code_version(), journal=str(journal), report="", scores=scores,
    )  # fmt: skip


def _show(result: "DemoResult", console: "Console") -> None:
    from services.demo_report import table_of

    console.print(table_of(result))
    if result.behind():
        console.print(result.behind(), style="yellow")
    console.print(f"journal  {_near(result.journal)}\nreport   {_near(result.report)}")
    console.print(f"{result.events} events, {result.decisions} decisions. [bold]{result.verdict()}[/bold]")


def _near(path: str) -> str:
    return os.path.relpath(path) if path else ""
