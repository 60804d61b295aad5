"""`tidegate bench compare`: what it says of two reports, and its exit codes."""

import json
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from replay.bench.memory.report import SCHEMA, Report
from replay.bench.memory.systems import CAREFUL, OURS
from services import cli
from services.runtime.output import Exit
from tests.replay.bench.memory.drawn_report import drawn_report


def kept(folder: Path, name: str, report: Report) -> str:
    path = folder / name
    path.write_bytes(msgspec.json.encode(report))
    return str(path)


def drawn(worth: float, seeds: tuple[int, ...] = (1, 2, 3)) -> Report:
    return drawn_report(
        workloads=("mixed",), systems=(OURS, CAREFUL), loads=(1.0, 1.2), worth={OURS: worth}, seeds=seeds
    )


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """A good report, and a worse one."""
    return kept(tmp_path, "good.json", drawn(0.99)), kept(tmp_path, "bad.json", drawn(0.7))


def test_what_is_worse_is_a_row_and_an_exit_code_where_that_is_asked_for(
    two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", "compare", *two]) == Exit.FINE
    said = capsys.readouterr().out
    for words in ("goodput_per_s", "tidegate", "-", "worse", "within noise"):
        assert words in said
    assert "better" not in said.replace("0 better", "")
    assert cli.run(["bench", "compare", *two, "--fail-on", "worse"]) == Exit.NO
    assert cli.run(["bench", "compare", *two, "--fail-on", "lost-win"]) == Exit.NO
    assert cli.run(["bench", "compare", *two, "--fail-on", "drift"]) == Exit.FINE
    assert cli.run(["bench", "compare", *reversed(two), "--fail-on", "worse,lost-win"]) == Exit.FINE
    assert cli.run(["bench", "compare", *reversed(two), "--fail-on", "different"]) == Exit.NO
    assert cli.run(["bench", "compare", two[0], two[0], "--fail-on", "different,worse,drift,lost-win"]) == Exit.FINE


def test_nothing_that_could_be_compared_is_no_pass(two: tuple[str, str], tmp_path: Path) -> None:
    elsewhere = drawn_report(workloads=("coding",), systems=(OURS, CAREFUL), loads=(1.0,), seeds=(1, 2, 3))
    pair = (two[0], kept(tmp_path, "elsewhere.json", elsewhere))
    assert cli.run(["bench", "compare", *pair]) == Exit.FINE
    assert cli.run(["bench", "compare", *pair, "--fail-on", "worse"]) == Exit.NO


def test_programs_get_one_value_with_everything_in_it(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "compare", *two, "--json", "--fail-on", "lost-win"]) == Exit.NO
    counted = json.loads(capsys.readouterr().out)
    assert {one["verdict"] for one in counted["differences"]} == {"worse"}
    assert {one["kind"] for one in counted["regressions"]} == {"lost-win"}
    assert cli.run(["bench", "compare", *two, "--json", "--all"]) == Exit.FINE
    everything = json.loads(capsys.readouterr().out)
    assert len(everything["differences"]) == everything["compared"] > len(counted["differences"])
    assert counted["differences"][0]["place"].keys() == {"workload", "system", "engine", "load"}


def test_few_seeds_and_missing_cells_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = drawn(0.9, seeds=(1,)), drawn(0.9, seeds=(1,))
    fewer = replace(second, cells=tuple(cell for cell in second.cells if cell.system == OURS))
    assert cli.run(["bench", "compare", kept(tmp_path, "a", first), kept(tmp_path, "b", fewer)]) == Exit.FINE
    said = capsys.readouterr().out
    assert "2 cells have fewer than 3 seeds" in said
    assert f"only in the first: 2 cells of mixed/{CAREFUL}/light" in said


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no report of a memory benchmark"),
        (b"[1, 2]", "no report of a memory benchmark"),
        (b'{"suite": "x"}', "no report of a memory benchmark"),
        (b'\xff\xfe{"suite"', "no report of a memory benchmark"),
        (msgspec.json.encode({"schema": SCHEMA + 1}), "written by a newer Tidegate"),
    ],
)
def test_what_is_no_report_is_one_line(
    body: bytes, says: str, two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(body)
    assert cli.run(["bench", "compare", two[0], str(bad)]) == Exit.BAD_INPUT
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_word_that_is_none_is_refused_with_those_that_are(
    two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", "compare", *two, "--fail-on", "lost-wins"]) == Exit.BAD_INPUT
    assert "did you mean 'lost-win'" in capsys.readouterr().err


def test_a_baseline_of_another_suite_is_refused_before_anything_runs(
    two: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_suite(*_args: object, **_named: object) -> None:
        raise AssertionError("nothing runs")

    monkeypatch.setattr("replay.bench.memory.suite.run_suite", run_suite)
    assert cli.run(["bench", "run", "--suite", "smoke", "--against", two[0]]) == Exit.BAD_INPUT
    assert "suite 'smoke' cannot be held against a baseline of suite 'drawn'" in capsys.readouterr().err
