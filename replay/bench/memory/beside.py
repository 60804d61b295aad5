"""Tables of a benchmark's page that hold one number against another: what policies predicted beside what came, and the
same system on engines of several kinds."""

from collections.abc import Sequence
from statistics import fmean

from replay.bench.memory import said
from replay.bench.memory.panels import Table, origin_of
from replay.bench.memory.report import Cell, EngineModel, Report, RunResult, WorkloadInfo
from replay.score import Error

PREDICTED_COLUMNS = (
    "system", "load", "TTFT off by, p50", "of it", "TTFT off by, p99", "KV tokens off by, p50", "of it",
    "KV tokens off by, p99",
)  # fmt: skip
NEAREST_FIRST = (EngineModel.LIVE, EngineModel.VLLM_SCHEDULER, EngineModel.LIGHT)
"""What is nearer to the truth comes first: the others are so far off it."""
SAME_COLUMNS = ("workload", "system", "load", "quantity")


def predicted(report: Report, workload: str, engine: EngineModel) -> Table | None:
    """How far off admission's predictions were, by system and load: the middle one of the requests, and the one in a
    hundred; means over seeds, the worst seed for the latter. None: nothing was predicted."""
    groups: dict[tuple[str, float], list[RunResult]] = {}
    for run in report.runs:
        if (run.workload, run.engine) == (workload, engine) and run.scores.ttft_error_ns.requests:
            groups.setdefault((run.system, run.load), []).append(run)
    titles = {one.name: one.title or one.name for one in report.systems}
    rows = tuple(
        (
            titles.get(system, system), f"{load:g}",
            *_errors([run.scores.ttft_error_ns for run in runs], is_time=True),
            *_errors([run.scores.kv_tokens_error for run in runs], is_time=False),
        )
        for (system, load), runs in groups.items()
    )  # fmt: skip
    return Table(columns=PREDICTED_COLUMNS, rows=rows) if rows else None


def _errors(errors: Sequence[Error], *, is_time: bool) -> tuple[str, str, str]:
    known = [one for one in errors if one.requests]
    if not known:
        return said.NOTHING, said.NOTHING, said.NOTHING
    middle, worst = fmean(one.error_p50 for one in known), float(max(one.error_p99 for one in known))
    share = said.share(fmean(one.error_p50_share for one in known))
    return (said.span(middle), share, said.span(worst)) if is_time else (f"{middle:,.0f}", share, f"{worst:,.0f}")


def across(report: Report) -> Table | None:
    """The same system at the same load of the same workload on engines of several kinds; None: there is none."""
    kinds = [kind for kind in NEAREST_FIRST if any(cell.engine is kind for cell in report.cells)]
    by_place: dict[tuple[str, str, float], dict[EngineModel, Cell]] = {}
    for cell in report.cells:
        by_place.setdefault((cell.workload, cell.system, cell.load), {})[cell.engine] = cell
    titles = {one.name: one.title or one.name for one in report.systems}
    rows = tuple(
        (workload, titles.get(system, system), f"{load:g}", quantity, *values)
        for (workload, system, load), cells in by_place.items()
        if len(cells) > 1
        for quantity, values in _quantities(cells, kinds)
    )
    names = tuple(f"{kind.value} ({origin_of(kind).value})" for kind in kinds)
    return Table(columns=(*SAME_COLUMNS, *names, f"off {kinds[0].value}"), rows=rows) if rows else None


def _quantities(cells: dict[EngineModel, Cell], kinds: Sequence[EngineModel]) -> list[tuple[str, tuple[str, ...]]]:
    """Quantities that do not depend on how many engines there are."""
    found = []
    for name, field, is_time in (
        ("SLO met", "attainment", False), ("TTFT p50", "ttft_p50_ns", True), ("TTFT p99", "ttft_p99_ns", True),
        ("TPOT p50", "tpot_p50_ns", True), ("TPOT p99", "tpot_p99_ns", True), ("hits", "hit_share", False),
    ):  # fmt: skip
        values = [getattr(cells[kind], field) if kind in cells else 0 for kind in kinds]
        words = [
            said.NOTHING if kind not in cells else said.span(value) if is_time else said.share(value)
            for kind, value in zip(kinds, values, strict=True)
        ]
        others = [value for kind, value in zip(kinds[1:], values[1:], strict=True) if kind in cells]
        first = values[0] if kinds[0] in cells else None
        off = [f"{value / first - 1:+.1%}" for value in others if first and value is not None]
        found.append((name, (*words, ", ".join(off) or said.NOTHING)))
    return found


def notes(report: Report, workload: WorkloadInfo, engine: EngineModel) -> tuple[str, ...]:
    """What a reader has to know of how a workload's runs were measured, once each."""
    runs = [run for run in report.runs if (run.workload, run.engine) == (workload.name, engine)]
    return tuple(dict.fromkeys(note for run in runs for note in run.notes))
