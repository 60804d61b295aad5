"""`tidegate bench policies`: what it answers, and how it says no."""

import json
from pathlib import Path

import pytest

from services import cli
from services.runtime.output import Exit

TINY = (
    "bench", "policies", "--quick", "--workloads", "mixed", "--presets", "default,first_come_affinity",
    "--loads", "1.0", "--jobs", "1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder: no trace beside it."""
    monkeypatch.chdir(tmp_path)


def test_a_comparison_is_one_json_value_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "report.json"
    assert cli.run([*TINY, "--json", "--out", str(made)]) == Exit.FINE
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(made.read_text())
    [found] = said["report"]["found"]
    assert (found["workload"], found["source"]) == ("mixed", "drawn")
    assert {cell["variant"] for cell in found["cells"]} == {"default", "first_come_affinity", "honest_rival"}
    assert {goal["met"] for goal in said["goals"]} >= {None}


def test_people_see_the_knee_a_table_and_the_goals(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*TINY]) == Exit.FINE
    out = capsys.readouterr().out
    for words in ("knee at scale", "chunk budget", "honest_rival", "default / first_come_affinity at 1", "runs in"):
        assert words in out


def test_a_missed_goal_is_an_exit_code_only_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("replay.bench.goals.BELOW_BEST", 100.0)
    assert cli.run([*TINY, "--json"]) == Exit.FINE
    assert cli.run([*TINY, "--json", "--strict"]) == Exit.NO
    capsys.readouterr()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--seeds", "9", "1 to 5, a list, or tuning"),
        ("--seeds", "1,x", "1 to 5, a list, or tuning"),
        ("--loads", "1.0,-1", "numbers above 0"),
        ("--presets", "default,firstcome", "did you mean 'first_come'"),
        ("--workloads", "mixture", "did you mean 'mixed'"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    option: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", "policies", option, value]) == Exit.BAD_INPUT
    assert says in capsys.readouterr().err


def test_a_file_that_is_no_trace_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text("{}\n")
    assert cli.run(["bench", "policies", "--quick", "--trace", str(file), "--workloads", "conversation"]) == 2
    assert "trace.jsonl:1" in capsys.readouterr().err
