"""Policies tried on a log: each difference stands by itself in the past that was recorded; the control has none."""

import dataclasses
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import NS_PER_S
from events.control import Ticked
from events.log.base import Message
from policies.catalog import ACTORS, PRESETS
from policies.decider import Decider
from replay.cluster import Run, simulate
from replay.differences import Differences
from replay.engines.tiers import TierSizes
from replay.faults import TransferFaults, draw_faults
from replay.outcome import text
from replay.tried import CONTROL, Candidate, candidate, tried
from replay.whatif import OpenLoop, open_loop
from replay.workloads.mixed import Mixed, engines, mixed
from tests.replay.owners import (
    DECIDERS,
    POOL,
    TOY,
    House,
    Owner,
    a_day,
    an_admission_day,
    arrived,
    configured,
    finished,
)

ROOT = Path(__file__).parents[2]
TIGHT = Mixed(seconds=20, sessions=60, bursts=1, burst_sessions=20, waves=1, wave_requests=6)


@cache
def tight() -> Run:
    """A demo-like run under pressure."""
    return simulate(mixed(5, TIGHT), engines())


@cache
def faulty() -> Run:
    """The same with tiers, and things that go wrong."""
    registered = [
        msgspec.structs.replace(one, capability=msgspec.structs.replace(one.capability, reports_slices=True))
        for one in engines()
    ]
    sizes = TierSizes(dram_bytes=2 << 30, ssd_bytes=8 << 30)
    return simulate(
        mixed(6, TIGHT), registered, holders=2, tiers={one.engine_id: sizes for one in registered},
        faults=draw_faults(3, span_ns=20 * NS_PER_S), transfer_faults=TransferFaults(seed=2, failing_ppm=100_000),
    )  # fmt: skip


def toy(slots: int) -> Candidate:
    return Candidate(name=f"slots={slots}", settings={"toy": {"slots": slots}})


def of_toy(
    log: list[Message], *candidates: Candidate, deciders: dict[str, Decider[Any]] = DECIDERS
) -> list[Differences]:
    found = open_loop(log, POOL, candidates, deciders=deciders)
    return [one.actors[0] for one in found.tried]


def nothing_differs(found: OpenLoop) -> None:
    (control,) = [one for one in found.tried if one.policy == "recorded"]
    assert control.total("words") == control.total("same") > 0
    assert (control.total("differ"), control.first) == (0, None)
    assert [one.failed for one in control.actors if one.failed] == []


@pytest.mark.parametrize("run", [tight, faulty])
def test_the_recorded_policy_has_no_difference_and_is_always_tried(run: Any) -> None:
    nothing_differs(open_loop(run().messages, "sim", []))


def test_no_owner_and_no_change_of_settings_in_the_log_is_a_difference() -> None:
    nothing_differs(open_loop(an_admission_day(arrivals=120).log, POOL, []))


def test_what_was_default_all_along_is_the_default_preset() -> None:
    found = open_loop(tight().messages, "sim", [candidate("default"), candidate("recorded"), candidate("first_come")])
    assert [one.policy for one in found.tried] == ["recorded", "default", "first_come"]
    assert [one.total("differ") == 0 for one in found.tried] == [True, True, False]


@pytest.mark.parametrize("run", [tight, faulty])
def test_every_preset_can_be_tried_and_every_word_is_counted_once(run: Any) -> None:
    found = open_loop(run().messages, "sim", [candidate(name) for name in PRESETS])
    assert [actor.failed for one in found.tried for actor in one.actors if actor.failed] == []
    for actor in (actor for one in found.tried for actor in one.actors):
        assert actor.words == actor.same + actor.amounts + actor.outcomes + actor.standing + actor.wakes
        assert sum(one.words for one in actor.tenants.values()) == actor.words
        assert sum(one.outcomes for one in actor.tenants.values()) == actor.outcomes
        assert actor.requests <= actor.outcomes <= sum(one.count for one in actor.changes)
        assert (actor.first is None) == (actor.outcomes == 0)


def test_each_difference_stands_in_the_recorded_past_not_in_one_of_its_own() -> None:
    house = House()
    owner = Owner(house, "a")
    for name in ("r0", "r1", "r2", "r3"):
        house.say(arrived(name))
        owner.answer()
    _control, found = of_toy(house.log, toy(3))
    # Two run in the log whenever it is asked: a third slot would take r2, and, as r2 did not get it, r3 as well.
    assert (found.words, found.same, found.outcomes) == (4, 2, 2)
    assert [(one.recorded, one.tried, one.count) for one in found.changes] == [
        ("request_deferred:seqs_max", "request_admitted", 2)
    ]


def test_settings_in_the_log_hold_for_a_candidate_only_where_it_leaves_them_open() -> None:
    house = House()
    owner = Owner(house, "a")
    house.say(configured(1))
    for name in ("r0", "r1"):
        house.say(arrived(name))
        owner.answer()
    whole = Candidate(name="whole", settings={"toy": {"slots": 2}}, whole=True)
    open_ = Candidate(name="default", whole=True)
    control, two, default = of_toy(house.log, whole, open_)
    assert (control.differ, two.outcomes, default.outcomes) == (0, 1, 1)
    assert of_toy(house.log, toy(1))[1].differ == 0


def test_what_differs_in_the_same_way_from_step_to_step_counts_once() -> None:
    house = House()
    owner = Owner(house, "a")
    for name in ("r0", "r1", "r2"):
        house.say(arrived(name))
    owner.answer()
    for n in range(5):
        house.say(Ticked(n=n))
    house.say(finished("r0"))
    owner.answer()
    (_, found) = of_toy(house.log, toy(3))
    assert (found.outcomes, found.standing, found.requests) == (2, 4, 1)
    assert [(one.recorded, one.tried) for one in found.changes] == [
        ("request_deferred:seqs_max", "request_admitted"), ("nothing", "request_admitted"),
    ]  # fmt: skip


def test_the_first_difference_is_told_with_its_causes_back_to_the_arrival() -> None:
    found = open_loop(tight().messages, "sim", [candidate("recorded", {"admission": {"placement": "affinity"}})])
    first = found.tried[1].first
    assert first is not None
    assert (first.actor, first.fields[:1]) == ("admission", ("engine_id",))
    assert text(first.recorded) != text(first.tried)
    assert [link.at for link in first.chain][:2] == [first.at, first.cause]
    assert first.chain[-1].event["type"] == "request_arrived.v1"
    assert first.chain[-1].event["request_id"] == first.about
    assert first.tenant == first.chain[-1].event["tenant"]


def test_other_amounts_are_no_other_outcome() -> None:
    found = open_loop(tight().messages, "sim", [candidate("recorded", {"admission": {"output_quantile_ppm": 500_000}})])
    (admission,) = [one for one in found.tried[1].actors if one.actor == "admission"]
    assert admission.amounts > 0
    assert "request_admitted.output_tokens_predicted" in admission.fields
    assert admission.first_amounts is not None


def test_a_policy_that_breaks_says_where_and_the_others_go_on() -> None:
    def decide(state: Any, event: Any, now_ns: int) -> Any:
        if state.slots == 7 and getattr(event, "request_id", "") == "r5":
            raise ZeroDivisionError("seven")
        return TOY.decide(state, event, now_ns)

    deciders: dict[str, Decider[Any]] = {"toy": dataclasses.replace(TOY, decide=decide)}
    control, seven, three = of_toy(a_day().log, toy(7), toy(3), deciders=deciders)
    assert seven.failed.endswith("ZeroDivisionError: seven")
    assert seven.words < control.words <= three.words
    assert (control.failed, three.failed) == ("", "")


def test_what_the_log_ends_before_is_not_compared() -> None:
    house = House()
    owner = Owner(house, "a")
    house.say(arrived("r0"))
    owner.answer()
    house.say(arrived("r1"), arrived("r2"), arrived("r3"))
    control, found = of_toy(house.log, toy(0))
    assert (control.words, found.words, found.outcomes) == (1, 1, 1)


def test_an_actor_that_never_ran_is_named_and_not_compared() -> None:
    found = open_loop(an_admission_day().log, POOL, [candidate("first_come")])
    assert found.not_run == [actor for actor in ACTORS if actor != "admission"]
    assert [one.actor for one in found.tried[1].actors] == ["admission"]


def test_decisions_of_other_code_are_the_past_all_the_same_and_counted() -> None:
    log = a_day().log
    by_other, by_same = (open_loop(log, POOL, [], deciders=DECIDERS, code_version=code) for code in ("2", "1"))
    assert (by_other.other_version, by_same.other_version) == (1, 0)
    assert by_other.tried == by_same.tried


@given(st.lists(st.sampled_from(["arrive", "finish", "tick", "answer"]), max_size=40), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_candidate_with_the_recorded_settings_never_differs(steps: list[str], slots: int) -> None:
    house = House()
    owner, names = Owner(house, "a", slots=slots), iter(range(100))
    for n, step in enumerate(["arrive", *steps, "arrive", "arrive", "arrive", "arrive", "answer"]):
        match step:
            case "arrive":
                house.say(arrived(f"r{next(names)}"))
            case "finish":
                house.say(finished("r0"))
            case "tick":
                house.say(Ticked(n=n))
            case _:
                owner.answer()
    control, same = of_toy(house.log, toy(slots))
    assert control.words > 0
    assert (control.differ, same.differ) == (0, 0)


@pytest.mark.parametrize(
    ("policy", "changes", "told"),
    [
        ("nonsense", {}, "allowed: recorded, default"),
        ("default", {"admission": {"nonsense": 1}}, "no such setting"),
        ("recorded", {"admission": {"mode": "maybe"}}, "allowed: "),
        ("recorded", {"admision": {"mode": "observe"}}, "no actor 'admision'"),
    ],
)
def test_what_cannot_be_tried_is_refused_with_what_is_allowed(policy: str, changes: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        candidate(policy, changes)


def test_what_a_candidate_would_write_is_what_it_changes_or_all_of_it() -> None:
    some = candidate("recorded", {"quota": {"deadband_ppm": 7}})
    assert some.actors() == ("quota",)
    assert (some.wanted(ACTORS["quota"]), some.wanted(ACTORS["admission"])) == ({"deadband_ppm": 7}, {})
    whole = candidate("first_come")
    assert whole.actors() == tuple(ACTORS)
    for decider in ACTORS.values():
        state = tried(decider, whole).initial()
        assert whole.wanted(decider) == msgspec.to_builtins(state.settings)
    assert CONTROL.is_control
    assert not whole.is_control


def test_the_answer_does_not_depend_on_the_process() -> None:
    script = (
        "from tests.replay.test_whatif import tight; from replay.whatif import open_loop; import msgspec\n"
        "from replay.tried import candidate\n"
        "print(msgspec.json.encode(open_loop(tight().messages, 'sim', [candidate('first_come')])).decode())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True, cwd=ROOT,
        ).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    assert len(said) == 1
