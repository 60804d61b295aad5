"""`tidegate bench engines`, and simulations on vLLM's scheduler: they say where vLLM should be when it is not there."""

from pathlib import Path

import pytest

from services import cli
from services.runtime.output import Exit


def test_without_vllm_it_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "python"

    assert cli.run(["bench", "engines", "--engine-python", str(missing)]) == Exit.BAD_INPUT

    said = capsys.readouterr().err
    assert f"{missing} is not there" in said.replace("\n", "")
    assert "make test-engine" in said


def test_a_simulation_on_vllm_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("replay.bench.far.ENGINE_PYTHON", tmp_path / "python")

    assert cli.run(["replay", "simulate", "--limit", "3", "--engine-model", "vllm_scheduler"]) == Exit.BAD_INPUT

    assert "make test-engine" in capsys.readouterr().err
