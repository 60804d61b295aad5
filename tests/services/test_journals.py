"""Logs go out of JetStream and come back byte for byte."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from events.base import PoolId
from events.log.base import Message
from events.log.journal import JournalWriter, read_journal
from replay.code_version import code_version
from services import cli
from services.runtime.aio import run
from services.runtime.config import Config, LogProfile, NatsConfig
from services.runtime.embedded import start_nats
from services.runtime.output import Exit
from services.runtime.servers import open_log
from tests.replay.owners import POOL, an_admission_day

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with start_nats(tmp_path_factory.mktemp("nats"), profile=LogProfile.FAST) as server:
        yield server.url


@pytest.fixture(autouse=True)
def settled(nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATS_URL", nats_url)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("journals") / "day.jsonl"
    with JournalWriter(path, POOL) as writer:
        for message in an_admission_day(code_version=code_version()).log:
            writer.write(message)
    return path


def records(path: Path) -> list[Message]:
    return list(read_journal(path)[1])


def answered(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, object]]:
    code = cli.run([*(str(word) for word in argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_journal_comes_back_under_its_own_name_and_goes_out_again_the_same(
    capsys: pytest.CaptureFixture[str], journal: Path, tmp_path: Path
) -> None:
    code, done = answered(capsys, "replay", "import", journal)
    assert (code, done["pool"], done["digest"]) == (Exit.FINE, POOL, done["journal_digest"])
    code, exported = answered(capsys, "replay", "export", "--pool", POOL, "--out", tmp_path / "again.jsonl.zst")
    assert (code, exported["digest"]) == (Exit.FINE, done["digest"])
    assert records(tmp_path / "again.jsonl.zst") == records(journal)
    code, live = answered(capsys, "replay", "verify", "--pool", POOL)
    assert (code, live["digest"]) == (Exit.FINE, done["digest"])
    assert answered(capsys, "replay", "verify", journal) == (code, live)


def test_into_another_pool_only_the_subjects_change_and_both_digests_are_said(
    capsys: pytest.CaptureFixture[str], journal: Path, tmp_path: Path
) -> None:
    code, done = answered(capsys, "replay", "import", journal, "--pool", "other")
    assert (code, done["pool"], done["journal_pool"]) == (Exit.FINE, "other", POOL)
    assert done["digest"] != done["journal_digest"]
    answered(capsys, "replay", "export", "--pool", "other", "--out", tmp_path / "other.jsonl")
    there, here = records(tmp_path / "other.jsonl"), records(journal)
    assert [m.body for m in there] == [m.body for m in here]
    assert all(m.subject.startswith("tg.v1.other.") for m in there)
    code, live = answered(capsys, "replay", "verify", "--pool", "other")
    assert (code, live["identical"], live["digest"]) == (Exit.FINE, True, done["digest"])


def test_a_pool_that_has_a_log_takes_no_journal(
    capsys: pytest.CaptureFixture[str], journal: Path, nats_url: str
) -> None:
    async def occupy() -> None:
        async with open_log(Config(nats=NatsConfig(url=nats_url)), PoolId("taken"), create=True) as log:
            await log.append("tg.v1.taken.fact.clock.ticked", b"{}")

    run(occupy())
    code = cli.run(["replay", "import", str(journal), "--pool", "taken"])
    assert code == Exit.BAD_INPUT
    assert "pool taken has a log already" in capsys.readouterr().err


def test_a_damaged_journal_writes_nothing(capsys: pytest.CaptureFixture[str], journal: Path, tmp_path: Path) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    del lines[-5]
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(b"".join(lines))
    assert cli.run(["replay", "import", str(damaged), "--pool", "never"]) == Exit.NO
    assert cli.run(["replay", "export", "--pool", "never", "--out", str(tmp_path / "x.jsonl")]) == Exit.BAD_INPUT
    assert "has no log" in capsys.readouterr().err


def test_watch_shows_what_the_log_took_from_a_record_on(capsys: pytest.CaptureFixture[str], journal: Path) -> None:
    answered(capsys, "replay", "import", journal, "--pool", "seen")
    argv = ["watch", "--pool", "seen", "--from", "1", "--kind", "request_a*", "--count", "3"]
    assert cli.run([*argv, "--json"]) == Exit.FINE
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"]["type"] for line in lines] == [
        "request_arrived.v1",
        "request_admitted.v1",
        "request_arrived.v1",
    ]
    assert lines[1]["cause"] == lines[0]["at"]
    assert cli.run(argv) == Exit.FINE
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert f"<- {lines[0]['at']}" in shown[1]
