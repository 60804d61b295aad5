"""`tidegate replay whatif` as its users call it: on a journal, for people and for programs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from events.base import PoolId
from events.log.journal import JournalWriter
from policies.catalog import PRESETS
from replay.cluster import simulate
from replay.workloads.facts import arrivals_to_messages
from replay.workloads.mixed import Mixed, engines, mixed
from services import cli
from services.runtime.output import Exit

SHAPE = Mixed(seconds=15, sessions=40, bursts=1, burst_sessions=15, waves=1, wave_requests=4)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and nothing in the environment that would be taken for a setting."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("TIDEGATE_") or name in ("NATS_URL", "REDIS_URL", "NATS_CREDS"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = simulate(mixed(3, SHAPE), engines(), settings=PRESETS["default"])
    path = tmp_path_factory.mktemp("day") / "day.jsonl"
    with JournalWriter(path, run.pool) as writer:
        for message in run.messages:
            writer.write(message)
    return path


def called(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = cli.run(["replay", "whatif", *map(str, argv)])
    said = capsys.readouterr()
    return code, said.out, said.err


def answered(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    code, out, err = called(capsys, *argv, "--json")
    assert (code, err) == (Exit.FINE, "")
    told: dict[str, Any] = json.loads(out)
    return told


def test_policies_stand_side_by_side_with_the_control_first(capsys: pytest.CaptureFixture[str], journal: Path) -> None:
    told = answered(capsys, journal, "--policy", "first_come", "--policy", "fifo", "--closed-loop")
    assert told["format"] == "tidegate.whatif.v1"
    assert [one["policy"] for one in told["open_loop"]["tried"]] == ["recorded", "first_come", "fifo"]
    assert [one["policy"] for one in told["closed_loop"]["columns"]] == ["observed", "recorded", "first_come", "fifo"]
    assert {len(one["values"]) for one in told["closed_loop"]["measures"]} == {4}


def test_a_setting_lies_on_top_of_what_was_recorded_or_of_each_policy(
    capsys: pytest.CaptureFixture[str], journal: Path
) -> None:
    for text in ("admission.backlog_max_ns=500ms", "policies.admission.backlog_max_ns=500ms"):
        (_, tried) = answered(capsys, journal, "--set", text)["open_loop"]["tried"]
        assert tried["settings"] == {"admission": {"backlog_max_ns": 500_000_000}}
        assert tried["policy"] == "recorded admission.backlog_max_ns=500000000"
    (_, tried) = answered(capsys, journal, "--policy", "honest_rival", "--set", "admission.queue_max=7")["open_loop"][
        "tried"
    ]
    assert tried["settings"]["admission"] == {**PRESETS["honest_rival"]["admission"], "queue_max": 7}


def test_a_policy_named_twice_is_tried_once(capsys: pytest.CaptureFixture[str], journal: Path) -> None:
    tried = answered(capsys, journal, "--policy", "fifo", "--policy", "fifo")["open_loop"]["tried"]
    assert [one["policy"] for one in tried] == ["recorded", "fifo"]


def test_people_see_what_differs_where_first_and_how_sure_that_is(
    capsys: pytest.CaptureFixture[str], journal: Path
) -> None:
    code, out, _ = called(capsys, journal, "--set", "admission.placement=affinity", "--closed-loop")
    assert code == Exit.FINE
    for word in ("same facts, same past", "first difference: record", "request_arrived", "elsewhere", "by tenant",
                 "tidegate explain", "observed", "modelled", "beyond the error", "goodput_per_s"):  # fmt: skip
        assert word in out


def test_a_trace_is_told_apart_from_a_log(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with JournalWriter(path, PoolId("p")) as writer:
        for message in arrivals_to_messages(mixed(3, SHAPE), engines()[0], pool=PoolId("p")):
            writer.write(message)
    code, out, _ = called(capsys, path, "--policy", "fifo")
    assert code == Exit.FINE
    assert "replay simulate" in out
    code, _, err = called(capsys, path, "--policy", "fifo", "--closed-loop")
    assert code == Exit.BAD_INPUT
    assert "no engine is registered" in err


def test_same_is_a_question_with_an_answer(capsys: pytest.CaptureFixture[str], journal: Path) -> None:
    assert called(capsys, journal, "--policy", "recorded", "--same")[0] == Exit.FINE
    assert called(capsys, journal, "--same")[0] == Exit.FINE, "without a policy the recorded one is asked"
    assert called(capsys, journal, "--policy", "default", "--same")[0] == Exit.FINE
    assert called(capsys, journal, "--policy", "first_come", "--same")[0] == Exit.NO


def test_turns_come_when_they_came_where_that_is_asked_for(capsys: pytest.CaptureFixture[str], journal: Path) -> None:
    waiting, own = (
        answered(capsys, journal, "--policy", "recorded", "--closed-loop", *more)["closed_loop"]
        for more in ((), ("--own-times",))
    )
    assert waiting["waiting_turns"] > own["waiting_turns"] == 0


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--policy", "fisrt_come"), "did you mean"),
        (("--set", "admission.nonsense=1"), "no such setting"),
        (("--set", "policies.admision.mode=observe"), "no actor 'admision'"),
        (("--policy", "fifo", "--set", "admision.mode=observe"), "no actor 'admision'; did you mean 'admission'?"),
        (("--policy", "fifo", "--set", "queue_max=1"), "no actor 'queue_max': say ACTOR.KEY=VALUE"),
        (("--set", "admission.mode"), "write ACTOR.KEY=VALUE"),
        (("--policy", "fifo", "--set", "admission=3"), "write ACTOR.KEY=VALUE"),
        (("--policy", "fifo", "--set", "policies.admission=3"), "write ACTOR.KEY=VALUE"),
        (("--policy", "fifo", "--set", "nats.bogus=1"), "nats.bogus"),
        (("--policy", "fifo", "--set", "pool"), "not of the form key.path=value"),
        ((), "name what to try"),
        (("--policy", "fifo", "--own-times"), "go with --closed-loop"),
        (("--policy", "fifo", "--closed-loop", "--step-model", "abacus"), "no step model 'abacus'"),
        (("--policy", "fifo", "--pool", "p"), "name a journal, or a pool"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], journal: Path, argv: tuple[str, ...], told: str
) -> None:
    code, out, err = called(capsys, journal, *argv)
    assert (code, out) == (Exit.BAD_INPUT, "")
    assert told in err
