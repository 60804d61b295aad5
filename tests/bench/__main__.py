"""`make bench`: what the house costs, beside the least that it could cost, in one run. See docs/benchmarks.md."""

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from services.runtime.aio import run
from services.runtime.config import LogProfile
from services.runtime.embedded import start_nats
from tests.bench import deciding, engines, fingerprinting, loop, memory, registry, replaying, streaming
from tests.bench.place import Place
from tests.bench.rounds import ROUNDS, Row

SECTIONS: dict[str, Callable[[Place], Awaitable[list[Row]]]] = {
    "loop": loop.measure,
    "decisions": deciding.measure_live,
    "advance": deciding.measure_alone,
    "replay": replaying.measure,
    "gateway": streaming.measure,
    "fingerprint": fingerprinting.measure,
    "prefix": memory.measure_prefixes,
    "tiers": memory.measure_tiers,
    "registry": registry.measure,
    "engines": engines.measure,
}

TABLE_WIDTH = 120
RATIO_MIN = 0.01
"""Smaller ones are shown by their first digit."""


def main(argv: Sequence[str]) -> int:
    """Measure, then show one table (`--json`: one object)."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(SECTIONS), metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often the ways take turns (default {ROUNDS})")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    wanted = parser.parse_args(argv)
    if wanted.rounds < 1:
        parser.error("--rounds: at least 1")
    names = wanted.only or list(SECTIONS)
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        place = Path(folder)
        with start_nats(place / "nats", profile=LogProfile.FAST) as nats:
            found = run(_measure(names, Place(place, nats.url, wanted.rounds)))
    if wanted.json:
        machine = {"cores": _cores(), "python": platform.python_version()}
        print(msgspec.json.encode({"machine": machine, "rounds": wanted.rounds, "sections": found}).decode())
    else:
        _show(found, wanted.rounds)
    return 0


async def _measure(names: Sequence[str], place: Place) -> dict[str, list[Row]]:
    found = {}
    for name in names:
        start = time.monotonic()
        found[name] = await SECTIONS[name](place)
        await asyncio.sleep(0)  # Connections that were closed take their leave.
        print(f"bench: {name}, {time.monotonic() - start:.0f} s", file=sys.stderr)
    return found


def _show(found: dict[str, list[Row]], rounds: int) -> None:
    table = Table(title=f"{rounds} rounds, medians; {_cores()} cores, Python {platform.python_version()}")
    table.add_column("what", no_wrap=True)
    for heading in ("ours", "floor", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("goal", "met"):
        table.add_column(heading, no_wrap=True)
    for rows in found.values():
        for row in rows:
            met = "" if row.met is None else "met" if row.met else "not met"
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}x" if row.ratio >= RATIO_MIN else f"{row.ratio:.1g}x"
            ours = f"{_number(row.ours)} {row.unit}"
            floor = "" if row.floor is None else f"{_number(row.floor)} {row.unit}"
            table.add_row(row.what, ours, floor, ratio, row.goal, met)
        table.add_section()
    Console(width=TABLE_WIDTH).print(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
