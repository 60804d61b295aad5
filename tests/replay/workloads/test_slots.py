"""Slots: so many sessions are open from the first moment on, whatever becomes of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from events.base import NS_PER_S
from replay.workloads.base import Arrival
from replay.workloads.sessions import Session
from replay.workloads.slots import ANSWER_NS_PER_TOKEN, PAUSE_NS, in_slots, steady


def turn(name: str, *, prompt: int = 1_000, after: str = "", think_s: int = 0, session: str = "a") -> Arrival:
    return Arrival(
        at_ns=0, request_id=name, prompt_tokens=prompt, output_tokens=100, prefix=(prompt, prompt + 1),
        session=session, after=after, think_ns=think_s * NS_PER_S,
    )  # fmt: skip


def session(name: str, turns: int) -> Session:
    made = [
        turn(f"{name}.{n}", prompt=1_000 * (n + 1), after=f"{name}.{n - 1}" if n else "", think_s=7, session=name)
        for n in range(turns)
    ]
    return steady(tuple(made))


SESSIONS = [session("a", 1), session("b", 4), session("c", 9)]
ANSWER_NS = 100 * ANSWER_NS_PER_TOKEN


def test_pauses_are_cut_and_who_waited_for_a_short_turn_waits_for_the_one_before_it() -> None:
    recorded = (
        turn("t1", prompt=10), turn("t2", after="t1", think_s=5), turn("t3", after="t2", think_s=9_000),
        turn("t4", prompt=10, after="t3", think_s=3), turn("t5", after="t4", think_s=4),
    )  # fmt: skip
    made = steady(recorded, prompt_tokens_min=1_000)
    assert [(one.request_id, one.after, one.think_ns) for one in made] == [
        ("t2", "", 0), ("t3", "t2", PAUSE_NS), ("t5", "t3", 7 * NS_PER_S),
    ]  # fmt: skip
    assert [one.at_ns for one in made] == [0, ANSWER_NS + PAUSE_NS, 2 * ANSWER_NS + PAUSE_NS + 7 * NS_PER_S]
    assert steady((turn("t1", prompt=10),), prompt_tokens_min=1_000) == ()


@given(seed=st.integers(0, 1_000), slots=st.integers(1, 8), seconds=st.integers(1, 120))
def test_every_slot_has_one_session_after_the_other_until_the_end(seed: int, slots: int, seconds: int) -> None:
    made = in_slots(SESSIONS, seed=seed, seconds=seconds, slots=slots)
    assert made == in_slots(SESSIONS, seed=seed, seconds=seconds, slots=slots)
    assert [one.at_ns for one in made] == sorted(one.at_ns for one in made)
    by_id = {one.request_id: one for one in made}
    assert len(by_id) == len(made), "every request has its own name"
    owners: dict[int, str] = {}
    for one in made:
        assert all(owners.setdefault(unit, one.session) == one.session for unit in one.prefix), "nothing is shared"
        if one.after:
            before = by_id[one.after]
            assert one.at_ns == before.at_ns + ANSWER_NS + one.think_ns
    begun = [one for one in made if not one.after]
    assert len(begun) == slots, "who waits for nobody is the first of its slot"
    waited = [one.after for one in made if one.after]
    assert len(set(waited)) == len(waited), "no two wait for one: a slot has one session open"
    last = [one for one in made if one.request_id not in waited]
    assert all(one.at_ns + ANSWER_NS >= seconds * NS_PER_S for one in last), "no slot runs dry"


def test_sessions_are_in_progress_when_it_begins() -> None:
    """Of 14 turns 3 begin a session: slots begin anywhere."""
    first = [min(in_slots(SESSIONS, seed=seed, seconds=60, slots=1), key=lambda one: one.at_ns) for seed in range(30)]
    assert len({one.prompt_tokens for one in first}) > 5


def test_sessions_that_take_no_time_fill_no_slot() -> None:
    instant = steady((replace(turn("t1"), output_tokens=0),))
    with pytest.raises(ValueError, match="sessions that last"):
        in_slots([instant], seed=1, seconds=10, slots=1)
