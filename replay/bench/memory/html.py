"""The page of a memory benchmark: one file of HTML that needs nothing else, for screens (light and dark) and paper."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from replay.bench.memory import beside, charts, said
from replay.bench.memory.charts import DARK, LIGHT, Style
from replay.bench.memory.goals import NEVER as INFINITE_RATIO
from replay.bench.memory.panels import Panel, Section, Stack, Table, memory_of, origin_of, sections
from replay.bench.memory.report import (
    Calibration,
    Cell,
    EngineModel,
    Goal,
    Knee,
    Origin,
    Report,
    RunResult,
    System,
    WorkloadInfo,
)
from replay.bench.memory.workloads import PROFILE
from replay.costmodel import PROFILES

TEMPLATE: Final = "report.html.jinja"
ENGINE_TITLES: Final = {
    EngineModel.LIGHT: "light engines", EngineModel.VLLM_SCHEDULER: "vLLM's scheduler, virtual time",
    EngineModel.LIVE: "live engines",
}  # fmt: skip
CELL_COLUMNS: Final = (
    "SLO met", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "hits", "tokens/s", "tokens/s swing", "memory swing",
    "worst class", "Jain", "device h / M tokens", "FLOPs of most",
)  # fmt: skip
"""After the goodput, and its ratios to others'."""
WORKLOAD_COLUMNS: Final = (
    "workload", "source", "window", "requests", "engines", "unique KV", "ideal hits", "knee",
    "of vLLM as shipped", "drawn",
)  # fmt: skip


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A panel and its picture ("" = none can be drawn here)."""

    panel: Panel | Stack
    svg: str


class AtLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of all systems at one load."""

    title: str
    rows: tuple[tuple[str, ...], ...]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A section of the page: one workload with one kind of engine."""

    id: str
    title: str
    origin: Origin
    said: str
    legend: tuple[tuple[str, str], ...]
    figures: tuple[Figure, ...]
    columns: tuple[str, ...]
    at_loads: tuple[AtLoad, ...]
    predicted: Table | None
    notes: tuple[str, ...]


class GoalCell(msgspec.Struct, frozen=True, kw_only=True):
    """One goal on one workload, in words."""

    kind: str
    mark: str
    verdict: str
    value: str
    limit: str
    where: str
    bound: str


class GoalRow(msgspec.Struct, frozen=True, kw_only=True):
    """One goal on all workloads (None: not set there)."""

    name: str
    engine: str
    origin: Origin
    cells: tuple[GoalCell | None, ...]


class GoalTable(msgspec.Struct, frozen=True, kw_only=True):
    """All goals, a row each."""

    met: int
    missed: int
    out_of_reach: int
    bounded: int
    open: int
    workloads: tuple[str, ...]
    rows: tuple[GoalRow, ...]


def page(report: Report) -> str:
    """The page. Without the extra `charts` it says so, and has its tables alone."""
    drawn = charts.has_charts()
    look = charts.styles(report.systems)
    environment = Environment(
        autoescape=True, trim_blocks=True, loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined
    )
    return environment.get_template(TEMPLATE).render(
        report=report, facts=_facts(report), charts=drawn, goals=_goals(report), light=_variables(LIGHT),
        dark=_variables(DARK), parts=_parts(report, look, drawn=drawn),
        across=beside.across(report),
        calibrations=[_calibration(one) for one in report.calibrations],
        systems=[_system(one, report.runs) for one in report.systems], workload_columns=WORKLOAD_COLUMNS,
        workloads=[_workload(one) for one in report.workloads], steps=PROFILES[PROFILE].step.source,
    )  # fmt: skip


def _variables(colours: Mapping[str, str]) -> Markup:
    return Markup("; ").join(Markup("--{}: {}").format(name, colour) for name, colour in colours.items())


def _facts(report: Report) -> list[tuple[str, str]]:
    kinds = dict.fromkeys(ENGINE_TITLES[run.engine] for run in report.runs)
    return [
        ("made at", report.made_at),
        ("Tidegate", report.version),
        ("engines", ", ".join(kinds) or said.NOTHING),
        ("workloads", str(len(report.workloads))),
        ("systems", str(len(report.systems))),
        ("loads", ", ".join(f"{load:g}" for load in report.loads)),
        ("seeds", ", ".join(str(seed) for seed in report.seeds)),
        ("runs", f"{len(report.runs):,} in {said.seconds(report.seconds)}"),
    ]


def _parts(report: Report, look: Mapping[str, Style], *, drawn: bool) -> list[Part]:
    return [_part(f"part-{number}", one, report, look, drawn=drawn) for number, one in enumerate(sections(report), 1)]


def _part(part_id: str, section: Section, report: Report, look: Mapping[str, Style], *, drawn: bool) -> Part:
    name = f"{section.workload.name} {section.engine.value}"
    titles = {one.name: one.title or one.name for one in report.systems}
    drawn_systems = [one for one in report.systems if any(cell.system == one.name for cell in section.cells)]
    workload = section.workload
    facts = [workload.source, f"{workload.requests:,} requests in {said.seconds(workload.seconds)}"]
    facts += [f"{workload.engines} engines", "closed loop" if workload.closed_loop else "open loop"]
    facts += [f"drawn: {workload.drawn}"] if workload.drawn else []
    return Part(
        id=part_id,
        title=f"{workload.name}: {ENGINE_TITLES[section.engine]}", origin=section.origin, said="; ".join(facts) + ".",
        legend=_legend(drawn_systems, look, name) if drawn else (),
        figures=tuple(
            Figure(panel=panel, svg=Markup(charts.chart(panel, look, name)) if drawn else "")  # noqa: S704
            for panel in section.panels
        ),
        columns=(
            "system", "goodput/s", "±", *(f"x {titles.get(name, name)}" for name in _held_against(section)),
            *CELL_COLUMNS,
        ),
        at_loads=tuple(_at_loads(section, titles)),
        predicted=beside.predicted(report, workload.name, section.engine),
        notes=beside.notes(report, workload, section.engine),
    )  # fmt: skip


def _legend(systems: Sequence[System], look: Mapping[str, Style], where: str) -> tuple[tuple[str, str], ...]:
    names = [(one.title or one.name, charts.swatch(look[one.name], f"{where} {one.name}")) for one in systems]
    return tuple((name, Markup(svg)) for name, svg in names)  # noqa: S704


def _held_against(section: Section) -> list[str]:
    """The systems that the goodput of some cell is held against."""
    return list(dict.fromkeys(name for cell in section.cells for name in cell.ratios))


def _at_loads(section: Section, titles: Mapping[str, str]) -> list[AtLoad]:
    order = {name: number for number, name in enumerate(titles)}
    others = _held_against(section)
    found = []
    for load in sorted({cell.load for cell in section.cells}):
        cells = [cell for cell in section.cells if cell.load == load]
        cells.sort(key=lambda cell: order.get(cell.system, len(order)))
        title = f"load {load:g}: {said.number(cells[0].offered_per_s)} requests/s are offered"
        found.append(AtLoad(title=title, rows=tuple(_row(cell, titles, others) for cell in cells)))
    return found


def _row(cell: Cell, titles: Mapping[str, str], others: Sequence[str]) -> tuple[str, ...]:
    return (
        titles.get(cell.system, cell.system), said.number(cell.goodput_per_s),
        said.number(cell.goodput_std if cell.runs > 1 else None),
        *(said.number(cell.ratios.get(name)) for name in others),
        said.attained(cell.attainment, cell.attainment_retried),
        said.span(cell.ttft_p50_ns), said.span(cell.ttft_p99_ns),
        said.span(cell.tpot_p50_ns), said.span(cell.tpot_p99_ns),
        said.share(cell.hit_share),
        said.number(cell.throughput_tokens_per_s, 0), said.share(cell.throughput_fluctuation),
        said.share(cell.occupancy_fluctuation), said.number(cell.worst_class_share), said.number(cell.jain, 3),
        said.number(cell.device_hours_per_million, 3), _flops(cell),
    )  # fmt: skip


def _flops(cell: Cell) -> str:
    """Model-FLOPs utilisation of the most that the step model allows at those batches, both in percent."""
    if cell.flops_used is None or cell.flops_bound is None:
        return said.NOTHING
    return f"{cell.flops_used * 100:.0f}/{cell.flops_bound * 100:.0f} %"


def _goals(report: Report) -> GoalTable:
    workloads = tuple(dict.fromkeys(goal.workload for goal in report.goals))
    by_name: dict[tuple[str, EngineModel], dict[str, Goal]] = {}
    for goal in report.goals:
        by_name.setdefault((goal.name, goal.engine), {})[goal.workload] = goal
    rows = [
        GoalRow(
            name=name, engine=ENGINE_TITLES[engine], origin=origin_of(engine),
            cells=tuple(_goal(found[workload]) if workload in found else None for workload in workloads),
        )
        for (name, engine), found in by_name.items()
    ]  # fmt: skip
    verdicts = [goal.met for goal in report.goals]
    return GoalTable(
        met=verdicts.count(True), missed=verdicts.count(False), open=verdicts.count(None), workloads=workloads,
        out_of_reach=sum(goal.is_out_of_reach for goal in report.goals),
        bounded=sum(goal.is_bounded and not goal.is_out_of_reach for goal in report.goals), rows=tuple(rows),
    )  # fmt: skip


def _goal(goal: Goal) -> GoalCell:
    kind, mark, verdict = {
        True: ("met", "✓", "met"), False: ("missed", "✗", "not met"), None: ("open", "–", "not measured"),
    }[goal.met]  # fmt: skip
    bound = ""
    if goal.met is None and goal.value is not None:
        verdict = "to look at"
    if goal.is_bounded:
        verdict = "not met, out of reach" if goal.is_out_of_reach else "not met, nor by its bound"
    if goal.bound is not None:
        bound = f"{'at least' if goal.at_most else 'at most'} {_figure(goal.bound)}"
    if goal.bound_by:
        bound = f"{bound}, by {goal.bound_by}" if bound else f"bounded by {goal.bound_by}"
    return GoalCell(
        kind=kind, mark=mark, verdict=verdict, value="" if goal.value is None else _figure(goal.value),
        limit=f"{'≤' if goal.at_most else '≥'} {goal.limit:g}", where=goal.where, bound=bound,
    )  # fmt: skip


def _figure(value: float) -> str:
    if value >= INFINITE_RATIO:
        return "infinite"
    return said.number(value, 3 if abs(value) < 10 else 1)


def _calibration(one: Calibration) -> dict[str, object]:
    rows = [
        {
            "name": checked.name, "measured": f"{checked.measured:,.4g} {checked.unit}",
            "modelled": f"{checked.modelled:,.4g} {checked.unit}", "off": said.share(checked.off),
            "limit": said.share(checked.off_max), "fine": checked.off <= checked.off_max,
        }
        for checked in one.checked
    ]  # fmt: skip
    return {**msgspec.structs.asdict(one), "calibrated": one.calibrated, "rows": rows}


def _system(one: System, runs: Sequence[RunResult]) -> tuple[str, ...]:
    settings = "; ".join(f"{actor}: {values}" for actor, values in one.settings.items())
    points: dict[str, list[str]] = {}
    for run in runs:
        if run.system == one.name:
            points.setdefault(f"{run.batch_tokens:,} x {run.seqs_max}", []).append(run.workload)
    ran = "; ".join(f"{point} ({', '.join(dict.fromkeys(where))})" for point, where in points.items())
    evicts = f", evicted by {one.tier_eviction}" if one.tier_eviction else ""
    shared = ", shared by all engines" if one.shared_kv else ""
    preset = f"{one.preset}, {settings}" if settings else one.preset
    return (one.name, one.title, preset, memory_of(one) + evicts + shared, ran or said.NOTHING, one.source)


def _workload(one: WorkloadInfo) -> tuple[str, ...]:
    return (
        one.name, one.source, said.seconds(one.seconds), f"{one.requests:,}", str(one.engines),
        said.gib(one.unique_kv_bytes), said.share(one.ideal_hit_share), _knee(one.knee), _knee(one.shipped_knee),
        one.drawn or "nothing",
    )  # fmt: skip


def _knee(knee: Knee | None) -> str:
    if knee is None:
        return said.NOTHING
    tried = ", ".join(f"{at:g}: {goodput:.2f}" for at, goodput in zip(knee.scales, knee.goodputs, strict=False))
    edge = ", at the edge of what was tried" if knee.at_edge else ""
    return f"{knee.scale:g}{edge} ({tried})" if tried else f"{knee.scale:g}{edge}"
