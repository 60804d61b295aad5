"""What the spec refuses, what stays vLLM's own, and what the delegate is asked."""

from pathlib import Path
from typing import Any

import pytest
import vllm
from vllm.v1.kv_offload.cpu.policies.lru import LRUCachePolicy
from vllm.v1.kv_offload.tiering.manager import TieringOffloadingManager

from events.base import EngineId
from events.decisions import EngineDirected
from events.slice import ChoiceMade, SlicesRemoved, SlicesStored, Tier, TierMeasured
from services.vllm_plugin.manager import TidegateManager
from services.vllm_plugin.naming import made_up
from services.vllm_plugin.spec import NAMESPACE, SWITCH, TidegateOffloadingSpec
from services.vllm_plugin.support import UnsupportedEngine
from tests.engine_env.rig import SLICE_BYTES, config, extra_config, hints, keys, name, running


def test_hybrid_model_is_refused() -> None:
    with pytest.raises(UnsupportedEngine, match=r"2 KV cache groups.*Tested: "):
        TidegateOffloadingSpec(config(extra_config(), groups=2))


def test_other_version_of_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "__version__", "0.33.0")
    with pytest.raises(UnsupportedEngine, match=r"vLLM 0\.33\.0 was not tested"):
        TidegateOffloadingSpec(config(extra_config()))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"tidegate": {"engine_id": "e", "slice_tokens": 64}}, "block_size is 32 tokens, and a slice has 64"),
        ({"tidegate": {"engine_id": "e", "slice_tokens": 32}, "cpu_bytes_to_use": 100}, "less than one slice"),
        ({"tidegate": {"slice_tokens": 32}}, "engine_id"),
        ({"tidegate": {"engine_id": "e", "slice_tokens": 32, "sdd_bytes": 1}}, "sdd_bytes"),
    ],
)
def test_wrong_settings_are_named(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TidegateOffloadingSpec(config(extra_config() | extra))


def test_ssd_needs_to_know_whose_kv_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = extra_config(ssd=tmp_path)
    del extra[NAMESPACE]
    with pytest.raises(ValueError, match="TidegateConnector"), running(extra, monkeypatch):
        pass


def test_switched_off_it_is_vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "off")
    manager = TidegateOffloadingSpec(config(extra_config())).get_manager()
    assert type(manager) is TieringOffloadingManager
    assert isinstance(manager.primary_tier._policy, LRUCachePolicy)
    manager.shutdown()


def test_vllms_policies_stay_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(extra_config(dram_slices=6) | {"eviction_policy": "lru"}, monkeypatch) as rig:
        assert isinstance(rig.manager, TidegateManager)
        assert isinstance(rig.manager.primary_tier._policy, LRUCachePolicy)
        first, second = keys("p", 4), keys("q", 4)
        rig.serve(first, hints=hints(first))
        rig.serve(second, hints=hints(second))
        [gone] = rig.told(SlicesRemoved)
        assert gone.slices == (name(first[3]), name(first[2]))
        assert rig.told(ChoiceMade) == []


def test_memory_without_a_name_leaves_with_its_last_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(Path("/dev/shm").glob("vllm_offload_rig-*"))
    with running(extra_config(), monkeypatch) as rig:
        rig.serve(keys("p", 2))
        assert set(Path("/dev/shm").glob("vllm_offload_rig-*")) == before


def test_pinned_and_needed_slices_stay_and_hot_ones_go_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(extra_config(dram_slices=6), monkeypatch) as rig:
        pinned, needed, hot, plain = (keys(prompt, 1) for prompt in "pnhx")
        for prompt in (pinned, needed, hot, plain):
            rig.serve(prompt, hints=hints(prompt))
        rig.bridge.direct(
            EngineDirected(
                engine_id=EngineId("rig"),
                version=7,
                eviction="lru",
                protect_ppm=0,
                pinned=(name(pinned[0]),),
                needed=(name(needed[0]),),
                hot=(name(hot[0]),),
            )
        )
        for number in range(8):
            rig.serve(keys(f"other {number}", 1))

        residency = rig.manager.memory.residency
        assert residency.holds(Tier.DRAM, pinned[0])
        assert residency.holds(Tier.DRAM, needed[0])
        removed = [one for fact in rig.told(SlicesRemoved) for one in fact.slices]
        assert removed[0] == name(plain[0])
        assert name(hot[0]) not in removed[:3]
        choices = rig.told(ChoiceMade)
        assert {choice.directive_version for choice in choices} == {7}
        assert [choice.chosen for choice in choices] == [(one,) for one in removed]


def test_slice_that_is_named_late_is_told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = keys("p", 2)
    with running(extra_config(), monkeypatch) as rig:
        rig.serve(prompt)
        assert rig.told(SlicesStored)[0].slices == tuple(made_up(one) for one in prompt)

        rig.serve(prompt, hints=hints(prompt))

        assert [fact.slices for fact in rig.told(SlicesRemoved)] == [(made_up(one),) for one in prompt]
        assert [fact.slices for fact in rig.told(SlicesStored)][1:] == [(name(one),) for one in prompt]
        assert all(rig.bridge.holds(Tier.DRAM, name(one)) for one in prompt)


def test_tiers_are_known_as_the_last_step_left_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(extra_config(dram_slices=8), monkeypatch) as rig:
        rig.serve(keys("p", 4))

        assert rig.bridge.measured[Tier.DRAM].bytes_used == 4 * SLICE_BYTES


def test_tiers_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "ssd"
    with running(extra_config(ssd=folder, dram_slices=8), monkeypatch) as rig:
        rig.serve(keys("p", 4))
        rig.serve(keys("p", 4))
        monkeypatch.setattr(rig.manager, "_measured_ns", 0)
        rig.step()
        dram, ssd = rig.told(TierMeasured)[-2:]

    assert (dram.tier, dram.bytes_max, dram.bytes_used) == (Tier.DRAM, 8 * SLICE_BYTES, 4 * SLICE_BYTES)
    assert (dram.hits_total, dram.misses_total, dram.slice_bytes) == (4, 4, SLICE_BYTES)
    assert (ssd.tier, ssd.bytes_max) == (Tier.SSD, 1 << 24)
    assert ssd.bytes_used >= 4 * SLICE_BYTES
    assert ssd.write_bytes_per_s > 0
    assert (ssd.read_queue_bytes, ssd.write_queue_bytes, ssd.failures_total) == (0, 0, 0)
