"""`tidegate bench predictors`: what it answers, and how it says no."""

import json
from pathlib import Path

import pytest

from services import cli
from services.runtime.output import Exit


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder: no trace beside it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = [f"2023-11-16 18:{n // 60 % 60:02}:{n % 60:02},{100 + n % 7},{20 + n % 11}" for n in range(1_200)]
    path = tmp_path / "calm.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    return path


def test_rows_and_goals_are_one_json_value(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "predictors", "--trace", str(trace), "--json"]) == Exit.FINE
    said = json.loads(capsys.readouterr().out)
    assert [row["predictor"] for row in said["rows"]] == [
        "quantile", "moving_average", "constant", "one_global_quantile",
    ]  # fmt: skip
    assert {row["trace"] for row in said["rows"]} == {"calm"}
    assert set(said["goals"]) == {"covers", "gained"}


def test_people_see_a_table_and_the_goals(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "predictors", "--trace", str(trace)]) == Exit.FINE
    out = capsys.readouterr().out
    for words in (
        "pinball loss",
        "median width",
        "longest",
        "one_global_quantile",
        "within 84 to 95 %",
        "3 % below it",
    ):
        assert words in out


def test_a_missed_goal_is_an_exit_code_only_where_that_is_asked_for(
    trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("replay.bench.predictors.GAIN_PPM", 2_000_000)
    assert cli.run(["bench", "predictors", "--trace", str(trace), "--json", "--strict"]) == Exit.NO
    capsys.readouterr()


def test_without_a_trace_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "predictors"]) == Exit.BAD_INPUT
    assert "no trace was given" in capsys.readouterr().err


def test_what_is_no_trace_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.csv"
    path.write_text("a,b\n")
    assert cli.run(["bench", "predictors", "--trace", str(path)]) == Exit.BAD_INPUT
    assert f"{path}:1: no header" in capsys.readouterr().err
