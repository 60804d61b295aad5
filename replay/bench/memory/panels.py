"""What the page of a memory benchmark draws: panels of lines and bars as plain values, each with the table that says
the same in numbers. Nothing here knows how it is drawn."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import msgspec

from events.base import NS_PER_S
from replay.bench.memory import said
from replay.bench.memory.report import Cell, EngineModel, Origin, Report, RunResult, System, WorkloadInfo
from replay.bench.memory.systems import CAREFUL, OURS, SHIPPED
from replay.score import Part
from replay.series import Series

LOAD_AT_KNEE, LOAD_BEYOND = 1.0, 1.2
"""What is shown at one load is shown at the measured load nearest to one of these."""
CLASS_SHARE_MIN = 0.5
"""The goal of fairness: no class of prompt lengths attains less than this share of the overall attainment."""
SERIES_SYSTEMS_MAX = 3
"""Systems in one picture over time: more lines would hide one another. These come first, then the others."""
SERIES_FIRST = (OURS, CAREFUL, SHIPPED)
SERIES_ROWS_MAX = 24
"""Rows of a table over time; what is between them is in the JSON."""
ALL_TIERS = "all tiers"
_SHOWN_AS = {"ppm": (10_000, "%"), "bytes": (1024**3, "GiB")}
"""Units of series that are drawn as so many of another."""
_BAND_NOTE = " Line: mean over the engines; band: from the least to the most of them."
_UPPER = ("slo", "llm", "kv", "dram", "ssd")


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Names of columns, and rows of text; the first column says what a row is."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line: (x, y), y None = infinite. `band`: (low, high) at the same places. `system` "" = no system's."""

    name: str
    system: str = ""
    points: tuple[tuple[float, float | None], ...]
    band: tuple[tuple[float, float], ...] = ()


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One picture of lines. `x_names`: x counts these from 0. `level`: a horizontal line with its name."""

    key: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    table: Table
    x_names: tuple[str, ...] = ()
    level: tuple[str, float] | None = None
    is_log: bool = False
    is_over_time: bool = False
    note: str = ""


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """One picture of stacked bars: a bar for each name, with parts of these sizes; `levels` are lines across all."""

    key: str
    title: str
    x_label: str
    names: tuple[str, ...]
    parts: tuple[tuple[str, tuple[float, ...]], ...]
    table: Table
    levels: tuple[tuple[str, float], ...] = ()
    note: str = ""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """All that is shown of one workload with one kind of engine."""

    workload: WorkloadInfo
    engine: EngineModel
    origin: Origin
    cells: tuple[Cell, ...]
    panels: tuple[Panel | Stack, ...]


class _Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a section is made of. `systems` are those that have a cell, in the order of the report; `leading` those that
    stand for their policy, and bounds, where a picture of all would be a thicket."""

    workload: WorkloadInfo
    systems: tuple[System, ...]
    leading: tuple[System, ...]
    cells: dict[tuple[str, float], Cell]
    runs: tuple[RunResult, ...]
    loads: tuple[float, ...]

    def load_near(self, wanted: float) -> float:
        """The measured load that is nearest; the lower one of equals."""
        return min(self.loads, key=lambda load: (abs(load - wanted), load))

    def cells_at(self, load: float) -> list[Cell]:
        """The cells of all systems that were measured at a load."""
        return [cell for one in self.systems if (cell := self.cells.get((one.name, load))) is not None]

    def runs_at(self, system: str, load: float) -> list[RunResult]:
        """The runs of a system at a load, one a seed."""
        return [run for run in self.runs if (run.system, run.load) == (system, load)]


def memory_of(system: System) -> str:
    """What stands behind the device memory of a system, and how its DRAM is filled."""
    return f"lazy {size_of(system)}" if system.lazy_tiers and system.dram_ppm else size_of(system)


def size_of(system: System) -> str:
    """How much stands behind the device memory of a system."""
    if system.unlimited_kv:
        return "unlimited"
    tiers = [f"{name} {said.ppm(size)}" for name, size in (("DRAM", system.dram_ppm), ("SSD", system.ssd_ppm)) if size]
    return " + ".join(tiers) or "none"


def memories(systems: Iterable[System]) -> tuple[str, ...]:
    """The sizes of memory behind these systems, the least first."""
    sizes = {size_of(one): (one.unlimited_kv, one.dram_ppm, one.ssd_ppm) for one in systems}
    return tuple(sorted(sizes, key=lambda name: sizes[name]))


def family_of(system: System) -> str:
    """The policy of a system: the same for two that differ in their memory alone."""
    return system.preset + msgspec.json.encode(system.settings, order="deterministic").decode()


def main_memory(systems: Sequence[System]) -> str:
    """The size of memory with which policies are compared: that of ours, or what most have."""
    named = [size_of(one) for one in systems if not one.unlimited_kv]
    return next((size_of(one) for one in systems if one.name == OURS), max(named, key=named.count, default=""))


def leading(systems: Sequence[System]) -> list[System]:
    """One system for each policy, and all bounds. One with as much memory as ours stands for the others; of several
    the one whose title is shortest: that has nothing to tell it from its policy."""
    main = main_memory(systems)
    first: dict[str, System] = {}
    for one in sorted(systems, key=lambda one: (one.unlimited_kv, size_of(one) != main, len(one.title))):
        first.setdefault(family_of(one), one)
    return [one for one in systems if one.unlimited_kv or first[family_of(one)] is one]


def sections(report: Report) -> list[Section]:
    """One section for each workload and kind of engine that has cells, in the order of the report."""
    return [
        _section(report, workload, engine)
        for workload in report.workloads
        for engine in EngineModel
        if any((cell.workload, cell.engine) == (workload.name, engine) for cell in report.cells)
    ]


def origin_of(engine: EngineModel) -> Origin:
    """Where the numbers of a kind of engine come from."""
    return Origin.OBSERVED if engine is EngineModel.LIVE else Origin.MODELLED


def _section(report: Report, workload: WorkloadInfo, engine: EngineModel) -> Section:
    cells = tuple(cell for cell in report.cells if (cell.workload, cell.engine) == (workload.name, engine))
    named = {cell.system for cell in cells}
    systems = tuple(system for system in report.systems if system.name in named)
    seen = _Seen(
        workload=workload,
        systems=systems,
        leading=tuple(leading(systems)),
        cells={(cell.system, cell.load): cell for cell in cells},
        runs=tuple(run for run in report.runs if (run.workload, run.engine) == (workload.name, engine)),
        loads=tuple(sorted({cell.load for cell in cells})),
    )
    beyond = seen.load_near(LOAD_BEYOND)
    at_knee = seen.load_near(LOAD_AT_KNEE)
    found: list[Panel | Stack] = [_goodput(seen)]
    if len(memories(seen.systems)) > 1:
        found += [_against_memory(seen, load) for load in dict.fromkeys((at_knee, beyond))]
    found += [_latency(seen, "ttft", "TTFT"), _latency(seen, "tpot", "TPOT")]
    if any(cell.hit_share is not None for cell in seen.cells_at(at_knee)):
        found.append(_hits(seen, at_knee))
    found += [panel for panel in (_classes(seen, beyond),) if panel is not None]
    found += _over_time(seen, beyond)
    return Section(workload=workload, engine=engine, origin=origin_of(engine), cells=cells, panels=tuple(found))


def _x_of(seen: _Seen) -> tuple[str, Callable[[Cell], float]]:
    """What the x axis of loads is: multiples of the knee, of a live target of the workload's own pace; or what was
    offered where there is neither."""
    if any(cell.engine is EngineModel.LIVE for cell in seen.cells.values()):
        return "load, multiples of the workload's own pace", lambda cell: cell.load
    if any(seen.loads):
        return "load, multiples of the careful baseline's knee", lambda cell: cell.load
    return "offered, requests/s", lambda cell: cell.offered_per_s


def _by_load(seen: _Seen, said_of: Callable[[Cell], str]) -> Table:
    """A row for each system, a column for each load."""
    rows = []
    for system in seen.systems:
        cells = [seen.cells.get((system.name, load)) for load in seen.loads]
        rows.append((system.title or system.name, *(said_of(cell) if cell else said.NOTHING for cell in cells)))
    return Table(columns=("system", *(f"load {load:g}" for load in seen.loads)), rows=tuple(rows))


def _lines_by_load(seen: _Seen, systems: Sequence[System], value: Callable[[Cell], float | None]) -> list[Line]:
    _, x_of = _x_of(seen)
    lines = []
    for system in systems:
        cells = [cell for load in seen.loads if (cell := seen.cells.get((system.name, load))) is not None]
        points = tuple((x_of(cell), value(cell)) for cell in cells)
        lines.append(Line(name=system.title or system.name, system=system.name, points=points))
    return lines


def _goodput(seen: _Seen) -> Panel:
    x_label, x_of = _x_of(seen)
    lines = []
    for line in _lines_by_load(seen, seen.systems, lambda cell: cell.goodput_per_s):
        cells = [cell for load in seen.loads if (cell := seen.cells.get((line.system, load))) is not None]
        band = tuple((cell.goodput_per_s - cell.goodput_std, cell.goodput_per_s + cell.goodput_std) for cell in cells)
        lines.append(msgspec.structs.replace(line, band=band))
    offered = {x_of(cell): cell.offered_per_s for cell in seen.cells.values()}
    lines.append(Line(name="offered", points=tuple(sorted(offered.items()))))
    table = _by_load(
        seen, lambda cell: f"{cell.goodput_per_s:.2f} ± {cell.goodput_std:.2f} of {cell.offered_per_s:.2f}"
    )
    return Panel(
        key="goodput", title="Goodput against load", x_label=x_label, y_label="SLO-met requests/s", lines=tuple(lines),
        table=table, note="Band: one standard deviation over the seeds. Dotted: all that was offered.",
    )  # fmt: skip


def _latency(seen: _Seen, kind: str, name: str) -> Panel:
    p50, p99 = f"{kind}_p50_ns", f"{kind}_p99_ns"

    def value(cell: Cell) -> float | None:
        ns: int | None = getattr(cell, p99)
        return None if ns is None else ns / NS_PER_S

    return Panel(
        key=kind, title=f"{name} p99 against load", x_label=_x_of(seen)[0], y_label="seconds",
        lines=tuple(_lines_by_load(seen, seen.leading, value)), is_log=True,
        table=_by_load(seen, lambda cell: f"p50 {said.span(getattr(cell, p50))}, p99 {said.span(getattr(cell, p99))}"),
        note="Over all requests of the window: where more than one in a hundred has no answer, p99 is never.",
    )  # fmt: skip


def _against_memory(seen: _Seen, load: float) -> Panel:
    """Lines join systems that differ in their memory alone. Of several with as much memory the one whose title is
    shortest counts: that has nothing to tell it from its policy."""
    names = memories(seen.systems)
    families: dict[str, list[System]] = {}
    for system in seen.systems:
        families.setdefault(family_of(system), []).append(system)
    lines, rows = [], []
    for systems in families.values():
        found: dict[str, float] = {}
        for one in sorted(systems, key=lambda one: len(one.title)):
            if (cell := seen.cells.get((one.name, load))) is not None:
                found.setdefault(size_of(one), cell.attainment)
        first = next((one for one in systems if one in seen.leading and not one.unlimited_kv), systems[0])
        lines.append(Line(
            name=first.title or first.name, system=first.name,
            points=tuple((float(at), found[name] * 100) for at, name in enumerate(names) if name in found),
        ))  # fmt: skip
        rows.append((first.title or first.name, *(said.share(found.get(name)) for name in names)))
    return Panel(
        key=f"memory-{load:g}", title=f"SLO attainment against memory, load {load:g}",
        x_label="tiers behind device memory, in parts of the workload's unique KV", y_label="SLO attainment, %",
        x_names=names, lines=tuple(lines), table=Table(columns=("policy", *names), rows=tuple(rows)),
        note="Every point of a line is the same policy.",
    )  # fmt: skip


def _hits(seen: _Seen, load: float) -> Stack:
    cells = [cell for cell in seen.cells_at(load) if cell.hit_share is not None]
    titles = {system.name: system.title or system.name for system in seen.systems}
    shown = [cell for cell in cells if cell.system in {one.name for one in seen.leading}]
    used = (tier for cell in cells for tier, hits in cell.hit_by_tier.items() if hits)
    tiers = list(dict.fromkeys(used)) or [ALL_TIERS]

    def of(cell: Cell, tier: str) -> float:
        return cell.hit_by_tier.get(tier, 0.0) if tier != ALL_TIERS else cell.hit_share or 0.0

    rows = []
    ideal = seen.workload.ideal_hit_share
    for cell in cells:
        of_ideal = said.share(of(cell, ALL_TIERS) / ideal) if ideal else said.NOTHING
        row = (
            titles[cell.system],
            *(said.share(of(cell, tier)) for tier in tiers),
            said.share(cell.hit_share),
            of_ideal,
        )
        rows.append(row)
    bounds = (
        {"ideal": ideal, **{_bound(name): hits for name, hits in seen.workload.hit_bounds.items()}} if ideal else {}
    )
    for name, hits in bounds.items():
        rows.append((name, *(said.NOTHING for _ in tiers), said.share(hits), said.share(hits / ideal)))
    main = main_memory(seen.systems)
    return Stack(
        key="hits", title=f"Prompt tokens found cached, by tier, load {load:g}",
        x_label="share of prompt tokens, %", names=tuple(titles[cell.system] for cell in shown),
        parts=tuple((tier, tuple(of(cell, tier) * 100 for cell in shown)) for tier in tiers),
        levels=tuple((name, hits * 100) for name, hits in bounds.items() if name.endswith(("ideal", main))),
        table=Table(columns=("system", *tiers, "together", "of the ideal"), rows=tuple(rows)),
        note="Ideal: all that any engine has computed is there for all, for ever. Belady, lru: one cache of all of it.",
    )  # fmt: skip


def _bound(name: str) -> str:
    """A bound of hits as people say it: of `belady_dram_100000`, that it is Belady's with a DRAM tier of 10 %."""
    rule, _, size = name.partition("_dram_")
    return f"{rule}, DRAM {said.ppm(int(size))}" if size.isdecimal() else name.replace("_", " ")


def _pooled(runs: Iterable[RunResult]) -> dict[str, Part]:
    """Prompt classes over all seeds."""
    pooled: dict[str, Part] = {}
    for run in runs:
        for name, part in run.scores.prompts.items():
            known = pooled.setdefault(name, Part())
            known.requests += part.requests
            known.slo_met += part.slo_met
            known.slo_attainment = known.slo_met / max(1, known.requests)
    return pooled


def _classes(seen: _Seen, load: float) -> Panel | None:
    """Attainment of each class of prompt lengths, beside the attainment of all prompts; None: nothing was counted."""
    found = [(one, parts) for one in seen.systems if (parts := _pooled(seen.runs_at(one.name, load)))]
    names = tuple(dict.fromkeys(name for _, parts in found for name in parts))
    lines, rows = [], []
    for system, parts in found:
        overall = sum(part.slo_met for part in parts.values()) / max(1, sum(part.requests for part in parts.values()))
        points = [
            (float(at), parts[name].slo_attainment / overall)
            for at, name in enumerate(names)
            if overall and name in parts and parts[name].requests
        ]
        title = system.title or system.name
        if system in seen.leading:
            lines.append(Line(name=title, system=system.name, points=tuple(points)))
        shares = [_part(parts.get(name)) for name in names]
        rows.append((title, said.share(overall), *shares))
    if not any(line.points for line in lines):
        return None
    return Panel(
        key="classes", title=f"Who is served, by length of the prompt, load {load:g}",
        x_label="tokens of the prompt", y_label="attainment / overall attainment", x_names=names, lines=tuple(lines),
        level=("goal", CLASS_SHARE_MIN), table=Table(columns=("system", "all prompts", *names), rows=tuple(rows)),
    )  # fmt: skip


def _part(part: Part | None) -> str:
    return f"{said.share(part.slo_attainment)} of {part.requests}" if part and part.requests else said.NOTHING


def _over_time(seen: _Seen, load: float) -> list[Panel]:
    """A panel for each quantity that was kept over time: the first systems that have it, one seed."""
    shown: dict[str, tuple[RunResult, str]] = {}
    for system in sorted(seen.leading, key=lambda one: (*SERIES_FIRST, one.name).index(one.name)):
        run = next((run for run in seen.runs_at(system.name, load) if run.series), None)
        if run is not None and len(shown) < SERIES_SYSTEMS_MAX:
            shown[system.name] = (run, system.title or system.name)
    names = dict.fromkeys((one.name, one.unit) for run, _ in shown.values() for one in run.series)
    return [_in_time(list(shown.values()), name, unit, load) for name, unit in names]


def _in_time(shown: Sequence[tuple[RunResult, str]], name: str, unit: str, load: float) -> Panel:
    lines, columns, rows = [], ["second"], dict[float, dict[str, str]]()
    for run, title in shown:
        line = _mean_of_engines([one for one in run.series if one.name == name], title, run.system, unit)
        lines.append(line)
        columns.append(title)
        for x, y in line.points[:: max(1, -(-len(line.points) // SERIES_ROWS_MAX))]:
            rows.setdefault(x, {})[title] = said.number(y, 1)
    table_rows = tuple((f"{x:g}", *(rows[x].get(title, said.NOTHING) for title in columns[1:])) for x in sorted(rows))
    seed = shown[0][0].seed
    return Panel(
        key=f"time-{name}", title=f"{_title(name)} over time, load {load:g}",
        x_label="seconds", y_label=_SHOWN_AS.get(unit, (1, unit))[1], lines=tuple(lines), is_over_time=True,
        table=Table(columns=tuple(columns), rows=table_rows),
        note=f"Seed {seed}." + (_BAND_NOTE if any(line.band for line in lines) else ""),
    )  # fmt: skip


def _title(name: str) -> str:
    """The name of a quantity as a title: `slo_attainment` is SLO attainment."""
    words = [word.upper() if word in _UPPER else word for word in name.split("_")]
    return " ".join((words[0] if words[0].isupper() else words[0].capitalize(), *words[1:]))


def _mean_of_engines(found: Sequence[Series], title: str, system: str, unit: str) -> Line:
    """One line of a quantity: as it is where it is the pool's, else the mean over engines, with the band around it."""
    divisor = _SHOWN_AS.get(unit, (1, unit))[0]
    by_time: dict[float, list[float]] = {}
    for one in [one for one in found if not one.engine] or found:
        for at_s, value in zip(one.at_s, one.values, strict=True):
            by_time.setdefault(at_s, []).append(value / divisor)
    times = sorted(by_time)
    spread = any(len(by_time[at_s]) > 1 for at_s in times)
    return Line(
        name=title, system=system, points=tuple((at_s, fmean(by_time[at_s])) for at_s in times),
        band=tuple((min(by_time[at_s]), max(by_time[at_s])) for at_s in times) if spread else (),
    )  # fmt: skip
