"""The program as its users call it: what it answers, and how it says no."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import pytest

from events.log.base import Message
from events.log.journal import JournalWriter
from replay.code_version import code_version
from services import cli
from services.runtime.output import Exit
from tests.replay.owners import POOL, an_admission_day

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and nothing in the environment that would be taken for a setting."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("TIDEGATE_") or name in ("NATS_URL", "REDIS_URL", "NATS_CREDS"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def day() -> list[Message]:
    return an_admission_day(code_version=code_version()).log


def written(path: Path, log: list[Message]) -> Path:
    with JournalWriter(path, POOL) as writer:
        for message in log:
            writer.write(message)
    return path


def called(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = cli.run([str(word) for word in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def answered(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, object]]:
    code, out, _ = called(capsys, *argv, "--json")
    return code, json.loads(out)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_an_honest_journal_is_identical(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, day: list[Message], suffix: str
) -> None:
    code, report = answered(capsys, "replay", "verify", written(tmp_path / f"day{suffix}", day))
    assert code == Exit.FINE
    assert report["identical"] is True
    assert report["pending"] == 0
    assert isinstance(report["decisions"], int)
    assert isinstance(report["events"], int)
    assert report["events"] > report["decisions"] > 60
    assert len(str(report["digest"])) == 32


def test_people_get_the_verdict_with_the_digest_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, day: list[Message]
) -> None:
    path = written(tmp_path / "day.jsonl", day)
    _, report = answered(capsys, "replay", "verify", path)
    code, out, err = called(capsys, "replay", "verify", path)
    assert code == Exit.FINE
    assert out.splitlines()[0] == f"verify: IDENTICAL {report['digest']}"
    assert "events/s" in err


def test_what_the_verifier_says_does_not_depend_on_the_process(tmp_path: Path, day: list[Message]) -> None:
    path = written(tmp_path / "day.jsonl", day)
    said = [
        subprocess.run(
            [sys.executable, "-m", "services.cli", "replay", "verify", str(path), "--json"], cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True, timeout=60,
        ).stdout
        for seed in ("0", "1")
    ]  # fmt: skip
    assert said[0] == said[1]
    assert json.loads(said[0])["identical"] is True


def flip_a_byte(lines: list[bytes]) -> int:
    lines[8] = lines[8].replace(b'"ts_ns":1', b'"ts_ns":2')
    return 8


def drop_a_line(lines: list[bytes]) -> int:
    del lines[8]
    return 8


def swap_two_lines(lines: list[bytes]) -> int:
    lines[8], lines[9] = lines[9], lines[8]
    return 8


def cut_the_end(lines: list[bytes]) -> int:
    del lines[-3:]
    return len(lines)


@pytest.mark.parametrize("damage", [flip_a_byte, drop_a_line, swap_two_lines, cut_the_end])
def test_a_damaged_journal_is_a_no_that_names_the_record(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, day: list[Message], damage: Callable[[list[bytes]], int]
) -> None:
    path = written(tmp_path / "day.jsonl", day)
    lines = path.read_bytes().splitlines(keepends=True)
    seq = damage(lines)
    path.write_bytes(b"".join(lines))
    code, report = answered(capsys, "replay", "verify", path)
    assert (code, report["identical"], report["first_bad"]) == (Exit.NO, False, seq)
    code, out, err = called(capsys, "replay", "verify", path)
    assert (code, out) == (Exit.NO, "")
    assert f"record {seq} " in err
    assert "Traceback" not in err


def test_a_changed_decision_is_a_no_even_when_the_digests_were_made_anew(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, day: list[Message]
) -> None:
    index = next(i for i, m in enumerate(day) if b"request_admitted" in m.body)
    body = msgspec.json.decode(day[index].body)
    body["said"][0]["event"]["output_tokens_predicted"] += 1
    forged = day[index]._replace(body=msgspec.json.encode(body))
    path = written(tmp_path / "day.jsonl", [*day[:index], forged, *day[index + 1 :]])
    code, report = answered(capsys, "replay", "verify", path)
    assert (code, report["identical"]) == (Exit.NO, False)
    first = report["first_divergence"]
    assert isinstance(first, dict)
    assert (first["at"], first["kind"], first["fields"]) == (f"{forged.seq}.0", "changed", ["output_tokens_predicted"])
    code, out, _ = called(capsys, "replay", "verify", path)
    assert code == Exit.NO
    assert f"first difference: record {forged.seq}.0" in out
    assert "request_arrived.v1(" in out


def test_an_unfinished_tail_is_a_no_only_where_that_is_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, day: list[Message]
) -> None:
    last = max(i for i, m in enumerate(day) if b"request_admitted" in m.body and ".decision." in m.subject)
    path = written(tmp_path / "day.jsonl", day[:last])
    code, report = answered(capsys, "replay", "verify", path)
    assert code == Exit.FINE
    assert isinstance(report["pending"], int)
    assert report["pending"] > 0
    assert called(capsys, "replay", "verify", path, "--complete")[0] == Exit.NO


def test_another_versions_journal_says_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path / "old.jsonl", an_admission_day(code_version="0.0.1+old").log)
    code, out, _ = called(capsys, "replay", "verify", path)
    assert code == Exit.NO
    assert "decided by another version" in out
    assert "--any-version" in out
    assert answered(capsys, "replay", "verify", path, "--any-version")[0] == Exit.FINE


@pytest.mark.parametrize("content", [b"", b"not a journal\n", b'{"some":"json"}\n', os.urandom(300)])
def test_what_is_no_journal_is_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    code, out, err = called(capsys, "replay", "verify", path)
    assert (code, out) == (Exit.BAD_INPUT, "")
    assert err.startswith("tidegate: ")
    assert len(err.splitlines()) == 1


NO_SERVER = [
    ("watch",),
    ("replay", "verify", "--pool", "p"),
    ("replay", "export", "--pool", "p", "--out", "x.jsonl"),
]


@pytest.mark.parametrize("argv", NO_SERVER, ids=lambda argv: " ".join(argv[:2]))
@pytest.mark.parametrize("url", ["", "nats://me:hush@127.0.0.1:1"])
def test_without_nats_one_line_names_the_address_and_the_mend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], url: str
) -> None:
    monkeypatch.setenv("NATS_URL", url)
    code, out, err = called(capsys, *argv)
    assert (code, out) == (Exit.BAD_INPUT, "")
    assert len(err.splitlines()) == 1
    assert "NATS_URL" in err
    assert "hush" not in err
    assert not url or "127.0.0.1:1" in err


USAGE = [
    ((), "Usage"),
    (("nono",), "No such command"),
    (("replay", "verify"), "name a journal, or a pool"),
    (("trace", "import", "x", "--format", "mooncake"), "--out"),
    (("trace", "import", "x", "--out", "j.jsonl"), "--format"),
    (("config", "show", "--preset", "laptp"), "did you mean 'laptop'?"),
    (("config", "show", "--preset", "laptop", "--config", "x.toml"), "give one"),
    (("config", "check", "--set", "gateway.prot=1"), "did you mean 'port'?"),
    (("config", "check", "--config", "no.toml"), "No such file"),
]


@pytest.mark.parametrize(("argv", "says"), USAGE, ids=[" ".join(argv) or "(nothing)" for argv, _ in USAGE])
def test_bad_input_is_exit_code_2_and_says_why(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], says: str
) -> None:
    code, out, err = called(capsys, *argv)
    assert (code, out) == (Exit.BAD_INPUT, "")
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "argv",
    [
        ("replay", "export"),
        ("replay", "simulate", "x.jsonl"),
        ("trace", "import", "x.jsonl", "--format", "jsonl"),
        ("trace", "sample", "x.jsonl", "--share", "0.5"),
        ("trace", "anonymise", "x.jsonl"),
        ("workload", "draw", "chat"),
        ("workload", "fit", "x.jsonl", "--name", "mine"),
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_no_journal_and_no_profile_is_overwritten_by_accident(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: tuple[str, ...]
) -> None:
    (tmp_path / "x.jsonl").write_text("mine")
    code, _, err = called(capsys, *argv, "--out", "x.jsonl")
    assert code == Exit.BAD_INPUT
    assert "--force" in err
    assert (tmp_path / "x.jsonl").read_text() == "mine"


def test_config_show_says_who_said_what_and_hides_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_ENGINES__0__API_KEY", "hush")
    argv = ("config", "show", "--preset", "laptop", "--set", "gateway.port=9000")
    code, out, _ = called(capsys, *argv)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == Exit.FINE
    assert lines["gateway.port"].split()[1:] == ["9000", "--set", "gateway.port"]
    assert lines["engines[0].api_key"].split()[1:] == ["***", "TIDEGATE_ENGINES__0__API_KEY"]
    assert lines["gateway.host"].split()[-1] == "default"
    assert lines["engines[1].id"].endswith("laptop.toml")
    shown = answered(capsys, *argv)[1]
    assert "hush" not in str(shown)
    assert shown["gateway"]["port"] == 9000  # type: ignore[index]


def test_config_check_answers_in_json_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(capsys, "config", "check", "--preset", "laptop") == (
        0, {"ok": True, "pool": "default", "engines": 2, "models": 2, "tenants": 0},
    )  # fmt: skip
    code, said = answered(capsys, "config", "check", "--set", "gateway.on_log_down=502")
    assert (code, said["ok"], said["key"], said["allowed"]) == (2, False, "gateway.on_log_down", "pass, 503")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(capsys, "--help")
    assert code == Exit.FINE
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_answers_in_json_when_asked(name: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    for leaf in _leaves(command):
        assert "--json" in [option for parameter in leaf.params for option in parameter.opts], leaf.name
        assert leaf.help, leaf.name


def _leaves(command: click.Command) -> list[click.Command]:
    if not isinstance(command, click.Group):
        return [command]
    return [leaf for inner in command.commands.values() for leaf in _leaves(inner)]


def test_colours_follow_no_color(tmp_path: Path, day: list[Message]) -> None:
    path = written(tmp_path / "day.jsonl", day)
    argv = [sys.executable, "-m", "services.cli", "replay", "verify", str(path)]
    for extra, coloured in (({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)):
        done = subprocess.run(argv, cwd=ROOT, env=os.environ | extra, capture_output=True, check=True, timeout=60)
        assert (b";32mverify" in done.stdout) is coloured


@pytest.mark.parametrize("argv", [["demo"], ["up", "--preset", "laptop"], ["gateway", "--preset", "laptop"]])
def test_a_missing_extra_is_one_line_with_the_mend(argv: list[str]) -> None:
    """As in an installation without `tidegate[server]`: None in `sys.modules` is a module that is not there."""
    names = ", ".join(f"{name!r}: None" for name in cli.EXTRAS)
    program = f"import sys; sys.modules.update({{{names}}}); from services.cli import main; main({argv})"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (Exit.BAD_INPUT, "")
    assert re.fullmatch(r"tidegate: \w+ is not installed: pip install 'tidegate\[server\]'\n", done.stderr)


def test_up_says_at_once_that_the_gateways_port_is_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        argv = ("--preset", "laptop", "--set", f"gateway.port={port}", "--set", f"state_dir={tmp_path}/state")
        code, out, err = called(capsys, "up", *argv)
    assert (code, out) == (Exit.BAD_INPUT, "")
    assert f"gateway.port: cannot listen on 127.0.0.1:{port}" in err
    assert not (tmp_path / "state").exists()


class _Known(Exception):
    exit_code = 7


def test_a_full_disk_is_one_line_with_the_mend_and_costs_no_file_that_was_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    drawn, mine = trace(capsys), Path("mine.yaml")
    mine.write_text("of last week")
    before = sorted(Path().iterdir())
    monkeypatch.setattr(os, "fsync", full)
    code, _, err = called(capsys, "workload", "fit", drawn, "--name", "mine", "--out", mine, "--force")
    assert code == Exit.BAD_INPUT
    assert err.endswith("tidegate: No space left on device: free space, or write to another place\n")
    assert mine.read_text() == "of last week"
    assert sorted(Path().iterdir()) == before


def test_a_journal_that_cannot_be_is_refused_before_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, err = called(capsys, "replay", "simulate", trace(capsys), "--out", "/dev/null")
    assert (code, said) == (Exit.BAD_INPUT, "")
    assert "a journal is a file of its own (/dev/null): name a file" in err


def test_what_is_no_file_is_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = called(capsys, "workload", "fit", trace(capsys), "--name", "mine", "--out", "/dev/null")
    assert code == Exit.FINE
    assert Path("/dev/null").is_char_device()


def trace(capsys: pytest.CaptureFixture[str]) -> Path:
    """A short trace as a journal."""
    table, drawn = Path("trace.csv"), Path("t.jsonl")
    table.write_text("time,prompt_tokens,output_tokens\n" + "".join(f"{n},9,9\n" for n in range(9)))
    assert called(capsys, "trace", "import", table, "--format", "csv", "--out", drawn)[0] == Exit.FINE
    return drawn


def test_an_error_that_names_no_exit_code_is_a_mistake_of_ours() -> None:
    inner = _Known("said")
    both = ExceptionGroup("both", [ValueError(), ExceptionGroup("in", [inner])])
    assert cli.known_error(both) is inner
    assert cli.exit_code_of(inner) == 7
    assert cli.known_error(ValueError()) is None
    assert cli.known_error(ExceptionGroup("ours", [ValueError()])) is None
