"""Why a decision was made: its moment, found again by replay."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from events import codec
from events.base import Cause, Event, PoolId
from events.control import PolicyConfigured
from events.log.base import Message
from policies.admission import ADMISSION
from policies.catalog import ACTORS
from policies.decider import Decider
from replay.explain import DIFFERS, FOUND, NOT_SOUGHT, SAME, Explained, Wanted, explain_many, try_flips
from replay.outcome import text
from replay.story import answers_to, near, record_at, story_of
from replay.virtual_log import VirtualLog
from tests.policies.words import MS, S, arrived, engine, finished, first_token, measured, settings, tick
from tests.spec import START_NS

POOL = PoolId("why")
ALONE = {"admission": ADMISSION}
Day = list[tuple[int, Event]]
DAY: Day = [
    (0, settings(safety_ppm=0, backlog_max_ns=0, tpot_margin_ppm=0)), (0, engine()), (0, tick(0)),
    (0, arrived("a", 500, out=400)), (10 * MS, arrived("b", 300, now=10 * MS, out=100, slack=3 * S)),
    (60 * MS, first_token("a")), (20 * MS, arrived("long", 5_000, now=20 * MS)),
    (500 * MS, finished("a", out=40)), (600 * MS, first_token("b")), (900 * MS, finished("b", out=90)),
]  # fmt: skip


def lived(day: Day = DAY, *, deciders: Mapping[str, Decider[Any]] = ALONE) -> list[Message]:
    log = VirtualLog(POOL, deciders, lambda _event, _place: None)
    log.now_ns = START_NS
    log.start({})
    for at_ns, event in day:
        log.now_ns = max(log.now_ns, START_NS + at_ns)
        log.say("gateway", "h", event)
    return log.messages


def places_of(log: list[Message], request_id: str) -> tuple[str, ...]:
    story = story_of(log, request_id)
    assert story is not None
    return story.decisions


def explained(log: list[Message], *places: str, **named: Any) -> list[Explained]:
    return list(explain_many(log, places, **named))


def test_a_story_goes_from_the_arrival_to_the_end() -> None:
    story = story_of(lived(), "b")
    assert story is not None
    assert [step.event["type"].partition(".")[0] for step in story.steps] == [
        "request_arrived", "request_deferred", "request_admitted", "first_token_seen", "request_finished",
    ]  # fmt: skip
    assert story.ended
    assert [step.since_ns for step in story.steps] == [0, 0, 490 * MS, 590 * MS, 890 * MS]
    beside = {one.name: (one.predicted, one.actual) for one in story.beside}
    assert beside["output_tokens"] == (100, 90)
    assert beside["ttft_ns"][1] == 100 * MS


def test_a_story_without_an_end_says_so() -> None:
    story = story_of(lived(DAY[:5]), "b")
    assert story is not None
    assert not story.ended


def test_a_deferral_tells_what_was_known_and_what_would_have_changed_it() -> None:
    log = lived()
    deferred, admitted = explained(log, *places_of(log, "b"), flips=Wanted.EVERY_KIND)
    assert text(deferred.outcome) == "defer"
    assert deferred.rule.code == "request_deferred:kv_budget"
    [request] = deferred.knew["requests"]
    assert request["request_id"] == "b"
    assert request["engines"][0]["peak_blocks"] > request["engines"][0]["budget_blocks"]
    assert deferred.flip_status == FOUND
    assert deferred.flip in deferred.flips
    assert [flip.kind for flip in deferred.flips] == ["setting", "request", "engine"]
    assert all(flip.outcome != deferred.outcome for flip in deferred.flips)
    assert text(admitted.outcome) == "admit e1"
    assert admitted.recomputed == SAME


def test_what_is_stated_holds_in_another_replay() -> None:
    log = lived()
    places = [place for name in ("a", "b", "long") for place in places_of(log, name)]
    flips = {one.at: one.flip for one in explained(log, *places) if one.flip is not None}
    assert set(flips) == set(places)
    tried = list(try_flips(log, flips))
    assert [one.at for one in tried] == sorted(places, key=lambda place: int(place.partition(".")[0]))
    for one in tried:
        assert one.was == one.before != one.flipped


def test_kv_that_is_one_block_more_is_where_the_deferral_ends() -> None:
    log = lived()
    flips = explained(log, places_of(log, "b")[0], flips=Wanted.EVERY_KIND)[0].flips
    [kv] = [flip for flip in flips if flip.name == "kv_blocks"]
    # 500 + 400 tokens of a and 300 + 100 of b, whose prefill begins behind a's: every block that both will hold.
    assert (kv.value, kv.to, kv.before) == (100, kv.before + 1, kv.to - 1)
    roomy = [(at, engine(blocks=kv.to) if i == 1 else event) for i, (at, event) in enumerate(DAY)]
    tight = [(at, engine(blocks=kv.before) if i == 1 else event) for i, (at, event) in enumerate(DAY)]
    first_words = [explained(log, places_of(log, "b")[0])[0].outcome for log in (lived(roomy), lived(tight))]
    assert [text(words) for words in first_words] == ["admit e1", "defer"]


def test_nothing_moves_in_the_replay_that_is_looked_at() -> None:
    log = lived()
    every = [place for name in ("a", "b", "long") for place in places_of(log, name)]
    alone = [explained(log, place)[0] for place in every]
    together = {one.at: one for one in explained(log, *every)}
    assert [together[one.at] for one in alone] == alone


def test_what_other_code_decided_is_told_as_it_stands() -> None:
    log = lived()
    [place, _] = places_of(log, "b")
    [same] = explained(log, place, code_version="another")
    assert same.other_version
    assert same.recomputed == SAME
    assert same.flip_status == FOUND
    altered = [with_other_engine(message) if message.seq == int(place.split(".")[0]) else message for message in log]
    [differs] = explained(altered, place, code_version="another")
    assert differs.recomputed == DIFFERS
    assert differs.flip_status == NOT_SOUGHT
    assert differs.decision["type"] == "request_rejected.v1"
    assert [said["type"] for said in differs.computed] == ["request_deferred.v1"]


def with_other_engine(message: Message) -> Message:
    """The decision as other code might have made it: a refusal."""
    body = msgspec.json.decode(message.body)
    said = body["said"][0]["event"]
    body["said"][0]["event"] = {
        "type": "request_rejected.v1", "request_id": said["request_id"], "reason": "rejected_kv_budget",
    }  # fmt: skip
    return message._replace(body=msgspec.json.encode(body))


@pytest.mark.parametrize("place", ["9999.0", "1.0", "2.0"])
def test_where_no_decision_stands_nothing_is_explained(place: str) -> None:
    assert explained(lived(), place) == []


def test_a_fact_names_the_decisions_that_answer_it() -> None:
    log = lived()
    story = story_of(log, "a")
    assert story is not None
    arrival = story.steps[0].at
    assert record_at(log, Cause.parse(arrival))[0] is not None
    assert answers_to(log, Cause.parse(arrival)) == story.decisions[:1]


def test_an_id_that_is_not_there_has_near_ones() -> None:
    assert story_of(lived(), "lomg") is None
    assert near(lived(), "lomg") == ["long"]
    assert near(lived(), "ong") == ["long"], "a part of it, as a client's own id is one of <client>/<id>"


PREEMPTED: Day = [
    (0, settings(preemption="priority", tpot_margin_ppm=0, safety_ppm=0, backlog_max_ns=0)),
    (0, engine(can_preempt=True)), (0, tick(0)), (0, arrived("low", 500, out=400)), (50 * MS, first_token("low")),
    (60 * MS, arrived("high", 400, now=60 * MS, out=100, priority=1)), (110 * MS, first_token("high")),
    (600 * MS, finished("high", out=50)),
]  # fmt: skip


def test_a_preemption_tells_who_it_is_for_and_what_would_have_spared_the_victim() -> None:
    log = lived(PREEMPTED)
    first, gave_way, resumed = explained(log, *places_of(log, "low"), flips=Wanted.EVERY_KIND)
    assert [text(one.outcome) for one in (first, gave_way, resumed)] == ["admit e1", "preempt e1", "resume e1"]
    [asking] = gave_way.knew["requests"]
    assert (asking["request_id"], asking["priority"]) == ("high", 1)
    assert asking["engines"][0]["blocked"] == "kv_budget"
    assert {flip.kind for flip in gave_way.flips} >= {"request", "engine"}
    spared = next(flip for flip in gave_way.flips if flip.kind == "request")
    assert spared.of == "high"
    assert resumed.knew["requests"][0]["rule"]["would"] == "resume"
    assert all(one.flip is not None for one in (first, gave_way, resumed))


def test_who_gets_the_room_is_admitted_for_that_reason() -> None:
    log = lived(PREEMPTED)
    [admitted] = explained(log, *places_of(log, "high"))
    assert "low gives way on e1" in admitted.rule.text
    tried = list(try_flips(log, {admitted.at: admitted.flip} if admitted.flip is not None else {}))
    assert [one.was == one.before != one.flipped for one in tried] == [True]
    story = story_of(log, "high")
    assert story is not None
    assert "request_preempted.v1" in [step.event["type"] for step in story.steps], "and its story names who gave way"


@pytest.mark.parametrize("kind", ["shares_set", "engine_directed", "holder_lost"])
def test_decisions_of_every_actor_are_explained(kind: str) -> None:
    silent = [(n * S, tick(n)) for n in range(1, 12)]
    day: Day = [(0, engine(embedding=True)), (0, tick(0)), (0, arrived("a", 500, out=400)), (1, measured()), *silent]
    log = lived(day, deciders=ACTORS)
    places = [
        str(one.at) for message in log for one in codec.decode(message.seq, message.subject, message.body)
        if one.event.event_kind() == kind
    ]  # fmt: skip
    assert places
    for one in explained(log, *places):
        assert one.recomputed == SAME
        assert one.rule.text
        assert one.knew
        assert one.flip is not None


def test_a_setting_changed_live_counts_from_its_place_on() -> None:
    changed = PolicyConfigured(actor="admission", settings={"safety_ppm": 400_000})
    log = lived([*DAY[:3], (0, changed), *DAY[3:]])
    [one] = explained(log, places_of(log, "a")[0])
    assert one.knew["settings"]["safety_ppm"] == 400_000
