"""Short cuts say what the long way says: a glance at who waits, and what a trial keeps while a decision is made."""

from typing import Any

import pytest
from hypothesis import given, settings, strategies

from policies import admission, forecast, shared_prefix, trial
from policies.accounts import blocks, slices_of
from policies.predictors.peak_memory import Growing, peak_blocks
from tests.policies.world import WILD, World, digest, live, numbers

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
    day = numbers(3_000, 11)
    said = digest(live(day, HURRIED, World()).said)
    assert sum(glances) > 1_000
    assert said == without_glances(day)


def without_glances(day: list[int]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "surely_waits", lambda *_asked: False)
        return digest(live(day, HURRIED, World()).said)


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
        running.append(Growing(forecast.reserved_tokens(one, chosen) + late, one.request.prompt_tokens))
    there = [each for name, each in account.residents.items() if name not in one.trial.withdrawn]
    for resident in [*there, *one.trial.promised]:
        held = resident.prompt_tokens + resident.output_tokens
        left = resident.output_reserved - resident.output_tokens
        if resident.decodes and not resident.request.stream:
            full_blocks += blocks(account, held + left)
        elif resident.decodes:
            common = shared_prefix.common_tokens(account.shared, slices_of(resident)) if parting else 0
            common_tokens += common
            running.append(Growing(left + (late if resident.first_ns == 0 else 0), held - common))
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
    trial.promise(before, gone)
    assert before.growth is None
    assert before.load is not account.load
