"""A comparison of policies as a person reads it: the knee, one table a workload, the goals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from events.base import NS_PER_S
from services.runtime.output import table

if TYPE_CHECKING:
    from rich.console import Console

    from replay.bench.goals import Goal
    from replay.bench.policies import Cell, Found, Report
    from replay.score import Part

NOTHING = "-"
COLUMNS = (
    "variant", "load", "goodput/s", "+-", "SLO met", "x affinity", "x rival", "by prompt length", "by tenant", "Jain",
    "embedding", "preempted", "refused", "TTFT error p99",
)  # fmt: skip
WIDE = 160
"""Columns of a terminal that take a row whole; a narrower one gets it in parts, each readable by itself."""
PARTS = ((0, 1, 2, 3, 4, 5, 6), (0, 1, 7, 8, 9), (0, 1, 10, 11, 13), (0, 1, 12))


def show(report: "Report", goals: Sequence["Goal"], console: "Console") -> None:
    """Print it all."""
    for found in report.found:
        _show_workload(found, console)
    rows = [
        (goal.workload, goal.name, f">= {goal.at_least:g}", _number(goal.value, 3), _verdict(goal), goal.where)
        for goal in goals
    ]
    console.print(table(("goals", "", "at least", "found", "", "where"), rows))
    seeds = ", ".join(str(seed) for seed in report.seeds)
    console.print(f"{report.runs} runs in {report.seconds:.0f} s; seeds {seeds}; rejected is missed", markup=False)


def _show_workload(found: "Found", console: "Console") -> None:
    knee = found.knee
    swept = ", ".join(f"{one.scale:g}: {one.goodput_per_s:.2f} of {one.offered_per_s:.2f}" for one in knee.sweep)
    chunks = ", ".join(f"{chunk}: {goodput:.2f}" for chunk, goodput in found.chunks.items())
    console.print(f"\n{found.workload.value} ({found.source})", markup=False, style="bold")
    edge = ", at the edge of the sweep" if knee.at_edge else ""
    console.print(f"knee at scale {knee.scale:g}{edge} (goodput of offered, per s: {swept})", markup=False)
    console.print(f"chunk budget {found.batch_tokens} (the rival's goodput under load: {chunks})", markup=False)
    rows = [_row(cell) for cell in found.cells]
    for part in (tuple(range(len(COLUMNS))),) if console.width >= WIDE else PARTS:
        console.print(table([COLUMNS[n] for n in part], [[row[n] for n in part] for row in rows]))


def _row(cell: "Cell") -> tuple[str, ...]:
    refused = {**cell.rejected, **cell.aborted}
    return (
        cell.variant, f"{cell.load:g}", f"{cell.goodput_per_s:.2f}", f"{cell.goodput_std:.2f}",
        f"{cell.attainment:.0%}", _number(cell.ratio_baseline, 2), _number(cell.ratio_rival, 2),
        _parts(cell.prompts), _parts(cell.tenants), f"{cell.jain:.3f}",
        NOTHING if cell.attainment_embedding is None else f"{cell.attainment_embedding:.0%}",
        str(cell.preemptions), ", ".join(f"{why} {count}" for why, count in refused.items()) or NOTHING,
        f"{cell.ttft_error_p99_ns / NS_PER_S:.2f} s",
    )  # fmt: skip


def _parts(parts: "dict[str, Part]") -> str:
    shares = [f"{part.slo_attainment:.0%}" if part.requests else NOTHING for part in parts.values()]
    return " ".join(shares)


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _verdict(goal: "Goal") -> str:
    if goal.met is None:
        return "not measured"
    if goal.met:
        return "met"
    if goal.most is not None and goal.most < goal.at_least:
        return f"missed (all that is offered would be {goal.most:.2f})"
    return "missed"
