"""`tidegate engine launch`: what it starts, what it shows, and what it says when something is missing."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from services.cli import run
from services.engines import vllm_checks
from services.engines.vllm_checks import Environment
from services.runtime.state_dir import locked
from services.vllm_plugin.support import VLLM_VERSIONS

WELL = Environment(vllm=VLLM_VERSIONS[0], missing=[], plugin=True)
DOUBLE = """#!/bin/sh
echo "$@" > "$0.argv"; env > "$0.env"
exit ${EXIT_WITH:-0}
"""


@pytest.fixture
def python(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of an interpreter with vLLM: writes down how it was called, and ends. Its folder's name is short:
    engines have sockets below it."""
    folder = tmp_path_factory.mktemp("e")
    path = folder / "python"
    path.write_text(DOUBLE)
    path.chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NATS_URL", "nats://u:hush@127.0.0.1:4222")
    monkeypatch.setattr(vllm_checks, "ask", lambda _python: WELL)
    return path


def config(folder: Path, **engine: Any) -> str:
    made = {
        "state_dir": str(folder / "state"), "models": [{"name": "m"}],
        "engines": [{
            "id": "e1", "models": ["m"], "url": "http://127.0.0.1:0", "agent": True, "dram_bytes": 1 << 20,
            "vllm": {"python": str(folder / "python")}, **engine,
        }],
    }  # fmt: skip
    path = folder / "t.json"
    path.write_text(json.dumps(made))
    return str(path)


def test_an_engine_of_the_settings_is_started_with_its_folder_and_the_logs_address(python: Path) -> None:
    assert run(["engine", "launch", "e1", "--config", config(python.parent, ssd_bytes=1 << 20)]) == 0
    argv, env = (python.with_name(f"python.{what}").read_text() for what in ("argv", "env"))
    assert argv.startswith("-m vllm.entrypoints.openai.api_server --model m ")
    assert "TIDEGATE_NATS__URL=nats://u:hush@127.0.0.1:4222" in env
    own = python.parent / "state" / "default" / "engines" / "e1"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert (own / "ssd").is_dir()


def test_an_engine_that_fails_is_exit_code_1(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXIT_WITH", "4")
    assert run(["engine", "launch", "e1", "--config", config(python.parent)]) == 1


def test_an_engine_can_be_described_by_options_alone(python: Path) -> None:
    options = [
        "--model",
        "/models/m8",
        "--python",
        str(python),
        "--port",
        "8123",
        "--dram",
        "1MiB",
        "--",
        "--seed",
        "7",
    ]
    assert run(["engine", "launch", "x", *options]) == 0
    argv = python.with_name("python.argv").read_text()
    assert "--model /models/m8 --served-model-name m8 --host 127.0.0.1 --port 8123" in argv
    assert argv.rstrip().endswith("--seed 7")


def test_the_command_can_be_shown_instead(python: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["engine", "launch", "e1", "--config", config(python.parent), "--print"]) == 0
    shown = capsys.readouterr().out
    assert f"{python} -m vllm.entrypoints.openai.api_server" in shown
    assert "hush" not in shown
    assert not python.with_name("python.argv").exists()
    assert not (python.parent / "state").exists()


def test_the_command_can_be_shown_to_programs(python: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["engine", "launch", "e1", "--config", config(python.parent), "--print", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["argv"][0] == str(python)
    assert "hush" not in str(shown)


def test_what_is_missing_is_said_line_by_line_and_nothing_is_started(
    python: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_checks, "ask", lambda _python: Environment(vllm="0.31.0", missing=["nats"], plugin=True))
    assert run(["engine", "launch", "e1", "--config", config(python.parent, dram_bytes=2**60)]) == 2
    said = capsys.readouterr().err
    assert [word for word in ("vllm:", "plugin:", "/dev/shm:") if word not in said] == []
    assert run(["engine", "launch", "e1", "--config", config(python.parent, dram_bytes=2**60), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert [lack["what"] for lack in told["lacks"]] == ["vllm", "plugin", "/dev/shm"]
    assert not python.with_name("python.argv").exists()


def test_a_folder_in_which_others_may_write_takes_no_ssd_tier(
    python: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    how = {"python": str(python), "ssd_dir": str(folder)}
    assert run(["engine", "launch", "e1", "--config", config(tmp_path, ssd_bytes=1, vllm=how)]) == 2
    assert f"others may write in {folder}: chmod 700 {folder}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["e11"], "the settings name no engine 'e11'; did you mean 'e1'?"),
        (["e1", "--dram", "much"], "'much' is no amount"),
        (["e1", "--ssd=-5GiB", "--print"], "no less than 0 bytes"),
        (["sim"], "it runs in the gateway"),
    ],
)
def test_wrong_words_are_refused(
    python: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    file = Path(config(python.parent))
    settings = json.loads(file.read_text())
    settings["engines"].append({"id": "sim", "kind": "simulated", "models": ["m"]})
    file.write_text(json.dumps(settings))
    assert run(["engine", "launch", *arguments, "--config", str(file)]) == 2
    assert said in capsys.readouterr().err


def test_without_a_log_an_engine_with_an_agent_is_not_started(
    python: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NATS_URL")
    assert run(["engine", "launch", "e1", "--config", config(python.parent)]) == 2
    assert "NATS_URL" in capsys.readouterr().err
    assert run(["engine", "launch", "e1", "--config", config(python.parent, agent=False)]) == 0


def test_an_engine_runs_once(python: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = python.parent / "state" / "default" / "engines" / "e1"
    own.mkdir(mode=0o700, parents=True)
    with locked(own, what="it"):
        assert run(["engine", "launch", "e1", "--config", config(python.parent)]) == 2
    assert "engine e1 is running already" in capsys.readouterr().err
    assert run(["engine", "launch", "e1", "--config", config(python.parent)]) == 0


def test_an_interpreter_that_cannot_be_run_is_named(python: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python.unlink()
    assert run(["engine", "launch", "e1", "--config", config(python.parent)]) == 2
    assert f"{python}: No such file" in capsys.readouterr().err
