"""A report of the memory benchmark as a person reads it: what was offered, a table a workload, the goals."""

from typing import TYPE_CHECKING

from replay.bench.memory.goals import NEVER as INFINITE
from replay.bench.memory.report import Origin
from replay.bench.memory.said import NEVER, NOTHING, attained, gib, number, seconds, share, span
from services.runtime.output import table

if TYPE_CHECKING:
    from rich.console import Console

    from replay.bench.memory.report import Cell, Goal, Knee, Report, WorkloadInfo

COLUMNS = (
    "system", "load", "goodput/s", "+-", "SLO met", "x shipped", "x careful", "x rival", "TTFT p50 / p99",
    "TPOT p50 / p99", "cached", "of it in tiers", "worst class", "tokens/s", "device h / M tokens",
)  # fmt: skip
WIDE = 200
"""Columns of a terminal that take a row whole; a narrower one gets it in parts, each readable by itself."""
PARTS = ((0, 1, 2, 3, 4, 5, 6, 7), (0, 1, 8, 9, 10, 11), (0, 1, 12, 13, 14))
AGAINST = ("as_shipped", "careful", "honest_rival")


def show(report: "Report", console: "Console") -> None:
    """Print it all; the goals come last."""
    for info in report.workloads:
        _workload(report, info, console)
    console.print()
    columns = ("goals", "", "limit", "found", "", "engines", "where", "bound")
    console.print(table(columns, [_goal(goal) for goal in report.goals]))
    verdicts = [_verdict(goal) for goal in report.goals]
    counts = ", ".join(f"{verdicts.count(one)} {one}" for one in dict.fromkeys(verdicts))
    seeds = ", ".join(str(seed) for seed in report.seeds)
    end = "; stopped early" if report.stopped_early else ""
    console.print(
        f"{counts or 'no goals'}; {len(report.runs)} runs, seeds {seeds}, {seconds(report.seconds)}{end}", markup=False
    )
    if any(run.origin is Origin.MODELLED for run in report.runs):
        console.print(f"uncalibrated: {report.uncalibrated}" if report.uncalibrated else CALIBRATED, markup=False)


CALIBRATED = (
    "engine models are within their limits of measured runs of vLLM on two boards; step times here are an H100's, "
    "composed of kernel tables without host time: docs/calibration.md"
)


def _workload(report: "Report", info: "WorkloadInfo", console: "Console") -> None:
    console.print(f"\n{info.name} ({info.source})", markup=False, style="bold")
    loop = f"at load {_load(report, info):g}, {'closed loop' if info.closed_loop else 'open loop'}"
    console.print(
        f"{info.requests} requests in {seconds(info.seconds)} on {info.engines} engines {loop}; unique KV "
        f"{gib(info.unique_kv_bytes)}; at best {share(info.ideal_hit_share)} of prompt tokens cached", markup=False,
    )  # fmt: skip
    if info.drawn:
        console.print(f"drawn: {info.drawn}", markup=False)
    for whose, knee in (("the careful baseline", info.knee), ("vLLM as shipped", info.shipped_knee)):
        if knee is not None:
            console.print(f"knee of {whose}: {_knee(knee)}", markup=False)
    for kind, knee in info.other_knees.items():
        console.print(f"knee of the careful baseline for {kind} engines: {_knee(knee)}", markup=False)
    for engine in dict.fromkeys(cell.engine for cell in report.cells):
        cells = [cell for cell in report.cells if cell.workload == info.name and cell.engine is engine]
        if cells:
            console.print(f"engines: {engine.value}", markup=False)
            rows = [_row(cell) for cell in sorted(cells, key=lambda cell: cell.load)]
            for part in (tuple(range(len(COLUMNS))),) if console.width >= WIDE else PARTS:
                console.print(table([COLUMNS[n] for n in part], [[row[n] for n in part] for row in rows]))


def _load(report: "Report", info: "WorkloadInfo") -> float:
    """The load that a workload is described at: its knee, or the first that a live target got."""
    return 1.0 if info.knee is not None else report.loads[0]


def _knee(knee: "Knee") -> str:
    tried = ", ".join(f"{scale:g}: {good:.2f}" for scale, good in zip(knee.scales, knee.goodputs, strict=True))
    edge = ", at the edge of what was tried" if knee.at_edge else ""
    return f"scale {knee.scale:g}, {knee.goodput_per_s:.2f}/s{edge} ({tried})"


def _row(cell: "Cell") -> tuple[str, ...]:
    below = sum(part for tier, part in cell.hit_by_tier.items() if tier != "device")
    slower = below if cell.hit_share is not None else None
    return (
        cell.system, f"{cell.load:g}", number(cell.goodput_per_s),
        number(cell.goodput_std) if cell.runs > 1 else NOTHING,
        attained(cell.attainment, cell.attainment_retried),
        *(number(cell.ratios.get(name)) for name in AGAINST),
        f"{span(cell.ttft_p50_ns)} / {span(cell.ttft_p99_ns)}", f"{span(cell.tpot_p50_ns)} / {span(cell.tpot_p99_ns)}",
        share(cell.hit_share), share(slower),
        number(cell.worst_class_share), f"{cell.throughput_tokens_per_s:,.0f}",
        number(cell.device_hours_per_million, 3),
    )  # fmt: skip


def _goal(goal: "Goal") -> tuple[str, ...]:
    bound = NOTHING if goal.bound is None else f"{goal.bound:.3f}"
    return (
        goal.workload, goal.name, f"{'<=' if goal.at_most else '>='} {goal.limit:g}",
        NEVER if goal.value == INFINITE else number(goal.value, 3), _verdict(goal), goal.engine.value, goal.where,
        f"{bound} by {goal.bound_by}" if goal.bound_by else bound,
    )  # fmt: skip


def _verdict(goal: "Goal") -> str:
    if goal.met is None:
        return "not measured" if goal.value is None else "to look at"
    if goal.met:
        return "met"
    if goal.is_out_of_reach:
        return "out of reach"
    return "missed, its bound too" if goal.is_bounded else "missed"
