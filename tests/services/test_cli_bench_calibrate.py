"""`tidegate bench calibrate`: shows what was found, refuses what is no run, and says with its exit code how it went."""

import json
from pathlib import Path

import pytest

from replay.calibration import calibrations
from services import cli
from services.runtime.output import Exit


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder: no run beside it."""
    monkeypatch.chdir(tmp_path)


def test_without_a_run_it_shows_what_was_found_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "calibrate", "--json", "--strict", "--out", str(tmp_path / "found.json")]) == Exit.FINE
    shown = json.loads(capsys.readouterr().out)
    assert [one["model"] for one in shown] == [one.model for one in calibrations()]
    assert all(one["calibrated"] for one in shown)
    assert len(json.loads((tmp_path / "found.json").read_text())) == len(shown)


def test_people_see_every_quantity_with_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "calibrate"]) == Exit.FINE
    shown = capsys.readouterr().out
    assert shown.count("TTFT p50") == shown.count("throughput") == len(calibrations())
    assert "NOT within" not in shown


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--runs", "."], "that is no measured run"),
        (["--runs", ".", "--engine", "vllm_scheduler", "--engine-python", "no/python"], "no/python is not there"),
    ],
)
def test_what_cannot_be_done_is_refused(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "calibrate", *argv]) == Exit.BAD_INPUT
    assert said in capsys.readouterr().err
