"""A log run again: what was observed beside what is modelled, and the control's distance as the error of all of it."""

import sys
from functools import cache
from pathlib import Path

import msgspec
import pytest

from events import codec, subjects
from events.base import NS_PER_MS, NS_PER_S, PoolId
from events.control import PolicyConfigured
from events.log.base import Message
from policies.catalog import PRESETS
from replay.bench.far import far_players
from replay.bench.memory.report import Origin
from replay.cluster import Run, simulate
from replay.costmodel import STEP_MODELS, registered
from replay.faults import Fault, FaultKind
from replay.recorded import NotModelled, World, check, world_of
from replay.score import score
from replay.tried import candidate
from replay.whatif_closed import ClosedLoop, Measure, closed_loop, play_again, settings_of
from replay.workloads.base import Arrival
from replay.workloads.facts import arrivals_to_messages
from replay.workloads.mixed import Mixed, engines, mixed

CALM = Mixed(seconds=40, sessions=16, bursts=0, waves=1, wave_requests=4)
TIGHT = Mixed(seconds=40, sessions=130)
OFF_MAX = 0.05
"""Of the control's aggregates under pressure: lengths of refused requests are drawn."""


@cache
def recorded(shape: Mixed, preset: str = "default") -> Run:
    return simulate(mixed(5, shape), engines(), settings=PRESETS[preset])


def tried(run: Run, *names: str, **named: object) -> ClosedLoop:
    return closed_loop(run.messages, run.pool, [candidate(name) for name in names], **named)  # type: ignore[arg-type]


def by_name(found: ClosedLoop) -> dict[str, Measure]:
    return {one.name: one for one in found.measures}


@pytest.mark.parametrize("preset", ["default", "first_come", "honest_rival"])
def test_where_nothing_is_drawn_the_control_is_the_log_again(preset: str) -> None:
    found = tried(recorded(CALM, preset))
    assert (found.lengths.drawn, found.waiting_turns > 0) == (0, True)
    assert [one.error or 0 for one in found.measures] == [0] * len(found.measures)


def test_who_came_back_after_a_refusal_as_the_same_request_comes_back_again() -> None:
    alone = [msgspec.structs.replace(one, session="") for one in mixed(5, TIGHT)]
    run = simulate(alone, engines(), settings=PRESETS["honest_rival"], retry_rejected=True)
    found = tried(run)
    assert [one.scores.retried > 10 for one in found.columns] == [True, True]
    assert [one.error or 0 for one in found.measures] == [0] * len(found.measures), (
        "the same come back at the same time"
    )
    assert not world(recorded(TIGHT)).rejected_return


def test_under_pressure_the_control_is_near_what_was_observed() -> None:
    run = simulate(mixed(5, TIGHT), engines(), settings={"admission": {"late_max_ns": 0}})  # Refused, not served late.
    found = tried(run, "first_come")
    assert found.lengths.drawn > 10
    measures = by_name(found)
    for name in ("slo_attainment", "goodput_per_s", "finished", "tpot_p50", "output_tokens_per_s", "fairness_jain"):
        assert (measures[name].off or 0) < OFF_MAX, name
    assert measures["slo_attainment"].beyond == ("first_come",)


def test_every_column_says_where_it_comes_from_and_has_the_same_requests() -> None:
    run = recorded(TIGHT)
    found = tried(run, "first_come", "fifo")
    assert [(one.policy, one.origin) for one in found.columns] == [
        ("observed", Origin.OBSERVED), ("recorded", Origin.MODELLED), ("first_come", Origin.MODELLED),
        ("fifo", Origin.MODELLED),
    ]  # fmt: skip
    assert {one.scores.requests for one in found.columns} == {found.requests}
    assert {one.scores.window_ns for one in found.columns} == {found.span_ns}
    begins_ns = world_of(run.messages).first_ns
    assert found.columns[0].scores == score(run.messages, window_ns=found.span_ns, start_ns=begins_ns)
    assert {one.digest != "" for one in found.columns[1:]} == {True}
    assert tried(recorded(CALM), "fifo") == tried(recorded(CALM), "fifo")


def test_a_modelled_run_is_the_same_in_another_process() -> None:
    run = recorded(CALM)
    with far_players(Path(sys.executable), 1, play_again) as play_all:
        far = tried(run, "first_come", play_all=play_all)
    assert far == tried(run, "first_come")


def world(run: Run) -> World:
    return world_of(run.messages)


def test_the_world_of_a_log_is_the_one_it_was_made_in() -> None:
    run = recorded(CALM)
    found = world(run)
    offered = mixed(5, CALM)
    assert found.engines == list(engines())
    assert [(one.request_id, one.prompt_tokens, one.output_tokens) for one in found.arrivals] == [
        (one.request_id, one.prompt_tokens, one.output_tokens) for one in offered
    ]
    assert found.control_ns == NS_PER_MS
    assert found.settings["admission"]["mode"] == "enforce"
    assert (found.changed, found.left_out) == (0, {})


def test_turns_wait_as_long_after_the_answer_as_they_did() -> None:
    found = {one.request_id: one for one in world(recorded(CALM)).arrivals}
    ends = {
        event.event.request_id: event.ts_ns
        for message in recorded(CALM).messages
        for event in codec.decode(message.seq, message.subject, message.body)
        if event.event.event_kind() == "request_finished"
    }
    first_ns = min(one.at_ns for one in found.values())
    start_ns = next(
        event.ts_ns
        for message in recorded(CALM).messages
        for event in codec.decode(message.seq, message.subject, message.body)
        if event.event.event_kind() == "request_arrived"
    )
    waiting = [one for one in found.values() if one.after]
    assert waiting
    for one in waiting:
        assert found[one.after].session == one.session != ""
        assert ends[one.after] + one.think_ns == start_ns + one.at_ns - first_ns


def test_a_turn_that_came_before_the_answer_comes_at_its_own_time() -> None:
    turns = [
        Arrival(at_ns=n * NS_PER_MS, request_id=f"r{n}", prompt_tokens=4_000, output_tokens=400, session="s")
        for n in range(3)
    ]
    run = simulate(turns, [registered("e1", ["llama-3-8b"])])
    assert [one.after for one in world(run).arrivals] == ["", "", ""]


def test_a_refused_request_gets_the_length_of_an_answer_like_it_and_not_less_than_it_had() -> None:
    run = recorded(TIGHT)
    given = {one.request_id: one.output_tokens for one in mixed(5, TIGHT)}
    one, other = world_of(run.messages, seed=1), world_of(run.messages, seed=2)
    drawn = [a.request_id for a, b in zip(one.arrivals, other.arrivals, strict=True) if a != b]
    assert 0 < len(drawn) <= one.lengths.drawn
    lengths = set(given.values())
    for arrival in one.arrivals:
        assert arrival.output_tokens in lengths
        if arrival.request_id not in drawn:
            continue
        assert arrival.output_tokens <= arrival.tokens_max


def test_what_is_not_done_again_is_said() -> None:
    faults = [
        Fault(at_ns=5 * NS_PER_S, kind=FaultKind.ENGINE_LOST, pick=0, for_ns=2 * NS_PER_S),
        Fault(at_ns=6 * NS_PER_S, kind=FaultKind.CLIENT_GONE, pick=0),
    ]
    run = simulate(mixed(5, CALM), engines(), faults=faults)
    assert tried(run).notes[-2:] == ["1 clients gone: not done again", "1 engines lost: not done again"]


def test_the_control_goes_by_the_last_settings_and_says_so_where_they_changed() -> None:
    run = recorded(CALM)
    changed = PolicyConfigured(actor="admission", settings={"queue_max": 7})
    body = codec.encode(owner="o", ts_ns=2 * NS_PER_S, said=[codec.Said(event=changed)])
    half = len(run.messages) // 2
    subject = subjects.fact(run.pool, "policy", changed.event_kind())
    log = [*run.messages[:half], Message(half + 1, subject, body, {})]
    log += [message._replace(seq=message.seq + 1) for message in run.messages[half:]]
    found = world_of(log)
    assert (found.changed, found.settings["admission"]["queue_max"]) == (1, 7)
    assert "settings changed 1 times" in closed_loop(log, run.pool, []).notes[0]
    mine = settings_of(found, candidate("recorded", {"admission": {"queue_max": 9}}))
    assert (mine["admission"]["queue_max"], mine["quota"]) == (9, found.settings["quota"])
    assert settings_of(found, candidate("first_come"))["quota"] == {"enabled": "off"}


def test_an_engine_that_told_no_step_times_needs_a_model() -> None:
    bare = [msgspec.structs.replace(one, step=None) for one in engines()]
    log = [
        Message(n, subjects.fact(PoolId("p"), "sensor", "engine_registered"), body, {})
        for n, body in enumerate((codec.encode(owner="s", ts_ns=1, said=[codec.Said(event=one)]) for one in bare), 1)
    ]
    log += [
        message._replace(seq=message.seq + len(log))
        for message in arrivals_to_messages(mixed(5, CALM), engines()[0], pool=PoolId("p"))
    ]
    with pytest.raises(NotModelled, match="engine e1 told no step times"):
        check(world_of(log))
    model = STEP_MODELS["llama-3-8b_h100"]
    found = world_of(log, step_model=model)
    assert {one.step for one in found.engines} == {model}
    check(found)
    assert found.lengths.traced == len(found.arrivals)
    assert found.settings["quota"] == {"enabled": "off"}, "who never ran stays off"


def test_a_log_without_engines_or_arrivals_is_refused() -> None:
    only = list(arrivals_to_messages(mixed(5, CALM), engines()[0], pool=PoolId("p")))
    with pytest.raises(NotModelled, match="no engine is registered"):
        closed_loop(only, "p", [])
    with pytest.raises(NotModelled, match="nothing arrives"):
        closed_loop([], "p", [])
