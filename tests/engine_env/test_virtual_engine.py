"""vLLM's own scheduler in virtual time: what every engine keeps, with and without overlapping steps; and its own."""

import sys
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from events.base import EngineId, Event, RequestId, SliceId
from events.decisions import EngineDirected, Move, MoveReason, TransferOrdered
from events.engine import Capability, EngineRegistered
from events.slice import (
    ChoiceMade,
    SlicesHit,
    SlicesRemoved,
    SlicesStored,
    Tier,
    TierMeasured,
    TransferEnd,
    TransferFinished,
)
from replay.bench.far import far_players
from replay.bench.simulated import Simulation
from replay.costmodel import registered
from replay.engines.job import Finished, Outcome
from replay.engines.tiers import TierSizes
from replay.engines.vllm_commons import VllmCommons
from replay.engines.vllm_prompts import Hasher, Prompts
from replay.engines.vllm_scheduler import VllmEngine, vllm_builder
from replay.faults import TransferFaults
from replay.workloads.mixed import Mixed, mixed
from services.engines.vllm_virtual import PLUGGED, play_on_vllm
from tests.replay.contract_engines import (
    BLOCK_BYTES,
    UNIT,
    EngineContract,
    LoadsContract,
    S,
    described,
    drain,
    ends,
    firsts,
    llm,
    offered,
    serve,
    units,
)

PROMPTS = Prompts(16)


class TestOverlapping(EngineContract):
    def make(self, registered: EngineRegistered, *, tiers: TierSizes | None = None) -> VllmEngine:
        return VllmEngine(registered, tiers=tiers, prompts=PROMPTS)


class TestStepByStep(EngineContract):
    def make(self, registered: EngineRegistered, *, tiers: TierSizes | None = None) -> VllmEngine:
        return VllmEngine(registered, tiers=tiers, prompts=PROMPTS, overlaps=False)


class TestLoads(LoadsContract):
    def make(self, registered: EngineRegistered, tiers: TierSizes, *, is_stock: bool) -> VllmEngine:
        plugged = None if is_stock else replace(PLUGGED, slice_tokens=UNIT)
        return VllmEngine(registered, tiers=tiers, prompts=PROMPTS, plugged=plugged)


@pytest.mark.parametrize("prompt", [1, 15, 16, 63, 64, 65, 200])
def test_kept_hashes_are_those_that_vllm_would_compute(prompt: int) -> None:
    prompts = Prompts(16)
    prefix = units("d", 200 // 32)[: prompt // 32]
    for _ in range(2):  # Once computed, once kept.
        known = prompts.hashes(prefix, 32)
        tokens = prompts.tokens("r", prompt, prefix, 32)
        ours = request_of(tokens, Hasher(prompts.hasher, known))
        assert len(tokens) == prompt
        assert len(known) == len(prefix) * 2
        assert ours.block_hashes == request_of(tokens, prompts.hasher).block_hashes
    for made in range(40):
        ours.append_output_token_ids(made)
    whole = request_of([*tokens, *range(40)], prompts.hasher)
    assert ours.block_hashes == whole.block_hashes


def request_of(tokens: list[int], hasher: Any) -> Request:
    return Request("r", tokens, SamplingParams(max_tokens=64), None, block_hasher=hasher)


def test_a_run_has_one_digest_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With vLLM's own offload, and with this project's classes in it."""
    reporting = Capability(embedding=True, reports_slices=True)
    fleet = [registered(name, ("llama-3-8b", "e5-mistral-7b"), kv_tokens=40_000, capability=reporting)
             for name in ("e1", "e2")]  # fmt: skip
    arrivals = tuple(one for one in mixed(3, Mixed()) if one.at_ns < 20 * S)

    def simulation(eviction: str, *, lazy: bool) -> Simulation:
        sizes = TierSizes(dram_bytes=2_000 * BLOCK_BYTES, eviction=eviction, lazy=lazy)
        return Simulation(arrivals=arrivals, engines=tuple(fleet), tiers={one.engine_id: sizes for one in fleet})

    asked = [simulation("arc", lazy=False), simulation("", lazy=True)]

    def digests(hash_seed: str) -> list[str]:
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        with far_players(Path(sys.executable), 1, play_on_vllm) as play:
            runs = play(asked, lambda _number, _run: None)
        assert all(run.scores.finished > 50 for run in runs)
        return [run.digest for run in runs]

    assert digests("0") == digests("1")


@pytest.mark.parametrize("overlaps", [True, False])
@pytest.mark.parametrize("eviction", ["", "lru", "arc"])
def test_blocks_and_requests_are_never_lost(eviction: str, overlaps: bool) -> None:
    tiers = TierSizes(dram_bytes=150 * BLOCK_BYTES, eviction=eviction)
    engine = VllmEngine(described(kv_blocks=90), tiers=tiers, prompts=PROMPTS, overlaps=overlaps)
    rng, inside = Random(7), list[str]()
    for at_ns, request in offered(9, 60):
        while (next_ns := engine.next_ns()) is not None and next_ns < at_ns:
            for outcome in engine.run_until(next_ns):
                if isinstance(outcome, Finished):
                    inside.remove(outcome.request_id)
            engine.check_integrity()
        engine.submit(request, at_ns)
        inside.append(request.request_id)
        if rng.random() < 0.3:
            assert engine.abort(RequestId(inside.pop(rng.randrange(len(inside)))), at_ns)
    assert sorted(ends(drain(engine))) == sorted(inside)
    engine.check_integrity()


def test_two_who_wait_for_the_same_load_both_go_on_when_it_is_there() -> None:
    slow = TierSizes(dram_bytes=1_000 * BLOCK_BYTES, dram_bytes_per_s=2_000_000_000)
    engine = VllmEngine(described(kv_blocks=300, batch_tokens=2_048), tiers=slow, prompts=PROMPTS)
    for number, document in enumerate(("d", "e", "f", "g")):
        engine.submit(llm(f"r{number}", 2_000, 2, units(document, 62)), number * 10 * S)
        drain(engine)
    engine.submit(llm("x", 2_000, 2, units("d", 62)), 40 * S)
    engine.submit(llm("y", 2_000, 2, units("d", 62)), 40 * S)

    found = drain(engine)

    loaded_ns = 124 * BLOCK_BYTES * S // 2_000_000_000
    assert all(end.cached_tokens >= 1_980 for end in ends(found).values())
    assert 0 <= firsts(found)["x"] - 40 * S - loaded_ns < 30_000_000


def test_what_its_caches_hold_is_told_by_the_names_of_the_prompts() -> None:
    engine = VllmEngine(described(kv_blocks=160), tiers=TierSizes(dram_bytes=1_000 * BLOCK_BYTES), prompts=PROMPTS)
    held: dict[Tier, set[str]] = {Tier.HBM: set(), Tier.DRAM: set()}
    hits: dict[Tier, int] = {Tier.HBM: 0, Tier.DRAM: 0}
    measured: dict[Tier, TierMeasured] = {}
    for number, document in enumerate(("d", "e", "d", "d")):
        engine.submit(llm(f"r{number}", 2_000, 2, units(document, 62)), number * 10 * S)
        drain(engine)
        for fact in engine.slice_facts(measure=True):
            match fact:
                case SlicesStored():
                    held[fact.tier] |= set(fact.slices)
                case SlicesRemoved():
                    held[fact.tier] -= set(fact.slices)
                case SlicesHit():
                    hits[fact.tier] += len(fact.slices)
                case TierMeasured():
                    measured[fact.tier] = fact

    assert set(units("d", 62)) <= held[Tier.HBM]
    assert held[Tier.DRAM] == {*units("d", 62), *units("e", 62)}
    assert hits == {tier: one.hits_total for tier, one in measured.items()}
    # The second "d" finds its begin in device memory and the rest in DRAM; the third all of it in device memory.
    assert hits[Tier.DRAM] >= 40
    assert hits[Tier.HBM] + hits[Tier.DRAM] == 2 * 62
    # Full slices of two documents, and the last blocks of the four prompts.
    assert 2 * 124 <= measured[Tier.DRAM].bytes_used // BLOCK_BYTES <= 2 * 124 + 4 * 2


def test_an_ssd_is_refused_since_there_is_none_in_virtual_time() -> None:
    with pytest.raises(ValueError, match="no SSD in virtual time"):
        VllmEngine(described(), tiers=TierSizes(dram_bytes=BLOCK_BYTES, ssd_bytes=BLOCK_BYTES), prompts=PROMPTS)


def test_what_one_engine_of_a_sharing_run_computed_all_have() -> None:
    commons = VllmCommons()
    first, other = (VllmEngine(described(), prompts=PROMPTS, commons=commons) for _ in range(2))
    first.submit(llm("a", 4 * 32, 2, units("d", 4)), 0)
    drain(first)
    other.submit(llm("b", 6 * 32, 2, units("d", 6)), 1 * S)

    assert ends(drain(other))["b"].cached_tokens == 4 * 32
    other.check_integrity()


def test_failing_and_stalling_transfers_only_take_longer() -> None:
    def served(faults: TransferFaults | None) -> list[Outcome]:
        tiers = TierSizes(dram_bytes=400 * BLOCK_BYTES)
        engine = VllmEngine(described(kv_blocks=90), tiers=tiers, faults=faults, prompts=PROMPTS)
        found = serve(engine, offered(4, 50))
        engine.check_integrity()
        return found

    faults = TransferFaults(seed=1, failing_ppm=200_000, stalling_ppm=100_000, stall_ns=S // 2)
    assert served(faults) == served(faults)
    assert sorted(ends(served(faults))) == sorted(ends(served(None)))
    assert served(faults)[-1].at_ns > served(None)[-1].at_ns


def plugged_run(
    seed: int, *, blocks: int = 120, lazy: bool = False, v2_runner: bool = False
) -> tuple[list[Outcome], list[Event], VllmEngine]:
    """An engine with this project's classes in it, under a directive, some orders and little memory."""
    tiers = TierSizes(dram_bytes=60 * 2 * BLOCK_BYTES, lazy=lazy)
    engine = VllmEngine(
        described(kv_blocks=blocks), tiers=tiers, prompts=PROMPTS, plugged=replace(PLUGGED, slice_tokens=32)
    )
    engine._scheduler.use_v2_model_runner = v2_runner
    engine.direct(
        EngineDirected(
            engine_id=EngineId("e1"), version=7, eviction="slo_aware", horizon_ns=60 * S, protect_ppm=900_000
        )
    )
    found, facts = list[Outcome](), list[Event]()
    for at_ns, request in offered(seed, 80):
        while (next_ns := engine.next_ns()) is not None and next_ns < at_ns:
            found += engine.run_until(next_ns)
        named = [SliceId(f"{int(key.split()[0][1:]):016x}{int(key.split()[1]):016x}") for key in request.prefix]
        engine.submit(msgspec.structs.replace(request, prefix=tuple(named), deadline_ns=at_ns + S), at_ns)
        facts += engine.slice_facts(measure=True)
    found += drain(engine)
    engine.check_integrity()
    return found, facts + engine.slice_facts(measure=True), engine


def test_this_projects_classes_run_in_it_on_the_engines_clock() -> None:
    found, facts, engine = plugged_run(5)

    assert type(engine._scheduler).__name__ == "TidegateScheduler"
    assert engine._scheduler._failures == 0
    assert len(ends(found)) == 80
    assert engine.measured().directive_version == 7
    choices = [fact for fact in facts if isinstance(fact, ChoiceMade)]
    assert {fact.directive_version for fact in choices} == {7}
    stored = {key for fact in facts if isinstance(fact, SlicesStored) and fact.tier is Tier.DRAM for key in fact.slices}
    assert stored
    assert all(len(key) == 32 for key in stored)
    assert (found, facts) == plugged_run(5)[:2]


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "written through"])
def test_whom_vllm_tells_of_its_steps_changes_nothing(lazy: bool) -> None:
    """It has two model runners; where there is Triton it tells the second one, and otherwise of those preempted."""

    def run(*, v2_runner: bool) -> Any:
        found, facts, engine = plugged_run(5, blocks=70, lazy=lazy, v2_runner=v2_runner)
        assert engine._scheduler._failures == 0
        return found, facts, engine.measured()

    first = run(v2_runner=False)
    assert first[2].preemptions_total > 3
    assert first == run(v2_runner=True)


def test_tiers_under_the_directive_want_classes_that_follow_it() -> None:
    build, tiers = vllm_builder(), TierSizes(dram_bytes=100 * BLOCK_BYTES)
    with pytest.raises(ValueError, match="plugged into vLLM"):
        build(described(), now_ns=0, tiers=tiers, faults=None, ssd=None, peer=lambda _engine_id: None)


def test_an_order_is_carried_out_and_answered() -> None:
    tiers = TierSizes(dram_bytes=200 * 2 * BLOCK_BYTES)
    engine = VllmEngine(described(), tiers=tiers, prompts=PROMPTS, plugged=replace(PLUGGED, slice_tokens=32))
    names = tuple(SliceId(f"{number:032x}") for number in range(8))
    engine.submit(llm("a", 8 * 32 + 1, 2, names), 0)
    drain(engine)
    engine.submit(llm("b", 40, 40), 1 * S)  # Steps, in which stores end and orders are taken up.
    drop = TransferOrdered(
        order="o1", engine_id=EngineId("e1"), move=Move.DROP, slices=names[4:], from_tier=Tier.DRAM,
        reason=MoveReason.WORTHLESS,
    )  # fmt: skip
    for _ in range(10):
        engine.run_until(engine.next_ns() or 0)
    engine.order(drop, engine._now_ns)
    drain(engine)

    facts = engine.slice_facts(measure=True)

    [answer] = [fact for fact in facts if isinstance(fact, TransferFinished)]
    assert (answer.order, answer.end, answer.slices_done) == ("o1", TransferEnd.DONE, 4)
    gone = [fact.slices for fact in facts if isinstance(fact, SlicesRemoved) and fact.tier is Tier.DRAM]
    assert {key for some in gone for key in some} == set(names[4:])
