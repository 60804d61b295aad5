"""A run of the memory benchmark: what a system gives its engines, and what it was worth is the task's alone."""

import pytest
from msgspec.structs import replace

from events import codec
from events.engine import EngineRegistered
from policies.catalog import ACTORS
from replay.bench.memory.plan import STANDARD
from replay.bench.memory.report import EngineModel
from replay.bench.memory.sweeps import Sweep, swept, variants
from replay.bench.memory.systems import CAREFUL, LRU, OURS, RIVAL, SHIPPED, SYSTEMS, UNLIMITED
from replay.bench.memory.task import MemoryTask, behind, builder, grown_for, play, run_of, settings_of
from replay.bench.memory.tuning import with_eviction
from replay.bench.memory.workloads import WORKLOADS, Offer, arrivals, engines
from replay.engines.light import light_engine

OFFER = Offer(workload="mixed", seed=3, scale=0.5, seconds=30, engines=2)


def task(system: str, **changes: object) -> MemoryTask:
    made = MemoryTask(offer=OFFER, system=with_eviction(SYSTEMS[system], LRU), batch_tokens=2_048, seqs_max=256)
    return replace(made, **changes)


@pytest.mark.parametrize("system", [SHIPPED, CAREFUL, RIVAL, OURS, UNLIMITED])
def test_a_run_is_a_function_of_its_task(system: str) -> None:
    assert play(task(system)).digest == play(task(system)).digest


def test_all_systems_are_asked_for_the_same_requests() -> None:
    counted = {name: play(task(name)).scores.requests for name in (SHIPPED, CAREFUL, RIVAL, OURS, UNLIMITED)}
    assert len(set(counted.values())) == 1


def test_tiers_are_shares_of_the_workloads_unique_kv() -> None:
    described = engines(WORKLOADS["mixed"], 2, batch_tokens=2_048, seqs_max=256)
    unique = 10**9
    made, tiers = behind(SYSTEMS["careful_arc"], described, unique)
    assert {size.dram_bytes for size in tiers.values()} == {unique // 10 // 2}
    assert {size.eviction for size in tiers.values()} == {"arc"}
    assert all(one.capability.reports_slices for one in made)
    small = behind(SYSTEMS["tidegate_dram5"], described, unique)[1]
    assert {size.dram_bytes for size in small.values()} == {unique // 20 // 2}
    assert behind(SYSTEMS[SHIPPED], described, unique) == (described, {})


def test_unlimited_kv_holds_all_that_there_ever_is_and_is_shared() -> None:
    offered = arrivals(OFFER)
    described = engines(WORKLOADS["mixed"], 2, batch_tokens=2_048, seqs_max=256)
    made = grown_for(SYSTEMS[UNLIMITED], described, offered)
    assert all(
        one.kv_blocks * one.block_tokens >= sum(a.prompt_tokens + a.output_tokens for a in offered) for one in made
    )
    shared, alone = run_of(task(UNLIMITED)), run_of(task("prefix_affinity"))
    assert shared.scores.evictions == 0
    assert shared.scores.cached_token_share >= alone.scores.cached_token_share


def test_a_systems_own_settings_are_on_top_of_its_presets() -> None:
    made = replace(SYSTEMS[SHIPPED], settings={"admission": {"placement": "least_loaded"}})
    assert settings_of(made)["admission"] == {"mode": "observe", "placement": "least_loaded"}
    assert settings_of(made)["quota"] == {"enabled": "off"}


def test_live_engines_are_not_made_here() -> None:
    with pytest.raises(ValueError, match="--target"):
        builder(EngineModel.LIVE, SYSTEMS[OURS])


@pytest.mark.parametrize("sweep", list(Sweep))
def test_every_sweep_is_of_ours_and_changes_what_may_be_changed(sweep: Sweep) -> None:
    plan = swept(STANDARD, sweep)
    stage = plan.light
    assert stage.systems[:2] == (CAREFUL, OURS)
    assert set(stage.systems) <= plan.systems.keys()
    assert set(stage.workloads) <= WORKLOADS.keys()
    for name, system in variants(sweep).items():
        assert name == system.name
        assert system.preset == "default"
        for actor, settings in settings_of(system).items():
            ACTORS[actor].configure(ACTORS[actor].initial(), settings)


def test_with_series_a_result_has_quantities_over_time_and_flops_and_the_same_log() -> None:
    plain, drawn = play(task(OURS)), play(task(OURS, with_series=True))
    assert plain.series == ()
    assert drawn.series
    assert drawn.flops is not None
    assert 0 < drawn.flops.used <= drawn.flops.bound
    assert plain.digest == drawn.digest


@pytest.mark.parametrize("engine", [EngineModel.LIGHT, EngineModel.VLLM_SCHEDULER])
def test_engines_can_be_told_what_stock_vllm_can(engine: EngineModel) -> None:
    """Else policies would count on memory that no order gives back, and direct a memory that has its own rule."""
    run = run_of(task(OURS, engine=engine), light_engine)
    told = [
        recorded.event
        for message in run.messages
        for recorded in codec.decode(message.seq, message.subject, message.body)
        if isinstance(recorded.event, EngineRegistered)
    ]
    assert len(told) == OFFER.engines
    assert not any(one.capability.can_preempt for one in told)
    assert all(one.capability.device_lru for one in told)
