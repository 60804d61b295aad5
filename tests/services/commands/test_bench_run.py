"""`tidegate bench run`: what is asked for, what comes out, and its exit codes."""

import json
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest

from replay.bench.memory import files
from replay.bench.memory.files import read_report
from replay.bench.memory.report import Report
from services import cli
from services.commands import bench_run
from services.runtime.output import Exit, Output

TINY = (
    "bench", "run", "--suite", "smoke", "--workloads", "mixed", "--systems", "as_shipped,careful,honest_rival,tidegate",
    "--seconds", "30", "--loads", "1.0", "--jobs", "1",
)  # fmt: skip


def test_the_goals_come_last_and_the_report_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*TINY, "--out", str(tmp_path)]) == Exit.FINE
    said = capsys.readouterr().out
    assert said.index("knee of the careful baseline") < said.index("goodput / careful at 1 ")
    assert "as_shipped" in said
    report = read_report(tmp_path)
    assert {run.system for run in report.runs} == {"as_shipped", "careful", "honest_rival", "tidegate"}
    assert report.calibrations
    assert {path.name for path in tmp_path.iterdir()} >= {"report.json", "report.html", "cells.csv", "runs"}
    capsys.readouterr()
    assert cli.run([*TINY, "--out", str(tmp_path), "--json", "--strict"]) in (Exit.FINE, Exit.NO)
    value = json.loads(capsys.readouterr().out)
    again = value["report"]
    narrow = [*TINY, "--systems", "as_shipped,tidegate", "--against", str(tmp_path)]
    assert cli.run([*narrow, "--out", str(tmp_path)]) in (Exit.FINE, Exit.NO)
    said = capsys.readouterr().out
    assert "wins of the baseline were not measured" in said
    assert "not measured any more" not in said
    assert [run["digest"] for run in again["runs"]] == [run.digest for run in report.runs]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--systems", "tidegat"), ("--workloads", "coding,mixd"), ("--loads", "x"), ("--seeds", "9"), ("--suite", "huge")],
)
def test_names_and_numbers_that_are_not_there_are_bad_input(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", "run", option, value]) == Exit.BAD_INPUT
    assert value.split(",")[-1] in capsys.readouterr().err


def test_a_folder_of_traces_that_is_not_there_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*TINY, "--traces", str(tmp_path / "none")]) == Exit.BAD_INPUT
    assert "--traces" in capsys.readouterr().err


def test_a_folder_of_traces_without_the_trace_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_run, "_players", _stopped)
    words = ("--workloads", "coding_small,mixed", "--traces", str(tmp_path))
    assert cli.run([*TINY, *words]) == Exit.INTERRUPTED
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{tmp_path} has no trace for coding_small: drawn instead"


def _stopped(*_args: object) -> None:
    raise KeyboardInterrupt


def test_an_interpreter_that_is_not_there_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("bench", "run", "--suite", "standard", "--engine-python", str(tmp_path / "python"), "--jobs", "1")
    assert cli.run(words) == Exit.BAD_INPUT
    assert "--engine-python" in capsys.readouterr().err


def test_ctrl_c_leaves_a_report_also_when_it_comes_while_that_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(done: int) -> None:
        if done > 2:
            raise KeyboardInterrupt

    def page(_report: Report) -> str:
        signal.raise_signal(signal.SIGINT)
        return "the page"

    monkeypatch.setattr(Output, "progress", lambda _self, _what, _total: nullcontext(pressed))
    monkeypatch.setattr(files, "page", page)
    assert cli.run([*TINY, "--out", str(tmp_path)]) == Exit.INTERRUPTED
    assert "goes on from there" in capsys.readouterr().err
    assert read_report(tmp_path).stopped_early
    assert (tmp_path / "report.html").read_text() == "the page"
    assert len(list((tmp_path / "runs").iterdir())) > 2
