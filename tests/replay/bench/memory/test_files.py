"""A report on disk: what is written is read again, and CSV has a row for everything."""

import csv
import re
from io import StringIO
from pathlib import Path

import pytest
from msgspec.structs import replace

from replay.bench.memory import charts
from replay.bench.memory.compare import compare
from replay.bench.memory.csv import INFINITE, cells_csv, runs_csv
from replay.bench.memory.files import CELLS_NAME, JSON_NAME, PAGE_NAME, RUNS_NAME, read_report, write_report
from replay.bench.memory.panels import sections
from replay.bench.memory.report import EngineModel, Report
from replay.bench.memory.summary import cells
from replay.bench.memory.systems import CAREFUL, OURS, SHIPPED
from tests.replay.bench.memory.drawn_report import drawn_report


@pytest.fixture(scope="module")
def report() -> Report:
    return drawn_report(1, systems=(OURS, CAREFUL, SHIPPED), workloads=("mixed",), loads=(0.5, 1.2), with_series=True)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text)))


def test_what_is_written_is_read_again(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "has_charts", lambda: False)
    folder = tmp_path / "new" / "folder"
    write_report(report, folder)
    write_report(report, folder)
    assert read_report(folder) == read_report(folder / JSON_NAME) == report
    assert {path.name for path in folder.iterdir()} == {JSON_NAME, PAGE_NAME, CELLS_NAME, RUNS_NAME}


def test_every_cell_and_every_run_has_its_row(report: Report) -> None:
    by_cell, runs = rows(cells_csv(report)), rows(runs_csv(report))
    assert [(row["system"], float(row["load"])) for row in by_cell] == [(one.system, one.load) for one in report.cells]
    assert [(row["system"], int(row["seed"]), row["digest"]) for row in runs] == [
        (one.system, one.seed, one.digest) for one in report.runs
    ]
    assert {row["origin"] for row in (*by_cell, *runs)} == {"modelled"}


def test_numbers_come_through_csv_unchanged(report: Report) -> None:
    for row, cell in zip(rows(cells_csv(report)), report.cells, strict=True):
        assert float(row["goodput_per_s"]) == cell.goodput_per_s
        assert row["ttft_p99_ns"] == (INFINITE if cell.ttft_p99_ns is None else str(cell.ttft_p99_ns))
        assert row["hit_dram"] == str(cell.hit_by_tier.get("dram", ""))
        assert row[f"ratio_{CAREFUL}"] == str(cell.ratios.get(CAREFUL, ""))
    for row, run in zip(rows(runs_csv(report)), report.runs, strict=True):
        assert int(row["slo_met"]) == run.scores.slo_met
        assert row["hit_tokens_device"] == str(run.scores.hit_tokens_by_tier["device"])
    assert INFINITE in {row["ttft_p99_ns"] for row in rows(cells_csv(report))}


def test_a_live_target_that_tells_no_hits_has_none_instead_of_zero() -> None:
    live = drawn_report(1, systems=(OURS,), workloads=("mixed",), loads=(0.5,), engine=EngineModel.LIVE)
    runs = tuple(
        replace(run, scores=replace(run.scores, cached_token_share=None, hit_tokens_by_tier={})) for run in live.runs
    )
    silent = replace(live, runs=runs, cells=cells(runs))
    for report, told in ((live, True), (silent, False)):
        [row] = rows(cells_csv(report))
        assert [row["hit_share"] != "", row.get("hit_device", "") != ""] == [told, told]
        assert {row["cached_token_share"] != "" for row in rows(runs_csv(report))} == {told}
        assert ("hit_share" in {one.metric for one in compare(live, report).differences}) is told
        [section] = sections(report)
        assert ("hits" in {panel.key for panel in section.panels}) is told


def test_every_column_of_a_cell_is_explained(report: Report) -> None:
    page = (Path(__file__).parents[4] / "docs" / "benchmarks.md").read_text()
    explained = re.findall(r"`([^`]+)`", page.partition("| column | what it is |")[2].partition("\n\n")[0])
    families = {
        "ttft_p50_ns": "ttft_...",
        "ttft_p99_ns": "ttft_...",
        "tpot_p50_ns": "tpot_..._ns",
        "tpot_p99_ns": "tpot_..._ns",
    }
    for column in rows(cells_csv(report))[0]:
        family = "ratio_NAME" if column.startswith("ratio_") else families.get(column, column)
        assert family in explained, column
