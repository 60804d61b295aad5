"""A shadow stands where the actor stands, from whatever record on it begins."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events import codec
from events.base import Cause, Event
from events.log.base import Message
from policies.admission import ADMISSION
from policies.decider import Decider
from replay.differences import Difference
from replay.replayer import Recall
from replay.shadow import Shadow
from replay.tried import Candidate, candidate
from replay.whatif import open_loop
from tests.replay.owners import POOL, TOY, House, Owner, a_day, an_admission_day, arrived, configured
from tests.replay.test_whatif import tight


def driven(
    log: list[Message], of: Candidate, decider: Decider[Any], *, since_seq: int = 0,
    quarantined: frozenset[Cause] = frozenset(),
) -> tuple[Shadow, list[Event], list[Difference]]:  # fmt: skip
    """A shadow at the end of a log that it compared from behind a message on; all that it said, and what differed."""
    shadow, recall = Shadow(decider, of), Recall(log, decider.name)
    decided, new = list[Event](), list[Difference]()
    if not since_seq:
        shadow.begin()
    for message in log:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            said = recall.at(recorded.at)
            if recall.ended:
                return shadow, decided, new
            ours, differing = shadow.take(recorded, said, quarantined=quarantined)
            decided += ours
            new += differing
        if message.seq == since_seq:
            shadow.begin()
    return shadow, decided, new


def toy(slots: int) -> Candidate:
    return Candidate(name=f"slots={slots}", settings={"toy": {"slots": slots}})


@given(st.integers(0, 400))
@settings(max_examples=15, deadline=None)
def test_wherever_it_begins_the_settings_in_force_make_no_difference(since_seq: int) -> None:
    run = tight()
    of = Candidate(name="same", settings={"admission": {"mode": "enforce"}})
    shadow, decided, new = driven(run.messages, of, ADMISSION, since_seq=since_seq)
    assert (shadow.found.differ, new, shadow.found.failed) == (0, [], "")
    assert shadow.found.words == shadow.found.same > 0
    assert len(decided) >= shadow.found.words


def test_before_it_begins_nothing_is_asked_and_nothing_is_compared() -> None:
    asked = list[int]()

    def decide(state: Any, event: Event, now_ns: int) -> list[Event]:
        asked.append(now_ns)
        return TOY.decide(state, event, now_ns)

    log = a_day().log
    driven(log, toy(9), dataclasses.replace(TOY, decide=decide), since_seq=len(log) + 1)
    assert asked == []
    everything, *_ = driven(log, toy(9), TOY)
    half, *_ = driven(log, toy(9), TOY, since_seq=len(log) // 2)
    assert 0 < half.found.words < everything.found.words


def test_it_begins_from_the_recorded_past_whatever_it_would_have_done_before() -> None:
    house = House()
    owner = Owner(house, "a")
    for name in ("r0", "r1", "r2", "r3"):
        house.say(arrived(name))
        owner.answer()
    since_seq = len(house.log)
    house.say(arrived("r4"))
    owner.answer()
    shadow, decided, _ = driven(house.log, toy(3), TOY, since_seq=since_seq)
    # Two run and two wait: with a third slot it goes at once, though r2 would have had that long before.
    assert [one.event_kind() for one in decided] == ["request_admitted"]
    assert (shadow.found.words, shadow.found.outcomes) == (1, 1)


def test_what_the_log_says_of_settings_later_holds_where_the_candidate_leaves_it_open() -> None:
    house = House()
    owner = Owner(house, "a")
    house.say(arrived("r0"))
    owner.answer()
    since_seq = len(house.log)
    house.say(configured(1))
    house.say(arrived("r1"))
    owner.answer()
    open_ = Candidate(name="nothing", settings={})
    assert driven(house.log, open_, TOY, since_seq=since_seq)[0].found.differ == 0
    assert driven(house.log, toy(2), TOY, since_seq=since_seq)[0].found.outcomes == 1


def test_a_policy_that_breaks_takes_nothing_more() -> None:
    def decide(state: Any, event: Event, now_ns: int) -> list[Event]:
        if getattr(event, "request_id", "") == "r5":
            raise ZeroDivisionError("five")
        return TOY.decide(state, event, now_ns)

    shadow, *_ = driven(a_day().log, toy(2), dataclasses.replace(TOY, decide=decide))
    assert shadow.found.failed.endswith("ZeroDivisionError: five")
    whole, *_ = driven(a_day().log, toy(2), TOY)
    assert 0 < shadow.found.words < whole.found.words


def test_records_that_the_actor_skips_are_skipped() -> None:
    house = House()
    owner = Owner(house, "a")
    house.say(arrived("r0"))
    place = Cause(len(house.log), 0)
    owner.answer(quarantined=frozenset({place}))
    house.say(arrived("r1"))
    owner.answer(quarantined=frozenset({place}))
    assert driven(house.log, toy(2), TOY, quarantined=frozenset({place}))[0].found.differ == 0
    assert driven(house.log, toy(2), TOY)[0].found.outcomes == 1


@pytest.mark.parametrize(
    "of", [candidate("recorded"), candidate("default"), candidate("recorded", {"admission": {"mode": "observe"}})],
    ids=lambda of: of.name,
)  # fmt: skip
def test_from_the_first_record_on_it_is_the_open_loop_whoever_owned_the_actor(of: Candidate) -> None:
    log = an_admission_day(arrivals=120).log
    shadow, _, new = driven(log, of, ADMISSION)
    found = open_loop(log, POOL, [of]).tried[-1].actors[0]
    assert shadow.found == found
    assert len(new) == found.outcomes
    assert (found.differ == 0) == of.is_control
