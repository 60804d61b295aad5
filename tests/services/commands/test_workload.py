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
    ],
)
def test_what_cannot_be_is_said_in_one_line(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["workload", *argv]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.strip().splitlines()) == 1
