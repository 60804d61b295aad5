"""`tidegate trace`: any trace becomes a journal that can be looked at, cut, made nameless and played."""

import gzip
import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from events.log.journal import read_journal
from replay.costmodel import PROFILE_DEFAULT
from replay.traces.formats import FORMATS
from replay.traces.own import THREE_TENANTS
from replay.workloads.facts import arrivals_of, rows_of
from services import cli
from services.commands.trace import PROFILE
from services.commands.trace_options import FORMATS as OFFERED
from services.runtime.output import Exit, Output

MOONCAKE = [{"timestamp": n * 500, "input_length": 700, "output_length": 5, "hash_ids": [1, n]} for n in range(20)]
WEKA = [
    {
        "id": f"s{n}", "block_size": 64,
        "requests": [
            {"t": 0.0, "type": "n", "in": 640, "out": 9, "hash_ids": [*range(10)], "api_time": 2.0},
            {"t": 10.0, "type": "n", "in": 900, "out": 9, "hash_ids": [*range(14)], "think_time": 8.0, "api_time": 1.0},
        ],
    }
    for n in range(5)
]  # fmt: skip
LMCACHE = [
    {"timestamp": 1_760_000_000_000_000 + n, "input": "word " * 900, "output": "yes", "session_id": "s"}
    for n in range(3)
]
TABLE = [{"when": n, "in": 700, "output_tokens": 5} for n in range(4)]
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n"
CSV = "time,prompt_tokens,output_tokens\n0,10,3\n1,20,4\n"


def write(path: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def called(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = cli.run([str(word) for word in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def answered(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    code, out, err = called(capsys, *argv, "--json")
    assert code == Exit.FINE, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(
    ("form", "content", "options", "requests"),
    [
        ("mooncake", MOONCAKE, ("--limit", 12), 12),
        ("azure", AZURE, (), 1),
        ("weka", WEKA, ("--seed", 3, "--begins-over", 60), 10),
        ("lmcache", LMCACHE, (), 3),
        ("jsonl", TABLE, ("--map", "time=when", "--map", "prompt_tokens=in", "--time-unit", "ms"), 4),
        ("csv", CSV, ("--tenant", "a"), 2),
    ],
)
def test_every_format_becomes_a_journal_that_says_what_its_file_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str, content: Any, options: tuple[object, ...],
    requests: int,
) -> None:  # fmt: skip
    trace, made = write(tmp_path / f"t.{form}.gz", content), tmp_path / "made.jsonl.zst"
    done = answered(capsys, "trace", "import", trace, "--format", form, "--out", made, "--pool", "p", *options)
    header, messages = read_journal(made)
    rows = rows_of(messages)
    assert (done["requests"], done["pool"], header.pool, len(rows)) == (requests, "p", "p", requests)
    assert done["estimated"] is (form == "lmcache")
    assert all(row.traced.kv_cache_bytes > 0 for row in rows)
    of_file = answered(capsys, "trace", "info", trace, "--format", form, *options)
    of_journal = answered(capsys, "trace", "info", made)
    same = set(of_file) - {"file", "format"}
    assert {key: of_file[key] for key in same} == {key: of_journal[key] for key in same}
    verified = answered(capsys, "replay", "verify", made)
    assert (verified["digest"], verified["decisions"]) == (done["digest"], 0)


def test_sessions_and_think_times_come_through_to_the_closed_loop(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = tmp_path / "made.jsonl"
    answered(capsys, "trace", "import", write(tmp_path / "t.jsonl", WEKA), "--format", "weka", "--out", made)
    arrivals = arrivals_of(read_journal(made)[1])
    waiting = [one for one in arrivals if one.after]
    assert [one.think_ns for one in waiting] == [8 * 10**9] * 5
    run = answered(capsys, "replay", "simulate", made, "--closed-loop")
    assert (run["requests"], run["unsent"]) == (10, 0)


def test_a_recorded_log_becomes_a_trace_with_the_same_requests(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    night, made = tmp_path / "night.jsonl.zst", tmp_path / "made.jsonl"
    run = answered(capsys, "replay", "simulate", "--workload", "mixed", "--limit", 30, "--out", night)
    done = answered(capsys, "trace", "import", night, "--format", "journal", "--out", made)
    assert done["requests"] == run["requests"] == 30
    recorded, imported = (rows_of(read_journal(path)[1]) for path in (night, made))
    assert [row.at_ns for row in imported] == [row.at_ns for row in recorded]
    assert [row.traced.output_tokens for row in imported] == [row.traced.output_tokens for row in recorded]
    assert [row.arrived.slo_ttft_ns for row in imported] == [row.arrived.slo_ttft_ns for row in recorded]
    assert all(row.traced.kv_cache_bytes or row.traced.embedding_workspace_bytes for row in imported)


def test_what_is_offered_is_what_there_is() -> None:
    assert list(OFFERED) == list(FORMATS)
    assert PROFILE == PROFILE_DEFAULT


def test_expected_memory_is_that_of_the_profile(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = write(tmp_path / "t.csv", CSV)
    held = [
        answered(capsys, "trace", "info", trace, "--format", "csv", "--profile", profile)["kv_cache_bytes"]["most"]
        for profile in ("llama-3-8b_h100", "qwen3-32b_rtxpro6000")
    ]
    assert held == [2 * 16 * 131_072, 2 * 16 * 262_144]


def test_prompts_that_fill_the_context_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("trace", "import", write(tmp_path / "t.jsonl", WEKA), "--format", "weka", "--context-tokens", 800)
    assert answered(capsys, *words, "--out", tmp_path / "made.jsonl")["left_out"] == 5
    _, said, _ = called(capsys, *words, "--out", tmp_path / "again.jsonl")
    assert "5 were left out" in said


def test_a_sample_keeps_sessions_and_a_journal_without_names_keeps_all_but_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    part, key = tmp_path / "part.jsonl.zst", tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    assert 0 < answered(capsys, "trace", "sample", THREE_TENANTS, "--count", 30, "--out", part)["requests"] < 300
    named = answered(capsys, "trace", "info", part)
    digests = []
    for number, more in enumerate((("--key-file", key), ("--key-file", key), ())):
        made = tmp_path / f"{number}.jsonl"
        digests.append(answered(capsys, "trace", "anonymise", part, "--out", made, *more)["digest"])
        hidden = answered(capsys, "trace", "info", made)
        differ = {field for field in named if named[field] != hidden[field]}
        assert differ == {"file", "tenants"}
        assert list(named["tenants"].values()) == list(hidden["tenants"].values())
        assert b'"chat"' not in made.read_bytes()
    assert digests[0] == digests[1] != digests[2]


def test_without_a_file_info_says_where_traces_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    known = answered(capsys, "trace", "info")
    assert {one["form"] for one in known["public"]} - {""} <= set(known["formats"])
    assert all(one["origin"] and one["licence"] and one["about"] for one in known["public"])
    assert Path(known["own"]["journal"]).exists()
    _, said, _ = called(capsys, "trace", "info")
    assert "CC-BY-4.0" in said
    assert "embedding load is drawn" in said


def test_people_get_tables(capsys: pytest.CaptureFixture[str]) -> None:
    _, said, _ = called(capsys, "trace", "info", THREE_TENANTS)
    assert "ideal prefix hits" in said
    assert "embedding workspace, GiB" in said


BAD = [
    ("mooncake", [*MOONCAKE[:3], MOONCAKE[0]], ":4:", "sort the trace"),
    ("mooncake", [{**MOONCAKE[0], "timestamp": -1}], ":1:", "timestamp"),
    ("azure", AZURE.replace("374", "lots"), ":2:", "whole number"),
    ("weka", [{**WEKA[0], "block_size": 16}], ":1:", "64-token"),
    ("lmcache", [{**LMCACHE[0], "timestamp": 1_760_000_000}], ":1:", "microseconds"),
    ("jsonl", [{"time": 0}], ":1:", "--map prompt_tokens=COLUMN"),
    ("csv", "time,prompt_tokens,output_tokens\nnan,1,1\n", ":2:", "at least 0"),
]


@pytest.mark.parametrize(("form", "content", "line", "says"), BAD)
def test_a_bad_trace_is_bad_input_with_file_line_and_mend(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str, content: Any, line: str, says: str
) -> None:
    trace, made = write(tmp_path / f"t.{form}", content), tmp_path / "made.jsonl"
    code, out, err = called(capsys, "trace", "import", trace, "--format", form, "--out", made)
    assert (code, out) == (Exit.BAD_INPUT, "")
    assert f"{trace}{line}" in err
    assert says in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("made*")), "nothing is left of it"


@pytest.mark.parametrize("form", ["azure", "mooncake", "weka", "lmcache", "jsonl", "csv"])
def test_a_cut_archive_is_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str) -> None:
    trace = write(tmp_path / "t.gz", {"azure": AZURE, "csv": CSV, "weka": WEKA}.get(form, MOONCAKE))
    trace.write_bytes(trace.read_bytes()[:-6])
    code, _, err = called(capsys, "trace", "info", trace, "--format", form)
    assert code == Exit.BAD_INPUT
    assert f"{trace}:" in err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("import", "x.csv", "--format", "csv", "--out", "y.jsonl", "--map", "time"), "say it as FIELD=COLUMN"),
        (("import", "x.csv", "--format", "csv", "--out", "y.jsonl", "--profile", "cray"), "there is no profile 'cray'"),
        (
            ("import", "x.csv", "--format", "csv", "--out", "y.jsonl", "--map", "time=a", "--map", "time=b"),
            "one column",
        ),
        (("import", "x.csv", "--format", "csv", "--out", "y.jsonl", "--tenant", ""), "1 to 256 printable"),
        (("info", "x.csv", "--format", "csv", "--model", "\x1b[31m"), "1 to 256 printable"),
        (("import", "x.csv", "--format", "csv", "--out", "here.jsonl"), "--force"),
        (
            ("import", "x", "--format", "mooncake", "--out", "y.jsonl", "--time-unit", "s"),
            "--time-unit says nothing of",
        ),
        (("info", "here.jsonl", "--map", "time=t"), "it is for jsonl, csv"),
        (("info", "none.jsonl"), "No such file"),
        (("info", "none.gz", "--format", "weka"), "No such file"),
        (("info", "x.gz", "--format", "weka", "--unit-tokens", "100"), "multiple of 64"),
        (("sample", "x.jsonl", "--out", "y.jsonl"), "--share or --count"),
        (("anonymise", "x.jsonl", "--out", "y.jsonl", "--key-file", "short"), "give 16 to 64"),
        (("info", "here.jsonl"), "no request arrives"),
        (("info", "short"), "--format"),
        (("import", "x.csv", "--format", "csv", "--out", "y.jsonl", "--pool", "a b"), "--pool 'a b'"),
        (("sample", "here.jsonl", "--share", "nan", "--out", "y.jsonl"), "nan is no amount"),
        (("anonymise", "here.jsonl", "--shift", "1e30", "--out", "y.jsonl"), "not in the range"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
    says: str,
) -> None:
    from events.base import PoolId
    from events.log.journal import JournalWriter

    monkeypatch.chdir(tmp_path)
    Path("short").write_text("key")
    JournalWriter(Path("here.jsonl"), PoolId("p")).close()
    code, _, err = called(capsys, "trace", *argv)
    assert code == Exit.BAD_INPUT
    assert says in err


def test_ctrl_c_leaves_a_whole_journal_of_what_was_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(done: int) -> None:
        if done == 7:
            os.kill(os.getpid(), signal.SIGINT)

    made = tmp_path / "made.jsonl.zst"
    trace = write(tmp_path / "t.jsonl", MOONCAKE)
    monkeypatch.setattr(
        Output, "progress", lambda _self, what, _total=None: nullcontext(pressed if "write" in what else print)
    )
    code, said, _ = called(capsys, "trace", "import", trace, "--format", "mooncake", "--out", made)
    assert code == Exit.INTERRUPTED
    assert "13 were not written" in said
    assert len(arrivals_of(read_journal(made)[1])) == 7
