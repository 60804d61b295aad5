"""Who comes when: the set is fixed before the run, and a turn comes after the answer that it waited for, or never."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from events.base import RequestId
from replay.turns import Turns, hastened
from replay.workloads.base import Arrival


def turn(name: str, *, at: int = 0, after: str = "", think: int = 0) -> Arrival:
    return Arrival(
        at_ns=at, request_id=name, prompt_tokens=10, output_tokens=1, after=after, think_ns=think, session="s"
    )


CHAIN = [turn("a"), turn("b", at=10, after="a", think=5), turn("c", at=20, after="b", think=1)]
FORK = [turn("a"), turn("b", at=10, after="a", think=5), turn("c", at=10, after="a"), turn("d", at=12)]


def played(
    arrivals: Sequence[Arrival], took: Mapping[str, int], *, closed_loop: bool = True, until: int = 0
) -> tuple[dict[str, int], list[str]]:
    """When each request is sent if each of `took` is answered after so long, and the others never; who is unsent."""
    turns = Turns(arrivals, closed_loop=closed_loop, until_ns=until)
    coming, sent = [(one.at_ns, one) for one in turns.at_own_time()], dict[str, int]()
    while coming:
        at_ns, one = coming.pop(0)
        turns.sent(one)
        sent[one.request_id] = at_ns
        if one.request_id in took:
            coming += turns.answered(RequestId(one.request_id), at_ns + took[one.request_id])
    assert turns.sent_count == len(sent)
    return sent, [one.request_id for one in turns.unsent()]


@pytest.mark.parametrize(
    ("arrivals", "took", "until", "sent", "unsent"),
    [
        (CHAIN, {"a": 100, "b": 7}, 0, {"a": 0, "b": 105, "c": 113}, []),
        (CHAIN, {"a": 100}, 0, {"a": 0, "b": 105}, ["c"]),
        (CHAIN, {}, 0, {"a": 0}, ["b", "c"]),
        (CHAIN, {"a": 100, "b": 7}, 113, {"a": 0, "b": 105}, ["c"]),
        (CHAIN, {"a": 100, "b": 7}, 114, {"a": 0, "b": 105, "c": 113}, []),
        (CHAIN, {"a": 1, "b": 1}, 20, {"a": 0, "b": 6}, []),
        (FORK, {"a": 3, "d": 1}, 0, {"a": 0, "d": 12, "b": 8, "c": 3}, []),
        (FORK, {"d": 1}, 0, {"a": 0, "d": 12}, ["b", "c"]),
    ],
    ids=["answered", "second is not", "first is not", "too late", "just in time", "third is outside of the window",
         "two wait for one", "both stay"],
)  # fmt: skip
def test_a_turn_comes_its_thinking_time_after_the_answer_or_never(
    arrivals: list[Arrival], took: dict[str, int], until: int, sent: dict[str, int], unsent: list[str]
) -> None:
    assert played(arrivals, took, until=until) == (sent, unsent)


def test_the_next_session_comes_when_the_one_before_is_over_answered_or_not() -> None:
    chain = [*CHAIN, replace(turn("d", at=30, after="c", think=2), session="t"), turn("e", at=31, after="c")]
    turns = Turns(chain, closed_loop=True, until_ns=1_000)
    assert turns.given_up(chain[0], 100) == [(102, chain[3])], "b, c and e are of the session that is over"
    assert turns.given_up(chain[0], 101) == [], "once"
    answered = Turns(chain, closed_loop=True, until_ns=1_000)
    assert answered.answered(RequestId("c"), 100) == [(102, chain[3]), (100, chain[4])]
    late = Turns(chain, closed_loop=True, until_ns=1_000)
    assert late.given_up(chain[1], 999) == []


def test_an_open_loop_goes_by_the_trace() -> None:
    assert played(CHAIN, {}, closed_loop=False) == ({"a": 0, "b": 10, "c": 20}, [])
    assert played(CHAIN, {}, closed_loop=False, until=20) == ({"a": 0, "b": 10}, [])


def test_a_turn_that_waits_for_nobody_known_is_refused() -> None:
    lost = [turn("b", after="a")]
    with pytest.raises(ValueError, match="b waits for a"):
        Turns(lost, closed_loop=True, until_ns=0)
    assert played(lost, {}, closed_loop=False) == ({"b": 0}, [])


@st.composite
def forests(draw: st.DrawFn) -> list[Arrival]:
    """Turns of which some wait for one before them."""
    made: list[Arrival] = []
    for number in range(draw(st.integers(1, 12))):
        after = draw(st.sampled_from(["", *(one.request_id for one in made)]))
        at = next((one.at_ns for one in made if one.request_id == after), 0) + draw(st.integers(0, 50))
        made.append(turn(f"t{number}", at=at, after=after, think=draw(st.integers(0, 50))))
    return made


@given(
    forests(), st.integers(0, 200),
    st.dictionaries(st.sampled_from([f"t{n}" for n in range(12)]), st.integers(0, 50)),
)  # fmt: skip
def test_the_set_is_fixed_whatever_is_answered(arrivals: list[Arrival], until: int, took: dict[str, int]) -> None:
    sent, unsent = played(arrivals, took, until=until)
    assert sorted([*sent, *unsent]) == sorted(one.request_id for one in arrivals if not until or one.at_ns < until)
    assert all(at_ns < until for at_ns in sent.values() if until)
    by_name = {one.request_id: one for one in arrivals}
    for name, at_ns in sent.items():
        one = by_name[name]
        expected = sent[one.after] + took[one.after] + one.think_ns if one.after else one.at_ns
        assert at_ns == expected
    for name in unsent:
        after = by_name[name].after
        assert after, "who waits for nobody is sent"
        too_late = after in sent and after in took and sent[after] + took[after] + by_name[name].think_ns >= until > 0
        assert after in unsent or after not in took or too_late


def test_more_load_brings_sessions_sooner_and_leaves_their_pace() -> None:
    arrivals = [
        turn("a", at=100),
        turn("d", at=104),
        turn("b", at=110, after="a", think=5),
        turn("c", at=120, after="b"),
    ]
    assert [(one.request_id, one.at_ns) for one in hastened(arrivals, 2, closed_loop=True)] == [
        ("a", 50), ("d", 52), ("b", 60), ("c", 70)
    ]  # fmt: skip
    assert [one.at_ns for one in hastened(arrivals, 2, closed_loop=False)] == [50, 52, 55, 60]
