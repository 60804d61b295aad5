"""What follows from a log is what stands in it, or the first difference has a name."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events import codec
from events.base import Cause, Event, LogDamaged
from events.control import Ticked
from events.decisions import RequestAdmitted, RequestRejected
from events.log.base import Message
from policies.catalog import ACTORS
from replay.replayer import replay
from replay.verify import Report, verify
from tests.replay.owners import (
    DECIDERS,
    POOL,
    House,
    Owner,
    a_day,
    admitted,
    an_admission_day,
    arrived,
    configured,
    finished,
)

ROOT = Path(__file__).parents[2]


def check(log: list[Message], **named: str) -> Report:
    return verify(log, POOL, DECIDERS, **named)


def decisions_in(log: list[Message]) -> list[tuple[str, Event]]:
    said = [r for m in log for r in codec.decode(m.seq, m.subject, m.body) if r.actor and r.cause]
    return [(r.cause, r.event) for r in said]


def renumbered(log: list[Message]) -> list[Message]:
    return [m._replace(seq=n) for n, m in enumerate(log, start=1)]


def edited(message: Message, **fields: object) -> Message:
    """The message with its first event's fields changed."""
    body = msgspec.json.decode(message.body)
    body["said"][0]["event"].update(fields)
    return message._replace(body=msgspec.json.encode(body))


def first_decision(log: list[Message], kind: type[Event] = RequestAdmitted) -> int:
    """Index of the first message that holds one decision of this kind."""
    return next(
        index
        for index, message in enumerate(log)
        if [type(r.event) for r in codec.decode(message.seq, message.subject, message.body)] == [kind]
    )


def a_short_day() -> House:
    house = House()
    toy = Owner(house, "a")
    for n in range(8):
        house.say(arrived(f"r{n}"))
        toy.answer()
    house.say(finished("r0"), finished("r1"))
    toy.answer()
    return house


def test_a_plain_log_is_identical_and_is_counted() -> None:
    house = a_day()
    report = check(house.log)
    assert report.identical
    assert report.first_divergence is None
    assert report.messages == len(house.log)
    assert report.decisions == report.compared == len(decisions_in(house.log)) > 40
    assert (report.pending, report.unknown, report.two_owners, report.differences) == (0, 0, 0, {})
    assert [(e.owner, e.status, e.decisions) for e in report.epochs] == [("a", "identical", report.decisions)]


def test_replay_gives_the_decisions_that_stand_in_the_log() -> None:
    house = a_day()
    computed = [(str(s.recorded.at), event) for s in replay(house.log, DECIDERS) for event in s.decisions]
    assert computed == decisions_in(house.log)


def test_the_real_admission_replays_as_it_decided_over_restarts_with_other_settings() -> None:
    house = an_admission_day()
    report = verify(house.log, POOL, ACTORS)
    assert report.identical, report.first_divergence
    assert len(report.epochs) == 3
    assert {e.event_kind() for _, e in decisions_in(house.log)} >= {"request_admitted", "request_deferred"}
    assert report.compared == report.decisions > 60


def test_an_empty_log_is_identical() -> None:
    report = check([])
    assert report.identical
    assert (report.events, report.decisions) == (0, 0)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(0, 1)),
        st.tuples(st.just("finish"), st.integers(0, 1)),
        st.tuples(st.just("answer"), st.integers(0, 3)),
        st.tuples(st.just("restart"), st.integers(1, 4)),
        st.tuples(st.just("configure"), st.integers(1, 4)),
        st.tuples(st.just("tick"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_whatever_happened_and_however_often_the_owner_crashed_replay_equals_live(steps: list[tuple[str, int]]) -> None:
    house = House()
    toy = Owner(house, "a")
    starts = 1
    for n, (step, amount) in enumerate(steps):
        match step:
            case "arrive":
                house.say(*(arrived(f"r{n}-{i}") for i in range(amount + 1)))
            case "finish":
                house.say(finished(f"r{n}"))
            case "tick":
                house.say(Ticked(n=n))
            case "configure":
                house.say(configured(amount))
            case "answer":
                # An owner that wrote only a part of what it owed has crashed: a new one goes on.
                toy.answer(messages_max=amount)
                toy = Owner(house, f"owner{n}")
                starts += 1
            case "restart":
                toy = Owner(house, f"owner{n}", slots=amount)
                starts += 1
    toy.answer()
    report = check(house.log)
    assert report.identical, report.first_divergence
    assert report.pending == 0
    assert len(report.epochs) == starts
    assert report.compared == len(decisions_in(house.log))


def test_what_was_not_yet_written_when_the_log_ended_is_pending() -> None:
    house = a_day()
    for n in range(3):
        house.say(arrived(f"late{n}"))
    report = check(house.log)
    assert report.identical
    assert report.pending == 3


def change_a_decision(log: list[Message]) -> tuple[list[Message], str]:
    index = first_decision(log)
    log[index] = edited(log[index], output_tokens_predicted=99)
    return log, f"{log[index].seq}.0"


def drop_a_decision(log: list[Message]) -> tuple[list[Message], str]:
    index = first_decision(log, RequestRejected)
    owed = decisions_in([log[index]])[0][0]
    rest = log[:index] + log[index + 1 :]
    nxt = next(m.seq for m in rest[index:] if ".decision." in m.subject)
    assert Cause.parse(owed).seq < nxt
    return renumbered(rest), f"{nxt - 1}.0"


def repeat_a_decision(log: list[Message]) -> tuple[list[Message], str]:
    index = first_decision(log)
    return [*log, log[index]._replace(seq=len(log) + 1)], f"{len(log) + 1}.0"


def invent_a_decision(log: list[Message]) -> tuple[list[Message], str]:
    body = codec.encode(owner="a", ts_ns=5, said=[codec.Said(event=admitted("nobody"), cause=f"{len(log)}.0")])
    return [*log, Message(len(log) + 1, log[first_decision(log)].subject, body, {})], f"{len(log) + 1}.0"


def write_as_another(log: list[Message]) -> tuple[list[Message], str]:
    index = first_decision(log)
    body = msgspec.json.decode(log[index].body) | {"owner": "thief"}
    log[index] = log[index]._replace(body=msgspec.json.encode(body))
    return log, f"{log[index].seq}.0"


def change_a_fact(log: list[Message]) -> tuple[list[Message], str]:
    index = next(i for i, m in enumerate(log) if "request_arrived" in m.subject)
    log[index] = edited(log[index], request_id="somebody_else")
    return log, f"{log[index].seq + 1}.0"


TAMPERING = [
    (change_a_decision, "changed"),
    (drop_a_decision, "missing"),
    (repeat_a_decision, "twice"),
    (invent_a_decision, "extra"),
    (write_as_another, "stranger"),
    (change_a_fact, "changed"),
]


@pytest.mark.parametrize(("tamper", "kind"), TAMPERING, ids=[t.__name__ for t, _ in TAMPERING])
def test_tampering_is_named_with_its_record(tamper: object, kind: str) -> None:
    honest = a_short_day().log
    log, at = tamper(list(honest))  # type: ignore[operator]
    report = check(log)
    assert not report.identical
    assert report.first_divergence is not None
    assert (report.first_divergence.kind, report.first_divergence.at) == (kind, at)
    assert report.differences[kind] >= 1
    assert "diverged" in {e.status for e in report.epochs}
    assert report.digest != check(honest).digest


def test_a_decision_that_two_owners_made_is_counted() -> None:
    house = a_short_day()
    house.write("b", [codec.Said(event=admitted("r0"), cause="2.0")])
    report = check(house.log)
    assert report.two_owners == 1
    assert report.differences == {"stranger": 1, "twice": 1}


@pytest.mark.parametrize("gap", ["dropped", "swapped"])
def test_a_gap_in_the_log_is_damage_and_names_the_record(gap: str) -> None:
    log = a_short_day().log
    if gap == "dropped":
        del log[4]
    else:
        log[4], log[5] = log[5], log[4]
    with pytest.raises(LogDamaged, match="record 6"):
        check(log)


def test_the_chain_goes_back_to_the_arrival() -> None:
    log = a_short_day().log
    index = next(i for i in range(len(log) - 1, 0, -1) if b"request_admitted" in log[i].body)
    log[index] = edited(log[index], kv_bytes_reserved=0)
    first = check(log).first_divergence
    assert first is not None
    assert first.fields == ("kv_bytes_reserved",)
    assert first.recorded is not None
    assert first.recomputed is not None
    assert (first.recorded.get("kv_bytes_reserved"), first.recomputed["kv_bytes_reserved"]) == (0, 3)
    kinds = [link.event["type"] for link in first.chain]
    assert kinds == ["request_admitted.v1", "request_finished.v1", "request_arrived.v1"]
    assert first.chain[0].at == first.at
    assert first.chain[-1].event["request_id"] == first.recorded["request_id"]


def test_two_owners_with_other_settings_are_both_identical() -> None:
    house = House()
    for name, slots in (("a", 1), ("b", 5), ("a2", 2)):
        toy = Owner(house, name, slots=slots)
        for n in range(6):
            house.say(arrived(f"{name}-{n}"))
        toy.answer(messages_max=1)
    report = check(house.log)
    assert report.identical
    assert [(e.owner, e.status) for e in report.epochs] == [(n, "identical") for n in ("a", "b", "a2")]
    assert [e.causes for e in report.epochs] == [4, 4, 4]
    assert report.pending == 6


def another_versions_log() -> House:
    """The owner in the middle admits what the toy would have deferred."""
    house = House()
    Owner(house, "a", code_version="1")
    other = Owner(house, "b", code_version="2")
    for n in range(5):
        house.say(arrived(f"r{n}"))
        house.write("b", [codec.Said(event=admitted(f"r{n}"), cause=f"{len(house.log)}.0")])
    assert other.answered.seq == 0
    house.say(Ticked(n=1))
    mine = Owner(house, "c", code_version="1")
    mine.progress.state.running = 5
    mine.seen = len(house.log)
    house.say(arrived("last"))
    mine.answer()
    return house


def test_what_another_version_decided_is_taken_in_and_said_to_be_so() -> None:
    report = check(another_versions_log().log, code_version="1")
    assert report.identical
    assert [(e.owner, e.status, e.decisions) for e in report.epochs] == [
        ("a", "identical", 0),
        ("b", "decided by another version", 5),
        ("c", "identical", 1),
    ]
    assert (report.compared, report.taken_in) == (1, 5)


def test_without_a_version_all_epochs_are_held_against_this_code() -> None:
    report = check(another_versions_log().log)
    assert not report.identical
    assert [e.status for e in report.epochs] == ["identical", "diverged", "diverged"]


def test_a_log_of_which_nothing_could_be_compared_is_not_called_identical() -> None:
    report = check(a_short_day().log, code_version="3")
    assert report.first_divergence is None
    assert (report.compared, report.taken_in) == (0, report.decisions)
    assert not report.identical


def poisoned() -> House:
    house = House()
    toy = Owner(house, "a")
    house.say(arrived("r0"))
    toy.answer()
    house.say(finished("r0", output_tokens=666))
    return house


def test_a_quarantined_record_is_skipped_by_every_replay() -> None:
    house = poisoned()
    position = f"{len(house.log)}.0"
    toy = Owner(house, "b")
    toy.quarantine(position)
    house.say(arrived("r1"))
    toy.answer(quarantined=frozenset({Cause.parse(position)}))
    report = check(house.log)
    assert report.identical
    assert report.decisions == 2


def test_a_policy_that_breaks_on_a_record_is_a_divergence_there() -> None:
    report = check(poisoned().log)
    assert report.first_divergence is not None
    assert (report.first_divergence.kind, report.first_divergence.at) == ("failed", "4.0")
    assert "a poisonous amount" in report.first_divergence.error


def test_a_false_watermark_is_named() -> None:
    house = a_short_day()
    Owner(house, "b")
    house.log[-1] = edited(house.log[-1], watermark="2.0")
    report = check(house.log)
    assert report.first_divergence is not None
    assert (report.first_divergence.kind, report.first_divergence.at) == ("watermark", f"{len(house.log)}.0")


def test_unknown_events_and_unknown_actors_are_counted_and_the_rest_goes_on() -> None:
    house = a_short_day()
    seq = len(house.log) + 1
    said = [codec.Said(event=admitted("x"), cause="2.0")]
    house.log += [
        Message(
            seq, f"tg.v1.{POOL}.fact.gateway.new", b'{"owner":"g","ts_ns":1,"said":[{"event":{"type":"new.v7"}}]}', {}
        ),
        Message(seq + 1, f"tg.v1.{POOL}.fact.gateway.torn", b"\xff not json", {}),
        Message(seq + 2, f"tg.v1.{POOL}.decision.oracle.x", codec.encode(owner="o", ts_ns=1, said=said), {}),
    ]
    report = check(house.log)
    assert report.identical
    assert report.unknown == 2
    assert report.unverified == {"oracle": 1}


def test_the_digest_and_the_report_do_not_depend_on_the_hash_seed() -> None:
    script = (
        "import msgspec, sys; from replay.verify import verify; from tests.replay.owners import DECIDERS, POOL, a_day;"
        "sys.stdout.buffer.write(msgspec.json.encode(verify(a_day(arrivals=200).log, POOL, DECIDERS)))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True,
            check=True, timeout=60,
        ).stdout
        for seed in ("0", "1")
    ]  # fmt: skip
    assert said[0] == said[1]
    assert msgspec.json.decode(said[0])["identical"] is True
