"""The numbers of a memory benchmark as CSV, for spreadsheets: a row for each cell, and a row for each run.

An empty field is a number that there is not; `inf` is a percentile without an answer. Names of columns are those of the
report's schema, with its units.
"""

import csv
from collections.abc import Iterable
from io import StringIO
from typing import Any

import msgspec

from replay.bench.memory.panels import origin_of
from replay.bench.memory.report import Cell, Report, RunResult
from replay.score import Scores

INFINITE = "inf"
_PERCENTILES = ("ttft_p50_ns", "ttft_p99_ns", "tpot_p50_ns", "tpot_p99_ns")
_RUN_COLUMNS = (
    "workload", "system", "engine", "origin", "load", "scale", "seed", "batch_tokens", "seqs_max", "engines", "digest",
    "wall_s",
)  # fmt: skip


def cells_csv(report: Report) -> str:
    """A row for each system at each load of each workload; what is by name (`hit_by_tier`, `ratios`) is a column for
    each name."""
    plain = [name for name in _fields(Cell) if name not in ("hit_by_tier", "ratios")]
    tiers = _names(cell.hit_by_tier for cell in report.cells)
    others = _names(cell.ratios for cell in report.cells)
    header = [*plain, "origin", *(f"hit_{name}" for name in tiers), *(f"ratio_{name}" for name in others)]
    rows = [
        [
            *_values(cell, plain), origin_of(cell.engine).value,
            *(cell.hit_by_tier.get(name, "") for name in tiers),
            *(cell.ratios.get(name, "") for name in others),
        ]
        for cell in report.cells
    ]  # fmt: skip
    return _written(header, rows)


def runs_csv(report: Report) -> str:
    """A row for each run, with its scores; of what is by name only the hits by tier."""
    simple = [name for name, kind in _fields(Scores).items() if kind in (int, float, int | None, float | None)]
    tiers = _names(run.scores.hit_tokens_by_tier for run in report.runs)
    header = [*_RUN_COLUMNS, *simple, *(f"hit_tokens_{name}" for name in tiers)]
    rows = [_run(run, simple, tiers) for run in report.runs]
    return _written(header, rows)


def _run(run: RunResult, simple: list[str], tiers: list[str]) -> list[Any]:
    hits = [run.scores.hit_tokens_by_tier.get(name, "") for name in tiers]
    return [*_values(run, list(_RUN_COLUMNS)), *_values(run.scores, simple), *hits]


def _fields(of: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(of)}


def _values(of: msgspec.Struct, names: list[str]) -> list[Any]:
    found = ((name, getattr(of, name)) for name in names)
    return [(INFINITE if name in _PERCENTILES else "") if value is None else value for name, value in found]


def _names(found: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for by_name in found for name in by_name))


def _written(header: list[str], rows: list[list[Any]]) -> str:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
