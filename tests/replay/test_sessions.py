"""Workloads of sessions: who begins when, and that nobody shares what is not theirs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.base import NS_PER_S
from replay.workloads.base import Arrival
from replay.workloads.sessions import Session, started


def session(name: str, first_id: int) -> Session:
    """Two turns on one growing prefix."""
    return (
        Arrival(at_ns=0, request_id=f"{name}.1", prompt_tokens=600, output_tokens=9, prefix=(first_id,), session=name),
        Arrival(
            at_ns=7 * NS_PER_S, request_id=f"{name}.2", prompt_tokens=1_100, output_tokens=9,
            prefix=(first_id, first_id + 1), session=name, after=f"{name}.1", think_ns=3 * NS_PER_S,
        ),
    )  # fmt: skip


SESSIONS = [session("a", 100), session("b", 200), session("c", 300)]


@given(seed=st.integers(0, 1_000), count=st.integers(1, 11))
def test_ids_are_unique_turns_keep_their_shape_and_nothing_is_shared_between_sessions(seed: int, count: int) -> None:
    drawn = started(SESSIONS, seed=seed, seconds=60, count=count)
    assert len(drawn) == 2 * count
    by_id = {one.request_id: one for one in drawn}
    assert len(by_id) == 2 * count, "every request has its own name"
    assert [one.at_ns for one in drawn] == sorted(one.at_ns for one in drawn)
    owners: dict[int, str] = {}
    for one in drawn:
        assert all(owners.setdefault(unit, one.session) == one.session for unit in one.prefix)
        if one.after:
            before = by_id[one.after]
            assert one.session == before.session
            assert one.at_ns - before.at_ns == 7 * NS_PER_S
            assert one.prefix[:1] == before.prefix
        else:
            assert 0 <= one.at_ns < 60 * NS_PER_S


def test_every_session_is_drawn_once_before_any_is_drawn_again() -> None:
    assert {one.session for one in started(SESSIONS, seed=5, seconds=60, count=3)} == {"a", "b", "c"}
    again = {one.session for one in started(SESSIONS, seed=5, seconds=60, count=6)}
    assert again == {"a", "b", "c", "a~1", "b~1", "c~1"}


def test_a_workload_is_a_function_of_its_seed() -> None:
    one, same, other = (started(SESSIONS, seed=seed, seconds=60, count=5) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(("sessions", "count", "seconds"), [([], 1, 1), (SESSIONS, 0, 1), (SESSIONS, 1, 0)])
def test_nothing_to_draw_is_refused(sessions: list[Session], count: int, seconds: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        started(sessions, seed=1, seconds=seconds, count=count)
