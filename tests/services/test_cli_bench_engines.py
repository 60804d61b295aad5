"""`tidegate bench engines`: says where vLLM should be when it is not there."""

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
