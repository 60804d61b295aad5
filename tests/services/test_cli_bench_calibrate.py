"""`tidegate bench calibrate`: shows what was found, refuses what is no run, and says with its exit code how it went."""

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from replay.bench.memory.report import Calibration, Checked
from replay.calibration import calibrations
from services import cli
from services.commands.bench_calibrate import show
from services.runtime.output import Exit


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with no run beside it, and one of three requests on a slow server in it."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    rows = [
        {"input_toks": 100, "output_toks": 11, "queued_ts": n, "first_token_ts": n + 2, "last_token_ts": n + 3}
        for n in range(3)
    ]
    (run / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "meta.json").write_text('{"engine_kwargs": {"max_num_seqs": 8, "max_num_batched_tokens": 2048}}')
    (run / "timeseries.csv").write_text("t,prompt_throughput,gen_throughput,running,waiting\n1,100,11,1,0\n")


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


def test_a_model_that_is_off_is_called_uncalibrated(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "calibrate", "--runs", "run", "--engine", "light"]
    assert cli.run([*argv, "--strict"]) == Exit.NO
    said = capsys.readouterr().out
    assert said.count("uncalibrated: a goal is not reached") == 2
    assert "NOT within" in said
    assert cli.run(argv) == Exit.FINE


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--runs", "."], "that is no measured run"),
        (["--runs", ".", "--engine", "vllm_scheduler"], "that is no measured run"),
        (["--runs", "run", "--engine", "vllm_scheduler", "--engine-python", "no/python"], "it is not there"),
    ],
)
def test_what_cannot_be_done_is_refused(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "calibrate", *argv]) == Exit.BAD_INPUT
    assert said in capsys.readouterr().err


def test_a_quantity_that_was_not_there_is_off_by_nothing_or_by_everything() -> None:
    def checked(measured: float, modelled: float) -> Checked:
        return Checked(name="hits", measured=measured, modelled=modelled, unit="share", off_max=0.05)

    assert (checked(0.0, 0.0).off, checked(0.0, 0.3).off) == (0.0, math.inf)
    one = Calibration(model="light", against="vLLM", requests=1, checked=(checked(0.0, 0.3), checked(0.4, 0.42)))
    console = Console(width=200, record=True)
    show([one], console, ("theirs", "ours"))
    said = console.export_text()
    assert "NOT within" in said
    assert "0.420" in said
    assert "theirs" in said


def test_what_was_found_last_is_told_of_the_engines_that_were_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    models = {}
    for engine in ("light", "vllm_scheduler"):
        assert cli.run(["bench", "calibrate", "--engine", engine, "--json"]) == Exit.FINE
        models[engine] = {one["model"].split()[0] for one in json.loads(capsys.readouterr().out)}
    assert models == {"light": {"light"}, "vllm_scheduler": {"vLLM"}}
