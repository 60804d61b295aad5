"""Laws of admission: what holds whatever happens."""

import os
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings, strategies

from events.decisions import (
    HolderLost,
    MiscoverageNoticed,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestRejected,
)
from events.request import HolderBeat, RequestAborted, RequestArrived, RequestFinished
from policies.accounts import Account, Load, count
from policies.admission import ADMISSION
from policies.decider import advance, begin
from policies.whereabouts import State
from tests.policies import words
from tests.policies.world import BLOCK_TOKENS, CALM, WILD, World, digest, live, numbers
from tests.spec import restored, snapshot, stored

DAYS = strategies.lists(strategies.integers(0, 2**20), max_size=60)
OBSERVED = tuple(verb for verb in WILD if verb != "configure")
few = settings(max_examples=60, deadline=None)


def recounted(account: Account) -> Load:
    load = Load()
    for resident in account.residents.values():
        count(load, account, resident, 1)
    return load


def check_books(state: State) -> None:
    """The sums are those of the residents, nothing is negative, and every request is in one place."""
    for account in state.accounts.values():
        assert account.load == recounted(account)
        assert min(msgspec.structs.astuple(account.load)) >= 0
        waiting_for_first = [name for name, one in account.residents.items() if one.prefilling]
        assert sorted(account.prefilling) == sorted(waiting_for_first)
    residents = [name for account in state.accounts.values() for name in account.residents]
    assert sorted(residents) == sorted(state.running)
    deferred = [name for line in state.lines.by_group.values() for name in line.entries]
    assert deferred == [name for name in deferred if name in state.lines.group_of]
    assert len(deferred) == len(state.lines.group_of)
    assert not any(name in state.running for name in deferred)
    for line in state.lines.by_group.values():
        assert line.work_ns == sum(one.work_ns for one in line.entries.values())
        assert line.entries, "an empty line is no line"


@few
@given(DAYS)
def test_the_books_agree_with_the_world_whatever_happens(day: list[int]) -> None:
    world = World()
    for number in day:
        live([number], WILD, world)
        check_books(world.state)
        assert sorted(world.state.running) == sorted(world.running)
        assert sorted(world.state.lines.group_of) == sorted(world.waiting)


@few
@given(DAYS)
def test_a_replay_says_what_was_said(day: list[int]) -> None:
    world = live(day, WILD, World())
    progress = begin(ADMISSION)
    assert [advance(ADMISSION, progress, recorded) for recorded in world.facts] == world.said
    assert snapshot(progress) == snapshot(world.progress)


@few
@given(DAYS, strategies.integers(1, 10))
def test_a_restart_from_a_snapshot_changes_no_decision(day: list[int], every: int) -> None:
    world = live(day, WILD, World())
    progress = begin(ADMISSION)
    for index, recorded in enumerate(world.facts):
        if index % every == 0:
            progress = restored(ADMISSION, progress)
        assert advance(ADMISSION, progress, recorded) == world.said[index]
    assert snapshot(progress) == snapshot(world.progress)


@few
@given(DAYS)
def test_recorded_decisions_rebuild_the_same_state(day: list[int]) -> None:
    world = live(day, WILD, World())
    progress = begin(ADMISSION)
    for recorded, said in zip(world.facts, world.said, strict=True):
        assert advance(ADMISSION, progress, recorded, said=said) == said
    assert snapshot(progress) == snapshot(world.progress)


@few
@given(DAYS, DAYS)
def test_observing_holds_up_nobody_and_refuses_only_what_nobody_can_serve(before: list[int], day: list[int]) -> None:
    world = live(before, WILD, World())
    world.say(words.settings(mode="observe"))
    world.tick(0)
    since = len(world.said)
    assert (world.state.lines.group_of, world.state.parked_on) == ({}, {})
    live(day, OBSERVED, world)
    for event in [event for decisions in world.said[since:] for event in decisions]:
        match event:
            case RequestRejected():
                assert event.reason in (RejectReason.NO_ENGINE, RejectReason.TOO_LONG)
            case RequestAdmitted():
                assert event.would is not None
            case _:
                assert isinstance(event, HolderLost | MiscoverageNoticed), event


def held(load: Load) -> tuple[int, int]:
    """What is promised. That time went on may move an answer in one piece from prefill to decode."""
    return load.seqs, load.blocks_final


REQUEST_FACTS = (RequestArrived, RequestFinished, RequestAborted, HolderBeat)


@few
@given(DAYS)
def test_what_is_said_twice_about_a_request_moves_nothing(day: list[int]) -> None:
    world = live(day, CALM, World())
    for recorded in [one for one in world.facts if isinstance(one.event, REQUEST_FACTS)][-10:]:
        event = recorded.event
        if isinstance(event, RequestArrived) and event.request_id not in (*world.running, *world.waiting):
            continue  # It has ended: the same id is a new request.
        books = {name: held(one.load) for name, one in world.state.accounts.items()}
        waiting = dict(world.state.lines.group_of)
        trial = restored(ADMISSION, world.progress)
        decisions = advance(ADMISSION, trial, stored(trial.seq + 1, event, world.ns))
        if not decisions:
            assert {name: held(one.load) for name, one in trial.state.accounts.items()} == books
            assert trial.state.lines.group_of == waiting
        assert all(decision.request_id in waiting for decision in decisions if isinstance(decision, RequestAdmitted))


@few
@given(DAYS)
def test_when_all_has_ended_nothing_is_reserved_and_nobody_waits(day: list[int]) -> None:
    world = live(day, WILD, World())
    world.say(words.settings(mode="enforce"))
    for _ in range(40):  # Seconds: longer than `late_max_ns`.
        world.beat(0)
        world.beat(1)
        world.tick(9)
    assert not world.waiting, "every request got a final word"
    for name, run in list(world.running.items()):
        del world.running[name]
        world.say(words.finished(name, run.engine_id, out=run.tokens))
    state = world.state
    assert all(account.load == Load() for account in state.accounts.values())
    assert (state.running, state.lines.by_group, state.fresh) == ({}, {}, None)


@few
@given(DAYS)
def test_with_exact_predictions_no_engine_ever_holds_more_than_its_budget(day: list[int]) -> None:
    world = World(
        own_tenants=True, engines=(words.engine("e1", seqs_max=100), words.engine("e2", seqs_max=100, blocks=50))
    )
    world.say(words.settings(safety_ppm=0, output_quantile_ppm=1_000_000, tpot_margin_ppm=0, ttft_margin_ppm=100_000))
    blocks_of = {one.engine_id: one.kv_blocks for one in world.engines}
    for number in [*day, *numbers(40, 3)]:
        live([number], ("arrive", "arrive", "step"), world)
        for engine_id, kv_blocks in blocks_of.items():
            held = world.blocks_held(engine_id)
            assert held <= kv_blocks, engine_id


def test_the_day_of_the_budget_law_is_under_pressure() -> None:
    """Else the law above would say nothing."""
    world = World(own_tenants=True, engines=(words.engine("e1", seqs_max=100, blocks=50),))
    live(numbers(200, 3), ("arrive", "arrive", "step"), world)
    reasons = [event.reason for said in world.said for event in said if isinstance(event, RequestDeferred)]
    assert reasons.count("kv_budget") > 10
    assert world.engines[0].block_tokens == BLOCK_TOKENS


def test_a_long_wild_day_sees_every_kind_of_decision() -> None:
    world = live(numbers(3_000, 10), WILD, World())
    said = [event for decisions in world.said for event in decisions]
    reasons = {getattr(event, "reason", "") for event in said if isinstance(event, RequestRejected | RequestDeferred)}
    assert {type(event).__name__ for event in said} >= {
        "RequestAdmitted", "RequestDeferred", "RequestRejected", "HolderLost", "WakeAsked",
    }  # fmt: skip
    assert len(reasons) >= 6, reasons
    assert any(event.would for event in said if isinstance(event, RequestAdmitted))


@pytest.mark.parametrize("seed", ["0", "1"])
def test_every_process_decides_the_same(seed: str) -> None:
    env = {**os.environ, "PYTHONHASHSEED": seed}
    run = subprocess.run(
        [sys.executable, "-m", "tests.policies.world"], env=env, capture_output=True, text=True, check=True
    )
    assert run.stdout == digest(live(numbers(3_000, 7), WILD, World()).said)


def test_the_size_of_the_state_does_not_grow_with_the_log() -> None:
    world = live(numbers(1_500, 5), CALM, World())
    early = len(snapshot(world.progress))
    live(numbers(3_000, 6), CALM, world)
    assert len(snapshot(world.progress)) < early * 1.5
