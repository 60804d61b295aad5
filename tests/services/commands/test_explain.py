"""`tidegate explain` as its users call it: for people, for programs, and for an id that is not there."""

import json
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from events import codec
from events.log.base import Message
from events.log.journal import JournalWriter
from replay.cluster import simulate
from replay.journal_source import JournalSource
from replay.workloads.mixed import engines, mixed
from services import cli
from services.runtime.config import LogProfile
from services.runtime.embedded import start_nats
from services.runtime.output import Exit

REQUESTS = 90
HASTE = 40
"""So much faster than they were meant: some have to be refused, whatever the settings of the day."""
WIDTH = 80


@pytest.fixture(scope="module")
def log() -> list[Message]:
    return simulate(
        [replace(one, at_ns=one.at_ns // HASTE) for one in mixed(5)[:REQUESTS]], engines(), pool="why",
        settings={"admission": {"late_max_ns": 0}},
    ).messages  # fmt: skip


@pytest.fixture(scope="module")
def journal(log: list[Message], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("journals") / "why.jsonl.zst"
    with JournalWriter(path, "why") as writer:  # type: ignore[arg-type]
        for message in log:
            writer.write(message)
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("TIDEGATE_") or name in ("NATS_URL", "REDIS_URL", "NATS_CREDS"):
            monkeypatch.delenv(name)


def called(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = cli.run([str(word) for word in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def a_place(log: list[Message], kind: str, *, last: bool = False) -> tuple[str, str]:
    """Place and request of the first (or last) decision of this kind."""
    for message in reversed(log) if last else log:
        for one in codec.decode(message.seq, message.subject, message.body):
            if one.event.event_kind() == kind:
                return str(one.at), str(getattr(one.event, "request_id", ""))
    raise AssertionError(f"the journal has no {kind}")


def test_a_request_is_told_from_its_arrival_to_the_nearest_flip(
    capsys: pytest.CaptureFixture[str], log: list[Message], journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    place, request_id = a_place(log, "request_deferred")
    code, out, _ = called(capsys, "explain", request_id, "--log", journal, "--all")
    assert code == Exit.FINE
    assert out.startswith(f"request {request_id}: ")
    assert f"decision {place} of admission: defer" in out
    assert out.count("  rule    ") == out.count("decision ") >= 2
    assert "nearest" in out
    assert "\x1b[" not in out, "no colour where nobody looks"
    assert max(len(line.rstrip()) for line in out.splitlines()) <= WIDTH


def test_the_last_word_is_what_is_explained_unless_all_are_asked_for(
    capsys: pytest.CaptureFixture[str], log: list[Message], journal: Path
) -> None:
    place, request_id = a_place(log, "request_deferred")
    code, out, _ = called(capsys, "explain", request_id, "--log", journal, "--json")
    last = json.loads(out)
    assert code == Exit.FINE
    assert (last["format"], last["id"], last["pool"]) == ("tidegate.explain.v1", request_id, "why")
    assert [told["explained"]["at"] for told in last["decisions"]] == last["request"]["decisions"][-1:]
    _, out, _ = called(capsys, "explain", request_id, "--log", journal, "--json", "--all")
    each = json.loads(out)
    assert [told["explained"]["at"] for told in each["decisions"]] == each["request"]["decisions"]
    assert each["decisions"][0]["explained"]["at"] == place


def test_the_schema_is_the_one_that_the_docs_name(
    capsys: pytest.CaptureFixture[str], log: list[Message], journal: Path
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "explain.md").read_text()
    _, request_id = a_place(log, "request_admitted")
    answer = json.loads(called(capsys, "explain", request_id, "--log", journal, "--json")[1])
    told = answer["decisions"][0]
    named = [
        *answer, *answer["request"], *answer["request"]["steps"][0], *answer["request"]["beside"][0],
        *told, *told["explained"], *told["explained"]["flip"], *told["explained"]["rule"], *told["chain"][0],
        *told["explained"]["knew"], *told["explained"]["knew"]["requests"][0],
        *told["explained"]["knew"]["requests"][0]["engines"][0],
    ]  # fmt: skip
    assert [name for name in named if f"`{name}`" not in page] == []


def test_a_decision_is_found_by_its_place_with_its_request(
    capsys: pytest.CaptureFixture[str], log: list[Message], journal: Path
) -> None:
    place, request_id = a_place(log, "request_rejected")
    code, out, _ = called(capsys, "explain", place, "--log", journal, "--json")
    answer = json.loads(out)
    assert code == Exit.FINE
    assert answer["request"]["request_id"] == request_id
    assert [told["explained"]["at"] for told in answer["decisions"]] == [place]
    assert answer["decisions"][0]["chain"][0]["at"] == place


def test_a_decision_about_no_request_is_explained_alone(
    capsys: pytest.CaptureFixture[str], log: list[Message], journal: Path
) -> None:
    place, _ = a_place(log, "wake_asked")
    answer = json.loads(called(capsys, "explain", place, "--log", journal, "--json")[1])
    assert answer["request"] is None
    explained = answer["decisions"][0]["explained"]
    assert [word["verb"] for word in explained["outcome"]] == ["wake"]
    assert explained["outcome"][0]["at_ns"] == explained["decision"]["at_ns"]


@pytest.mark.parametrize(
    ("id_", "said"),
    [
        ("m2O", "no request 'm2O' in the log of pool why; did you mean m2"),
        ("99999.0", "the log ends with record "),
        ("1.7", "there is no record 1.7"),
        ("1.0", "record 1.0 is no decision: actor_started"),
    ],
)
def test_what_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], journal: Path, id_: str, said: str) -> None:
    code, out, err = called(capsys, "explain", id_, "--log", journal)
    assert (code, out) == (Exit.BAD_INPUT, "")
    assert err.startswith(f"tidegate: {said}")
    assert err.count("\n") == 1


def test_a_fact_says_which_decisions_answer_it(
    capsys: pytest.CaptureFixture[str], log: list[Message], journal: Path
) -> None:
    arrival, request_id = a_place(log, "request_arrived")
    story = json.loads(called(capsys, "explain", request_id, "--log", journal, "--json")[1])["request"]
    code, _, err = called(capsys, "explain", arrival, "--log", journal)
    assert code == Exit.BAD_INPUT
    assert f"because of it: {story['decisions'][0]}" in err


def test_a_decision_that_nothing_leads_to_is_a_no(
    capsys: pytest.CaptureFixture[str], log: list[Message], tmp_path: Path
) -> None:
    place, request_id = a_place(log, "request_rejected")
    altered = [
        message._replace(subject=message.subject.replace(".admission.", ".oracle."))
        if message.seq == int(place.partition(".")[0]) else message for message in log
    ]  # fmt: skip
    path = tmp_path / "oracle.jsonl"
    with JournalWriter(path, "why") as writer:  # type: ignore[arg-type]
        for message in altered:
            writer.write(message)
    code, out, _ = called(capsys, "explain", place, "--log", path)
    assert code == Exit.NO
    assert f"decision {place} is not explained" in out
    code, out, _ = called(capsys, "explain", request_id, "--log", path, "--json")
    assert (code, json.loads(out)["unexplained"]) == (Exit.NO, [place])


@pytest.mark.parametrize("argv", [("r",), ("r", "--log", "x.jsonl", "--pool", "p")])
def test_the_log_is_named_once(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    code, _, err = called(capsys, "explain", *argv)
    assert code == Exit.BAD_INPUT
    assert "--log" in err


@pytest.mark.integration
def test_a_live_pool_is_explained_like_its_journal(
    capsys: pytest.CaptureFixture[str], log: list[Message], journal: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with start_nats(tmp_path / "nats", profile=LogProfile.FAST) as server:
        monkeypatch.setenv("NATS_URL", server.url)
        assert called(capsys, "replay", "import", journal)[0] == Exit.FINE
        place, _ = a_place(log, "request_rejected")
        from_pool = called(capsys, "explain", place, "--pool", "why", "--json")
        from_file = called(capsys, "explain", place, "--log", journal, "--json")
    assert from_pool == from_file


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("shares_set", ("embedding jobs want", "Admission keeps the share as a cap")),
        ("engine_directed", ("eviction slo_aware", "protected from 80 %")),
    ],
)
def test_people_read_what_quota_and_eviction_knew(
    capsys: pytest.CaptureFixture[str], log: list[Message], journal: Path, kind: str, known: tuple[str, ...]
) -> None:
    place, _ = a_place(log, kind, last=True)
    code, out, _ = called(capsys, "explain", place, "--log", journal)
    assert code == Exit.FINE
    assert [words for words in known if words not in " ".join(out.split())] == []


@pytest.mark.parametrize(
    ("actor", "kind", "known"),
    [
        ("migration", "transfer_ordered", ("drop e1", "hardly ever come back", "ssd 100 % full", "slices are kept")),
        ("migration", "transfer_cancelled", ("cancel e1", "from then on it is worth nothing")),
        ("migration", "link_suspended", ("resume_link e1", "it is in use again")),
        ("prefetch", "transfer_ordered", ("promote e1", "Many requests of late begin with them", "dram 1 % full")),
    ],
)
def test_people_read_why_slices_move(
    capsys: pytest.CaptureFixture[str], actor: str, kind: str, known: tuple[str, ...]
) -> None:
    day = Path(__file__).parents[2] / "golden" / f"{actor}.jsonl"
    found = [
        one for message in JournalSource(day) for one in codec.decode(message.seq, message.subject, message.body)
        if one.actor == actor and one.event.event_kind() == kind and "replicate" not in str(one.event)
    ]  # fmt: skip
    code, out, _ = called(capsys, "explain", str(found[-1].at), "--log", day)
    assert code == Exit.FINE
    assert [words for words in known if words not in " ".join(out.split())] == [], out
