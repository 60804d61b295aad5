"""`tidegate workload`: what is drawn is a trace, and a fit says how near it is."""

import json
from pathlib import Path

import msgspec
import pytest

from replay.traces.formats import read_trace
from replay.workloads.drawn import draw
from replay.workloads.profile import load
from services import cli


def test_what_is_drawn_is_a_trace_that_a_profile_can_be_fitted_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, made = tmp_path / "drawn.jsonl.zst", tmp_path / "mine.yaml"
    assert (
        cli.run(["workload", "draw", "chat", "--seed", "3", "--seconds", "120", "--out", str(journal), "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    read = read_trace(journal).arrivals
    assert told["requests"] == len(read)
    kept = {"prefix": (), "prefix_tokens": 0}
    assert [msgspec.structs.replace(one, **kept) for one in read] == [
        msgspec.structs.replace(one, **kept) for one in draw(load("chat"), seed=3, seconds=120)
    ]
    assert cli.run(["workload", "fit", str(journal), "--name", "mine", "--out", str(made), "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)["profile"]["fit"]
    assert fit["prompt_ks"] < 0.15
    assert load(str(made)).fit is not None
    assert cli.run(["workload", "show", str(made), "--seconds", "30"]) == 0
    assert "prompt lengths, KS distance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["show", "chatt"], "no profile 'chatt'"),
        (["show", "./none.yaml"], "cannot be read"),
        (["show", "chat", "--scale", "1e9"], "more than 2000000 requests"),
        (["fit", "x.csv", "--format", "azur", "--name", "x"], "no format 'azur'"),
        (["fit", "none.jsonl", "--name", "x"], "none.jsonl"),
        (["show", "chat", "--scale", "nan"], "nan is no amount"),
        (["draw", "chat", "--scale", "1e-9", "--seconds", "1", "--out", "none.jsonl"], "no request comes"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["workload", *argv]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len([line for line in said.strip().splitlines() if not line.startswith("try ")]) == 1


def test_a_fit_says_what_is_not_in_it_and_writes_only_what_can_be_drawn_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "waves.jsonl"
    assert cli.run(["workload", "draw", "mixed_waves", "--seconds", "30", "--out", str(journal)]) == 0
    assert cli.run(["workload", "fit", str(journal), "--name", "mine"]) == 0
    jobs = sum(not one.output_tokens for one in read_trace(journal).arrivals)
    assert f"{jobs} of " in capsys.readouterr().err
    for argv, says in ((["--name", "a b"], "--name a b"), (["--name", "a", "--out", str(tmp_path)], "is a directory"),
                       (["--name", "a", "--out", str(journal / "a.yaml")], "File exists")):  # fmt: skip
        assert cli.run(["workload", "fit", str(journal), *argv]) == 2
        assert says in capsys.readouterr().err


def test_a_trace_without_answers_gives_no_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.csv"
    table.write_text("time,kind,prompt_tokens\n0,embedding,10\n")
    assert cli.run(["workload", "fit", str(table), "--format", "csv", "--name", "x"]) == 2
    assert "no request of the trace has an answer" in capsys.readouterr().err
