"""Where a message goes: bounded tokens, and NATS's own rules for patterns."""

import pytest

from events import subjects
from events.base import PoolId

POOL = PoolId("p1")


@pytest.mark.parametrize("text", ["a", "A-z_9", "x" * 64])
def test_a_plain_word_is_a_token(text: str) -> None:
    assert subjects.token(text, what="pool") == text


@pytest.mark.parametrize("text", ["", "a.b", "a b", "*", ">", "ä", "a\n", "x" * 65, "a\0"])
def test_what_could_reach_another_subject_is_no_token(text: str) -> None:
    with pytest.raises(ValueError, match="pool"):
        subjects.token(text, what="pool")


@pytest.mark.parametrize(
    ("pattern", "subject", "matches"),
    [
        (">", "a", True),
        (">", "a.b.c", True),
        ("a.>", "a.b", True),
        ("a.>", "a", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.b.d", False),
        ("a.b", "a.b", True),
        ("a.b", "a", False),
        ("a", "a.b", False),
        ("a.b", "a.bc", False),
    ],
)
def test_patterns_mean_what_they_mean_to_nats(pattern: str, subject: str, *, matches: bool) -> None:
    assert subjects.matches(pattern, subject) is matches


def test_the_log_holds_facts_and_decisions_and_nothing_else() -> None:
    log = subjects.log_of(POOL)
    assert subjects.matches(log, subjects.fact(POOL, "clock", "ticked"))
    assert subjects.matches(log, subjects.decision(POOL, "admission", subjects.SEVERAL))
    outside = [
        subjects.fact(PoolId("p2"), "clock", "ticked"),
        subjects.rpc(POOL, "status"),
        "tg.in.p1.client.request_arrived",
        f"watch.{subjects.fact(POOL, 'clock', 'ticked')}",
    ]
    assert [subject for subject in outside if subjects.matches(log, subject)] == []


def test_the_unit_of_ownership_is_all_that_one_actor_says() -> None:
    mine = subjects.decisions_of(POOL, "admission")
    assert subjects.matches(mine, subjects.decision(POOL, "admission", "request_admitted"))
    assert not subjects.matches(mine, subjects.decision(POOL, "quota", "request_admitted"))


def test_watchers_and_clients_have_subjects_of_their_own() -> None:
    seen = f"watch.{subjects.fact(POOL, 'clock', 'ticked')}"
    assert subjects.matches(subjects.watch_of(POOL), seen)
    assert subjects.matches(subjects.watch_of(), seen)
    assert not subjects.matches(subjects.watch_of(PoolId("p2")), seen)
    assert subjects.matches(subjects.ingest_of(POOL), "tg.in.p1.client.request_arrived")
    assert not subjects.matches(subjects.ingest_of(POOL), "tg.in.p1.request_arrived")
