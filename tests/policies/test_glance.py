"""Short cuts say what the long way says: a glance at who waits, and what a trial keeps while a decision is made."""

from typing import Any

import pytest
from hypothesis import given, settings, strategies
from msgspec.structs import replace

from events.decisions import DeferReason, RejectReason, RequestPreempted, WakeAsked
from events.engine import Health
from policies import admission, forecast, shared_prefix, trial
from policies.accounts import blocks, slices_of
from policies.admission_state import desk_of
from policies.judgement import output_of
from policies.predictors.peak_memory import peak_blocks
from tests.policies import words
from tests.policies.house import admitted, deferred, house, rejected
from tests.policies.words import MS, S, arrived, beat, engine, first_token, health, tick
from tests.policies.world import WILD, World, digest, live, numbers
from tests.spec import START_NS, at, said

DAYS = strategies.lists(strategies.integers(0, 2**20), max_size=200)
HURRIED = ("arrive",) * 12 + ("step", "tick", "tick", "measure", "race", "share", "configure", "beat")
"""More comes than can be served, so that many wait."""


@settings(max_examples=40, deadline=None)
@given(DAYS)
def test_whoever_waits_at_a_glance_waits_when_looked_at_in_full(day: list[int]) -> None:
    assert digest(live(day, HURRIED, World()).said) == without_glances(day)


def test_many_wait_at_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    glances: list[bool] = []

    def counted(*asked: Any) -> bool:
        glances.append(surely_waits(*asked))
        return glances[-1]

    surely_waits = admission.surely_waits
    monkeypatch.setattr(admission, "surely_waits", counted)
    day = numbers(3_000, 5)
    said = digest(live(day, HURRIED, World()).said)
    assert sum(glances) > 500
    assert said == without_glances(day)


def without_glances(day: list[int]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "surely_waits", lambda *_asked: False)
        return digest(live(day, HURRIED, World()).said)


def test_what_is_late_waits_at_a_glance_too(monkeypatch: pytest.MonkeyPatch) -> None:
    in_full: list[str] = []

    def counted(desk: Any, one: Any, prospects: Any) -> Any:
        in_full.append(one.request.request_id)
        return judge_late(desk, one, prospects)

    judge_late = admission.judge_late
    monkeypatch.setattr(admission, "judge_late", counted)
    spec = house(words.settings(backlog_max_ns=10 * MS, late_max_ns=2 * S)).after(arrived("a", 600, out=1))
    spec.when(arrived("b", 300, out=1, slack=40 * MS)).then(deferred("b", DeferReason.LATE))
    spec.when(at(20 * MS, tick(2))).then(said(WakeAsked))
    assert in_full == [], "behind 40 ms of prefill nobody has a turn"
    spec.when(at(60 * MS, first_token("a"))).then(admitted("b"))
    assert "b" in in_full


def test_nobody_waits_at_a_glance_where_nobody_is_to_wait() -> None:
    spec = house(arrived("b", 490, out=10, slack=10 * S), decoding=arrived("a", 600, out=100))
    spec.after(words.settings(deferral="off")).when(at(S, tick(2))).then(admitted("b"))


def test_nor_where_somebody_may_have_to_make_room() -> None:
    asks = words.settings(preemption="priority", tpot_margin_ppm=0)
    spec = house(asks, engines=(engine("e1", can_preempt=True),), decoding=arrived("a", 600, out=300))
    spec.after(arrived("b", 490, out=10, slack=4 * S, priority=1))
    spec.after(at(S, beat(a=20))).when(tick(2)).then_nothing()
    # `a` is slower than was predicted: it will not have ended in time.
    spec.after(at(2 * S, beat(a=40))).when(tick(3)).then(said(RequestPreempted, request_id="a"), admitted("b"))


def test_nor_where_no_engine_is_left_that_could_keep_its_pace() -> None:
    slow = replace(words.STEP, base_fs=100 * words.FS_PER_MS)
    spec = house(words.settings(backlog_max_ns=10 * MS), engines=(engine("e1"), engine("e2", step=slow)))
    spec.after(arrived("a", 600, out=1, slack=61 * MS), arrived("c", 600, out=1, slack=9 * S))
    assert list(spec.state.running.values()) == ["e1", "e2"]
    spec.after(arrived("b", 100, out=9, slack=9 * S, tpot=50 * MS))
    assert "b" in spec.state.lines.group_of
    spec.when(health("e1", Health.LOST)).then(rejected("b", RejectReason.SLO_INFEASIBLE))


def test_a_peak_from_what_is_kept_is_that_of_all_residents(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def checked(one: forecast.Prospect, chosen: Any, *, parting: bool = False) -> int:
        peak = llm_peak(one, chosen, parting=parting)
        assert peak == peak_of_all(one, chosen, parting=parting)
        asked.append(parting)
        return peak

    llm_peak = forecast.llm_peak
    monkeypatch.setattr(forecast, "llm_peak", checked)
    live(numbers(3_000, 7), WILD, World())
    live(numbers(3_000, 11), HURRIED, World())
    assert asked.count(True) > 10
    assert asked.count(False) > 300


def peak_of_all(one: forecast.Prospect, chosen: Any, *, parting: bool) -> int:
    """The peak by its definition: every resident looked at anew."""
    account, load = one.trial.account, one.trial.load
    chunk = max(1, account.batch_tokens - load.decode_seqs)
    late = -(-(load.prefill_tokens + one.request.prompt_tokens - one.cached_tokens) // chunk)
    running, full_blocks, common_tokens = [], 0, 0
    if one.request.kind.value == "llm":
        running.append((forecast.reserved_tokens(one, chosen) + late, one.request.prompt_tokens))
    there = [each for name, each in account.residents.items() if name not in one.trial.withdrawn]
    for resident in [*there, *one.trial.promised]:
        held = resident.prompt_tokens + resident.output_tokens
        left = resident.output_reserved - resident.output_tokens
        if resident.decodes and not resident.request.stream:
            full_blocks += blocks(account, held + left)
        elif resident.decodes:
            common = shared_prefix.common_tokens(account.shared, slices_of(resident)) if parting else 0
            common_tokens += common
            running.append((left + (late if resident.first_ns == 0 else 0), held - common))
    return full_blocks + blocks(account, common_tokens) + peak_blocks(running, block_tokens=account.block_tokens)


def test_what_a_trial_keeps_is_asked_anew_when_its_load_changes() -> None:
    world = live(numbers(3_000, 11), HURRIED, World())
    account = max(world.state.accounts.values(), key=lambda each: len(each.residents))
    before = trial.trial_of(account)
    grown = trial.growth_of(before, parting=False)
    assert trial.growth_of(before, parting=False) is grown
    name, gone = next((name, one) for name, one in account.residents.items() if one.decodes and one.request.stream)
    after = trial.growth_of(trial.without(before, {name: gone}), parting=False)
    assert len(after.begun) + len(after.in_prefill) == len(grown.begun) + len(grown.in_prefill) - 1


KEPT = ("backlog_ns", "head_done_ns", "growth", "growth_parting", "pace")


def test_a_trial_forgets_all_that_it_keeps_when_its_load_changes() -> None:
    spec = house(arrived("p", 200, out=10, tpot=20 * MS), decoding=arrived("a", 100, out=50, tpot=20 * MS))
    desk, request = desk_of(spec.state, START_NS), arrived("b", 100, out=10, tpot=20 * MS)
    foretold = output_of(desk.outputs, desk.settings, request)
    account = spec.state.accounts["e1"]
    for change in (trial.promise, lambda known, sent: trial.withdraw(known, {sent.request.request_id: sent})):
        known = trial.trial_of(account)
        one = forecast.prospect(known, request, foretold=foretold, now_ns=START_NS)
        forecast.blocked(one, desk.settings, START_NS)
        for parting in (False, True):
            trial.growth_of(known, parting=parting)
        assert [name for name in KEPT if getattr(known, name) is None] == []
        change(known, account.residents["p"])
        assert [name for name in KEPT if getattr(known, name) is not None] == []
        assert known.load is not account.load
