"""Whatever order things come in: no wrong bytes, no leak, no budget exceeded, and what was told is what is there."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events.base import EngineId
from events.decisions import Move, MoveReason, TransferOrdered
from events.slice import SlicesCleared, SlicesRemoved, SlicesStored, Tier, TransferFinished
from kvstore.tiers.slicefile import HEADER_BYTES
from services.vllm_plugin.ssd_jobs import file_name
from services.vllm_plugin.ssd_tier import SsdTier
from tests.engine_env.rig import SLICE_BYTES, Asked, Rig, extra_config, hints, keys, name, running

PROMPTS = ("p", "q", "s")
LENGTH_MAX = 5
DRAM_SLICES = 7
SSD_SLICES = 9

steps = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.sampled_from(PROMPTS), st.integers(1, LENGTH_MAX)),
        st.tuples(st.just("go on"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("abort"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
        st.tuples(st.just("drop"), st.sampled_from(PROMPTS), st.sampled_from([Tier.DRAM, Tier.SSD])),
        st.tuples(st.just("order"), st.sampled_from(PROMPTS), st.sampled_from([Move.PROMOTE, Move.DEMOTE, Move.DROP])),
        st.tuples(st.just("damage"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_any_order_of_requests_losses_and_damage(steps: list[tuple[str, object, object]]) -> None:
    with tempfile.TemporaryDirectory() as name_, pytest.MonkeyPatch.context() as monkeypatch:
        folder = Path(name_) / "ssd"
        settings_ = extra_config(ssd=folder, dram_slices=DRAM_SLICES, reset_keeps_ssd=True)
        settings_["tidegate"]["ssd_bytes"] = SSD_SLICES * (SLICE_BYTES + HEADER_BYTES)
        with running(settings_, monkeypatch) as rig:
            rig.bridge.orders._tell = rig.facts.append
            open_: list[Asked] = []
            for what, first, second in steps:
                _do(rig, open_, folder, what, first, second)
                _budgets_hold(rig)
            for asked in open_:
                rig.manager.on_request_finished(asked.context)
            rig.settle()
            _nothing_is_held(rig)
            _told_is_there(rig)
            given = sum(what == "order" for what, _, _ in steps)
            answered = [fact.order for fact in rig.told(TransferFinished)]
            assert len(answered) == len(set(answered)) == given, "each order is answered once"


def _do(rig: Rig, open_: list[Asked], folder: Path, what: str, first: object, second: object) -> None:
    match what, first, second:
        case "come", str(), int():
            prompt = keys(first, second)
            open_.append(rig.request(prompt, hints=hints(prompt)))
        case "go on", int(), _ if open_:
            asked = open_[first % len(open_)]
            hits = rig.look_up(asked)
            if hits is None:
                rig.step()
                return
            rig.load(asked, hits)
            rig.step(asked)
            rig.compute(asked)
            rig.manager.on_request_finished(asked.context)
            open_.remove(asked)
        case "abort", int(), _ if open_:
            asked = open_.pop(first % len(open_))
            rig.manager.on_request_finished(asked.context)
        case "step", _, _:
            rig.step()
        case "drop", str(), Tier():
            tier = rig.manager.primary_tier if second is Tier.DRAM else _ssd(rig)
            tier.drop(keys(first, LENGTH_MAX))
        case "order", str(), Move():
            _order(rig, first, second)
        case "damage", int(), _:
            files = sorted(folder.rglob("*.slice"))
            if files:
                _flip(files[first % len(files)])
        case "reset", _, _:
            rig.manager.reset_cache()


def _order(rig: Rig, prompt: str, move: Move) -> None:
    from_tier = Tier.SSD if move is Move.PROMOTE else Tier.DRAM
    to_tier = {Move.PROMOTE: Tier.DRAM, Move.DEMOTE: Tier.SSD}.get(move)
    said = TransferOrdered(
        order=f"m{len(rig.orders)}", engine_id=EngineId("rig"), move=move, reason=MoveReason.HOT,
        slices=tuple(name(one) for one in keys(prompt, LENGTH_MAX)), from_tier=from_tier, to_tier=to_tier,
    )  # fmt: skip
    rig.orders.append(said)
    rig.bridge.orders.give(said)


def _flip(path: Path) -> None:
    try:
        data = bytearray(path.read_bytes())
    except FileNotFoundError:
        return  # It was dropped meanwhile.
    data[-1] ^= 1
    made = path.with_suffix(".damaged")
    made.write_bytes(data)
    made.chmod(0o600)
    made.replace(path)


def _ssd(rig: Rig) -> SsdTier:
    tier = rig.manager.secondary_tiers[0]
    assert isinstance(tier, SsdTier)
    return tier


def _budgets_hold(rig: Rig) -> None:
    store = _ssd(rig).store
    assert store is not None
    assert store.bytes_used <= store.bytes_max
    assert rig.manager.primary_tier.chunks_used <= DRAM_SLICES


def _nothing_is_held(rig: Rig) -> None:
    dram = rig.manager.primary_tier
    assert rig.manager._pins == {}
    assert rig.manager._jobs == {}
    assert dram._num_evictable_cache_chunks == dram.chunks_used
    assert all(chunk.ref_cnt == 0 for chunk in dram._policy._chunks.values())


def _told_is_there(rig: Rig) -> None:
    """The facts, taken in one by one, come to what the tiers hold."""
    told: dict[Tier, set[str]] = {Tier.DRAM: set(), Tier.SSD: set()}
    for fact in rig.facts:
        match fact:
            case SlicesStored():
                told[fact.tier] |= set(fact.slices)
            case SlicesRemoved():
                assert set(fact.slices) <= told[fact.tier], "removed is what was stored, by that name"
                told[fact.tier] -= set(fact.slices)
            case SlicesCleared():
                told[fact.tier] = set()
    every = [one for prompt in PROMPTS for one in keys(prompt, LENGTH_MAX)]
    tier = _ssd(rig)
    assert tier.store is not None
    tier.drain_jobs()
    assert told[Tier.DRAM] == {name(one) for one in every if rig.manager.primary_tier.ready(one)}
    assert told[Tier.SSD] == {name(one) for one in every if tier.store.holds(file_name(one))}
    assert {file_name(one) for one in every if one in tier.choices} == {one for one, _ in tier.store.inventory()}
