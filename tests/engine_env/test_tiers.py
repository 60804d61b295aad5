"""Slices go down to DRAM and SSD, come up again as they went, and are told of in the log's names."""

import time
from pathlib import Path
from typing import Any

import pytest

from events.slice import SlicesCleared, SlicesHit, SlicesRemoved, SlicesStored, Tier
from kvstore.tiers.slicefile import HEADER_BYTES
from services.vllm_plugin import ssd_tier
from services.vllm_plugin.ssd_names import NAMES_FILE
from tests.engine_env.rig import SLICE_BYTES, extra_config, hints, keys, name, running


@pytest.fixture
def ssd(tmp_path: Path) -> Path:
    folder = tmp_path / "ssd"
    folder.mkdir(mode=0o700)
    return folder


def _slices(facts: list[Any], tier: Tier) -> list[str]:
    return [one for fact in facts if fact.tier is tier for one in fact.slices]


def test_what_was_computed_once_is_loaded_from_dram(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(extra_config(), monkeypatch) as rig:
        assert rig.serve(keys("p", 5)) == 0
        assert rig.serve(keys("p", 5)) == 5
        assert rig.serve(keys("p", 3) + keys("q", 3)[1:]) == 3


def test_facts_use_the_names_that_the_gateway_gave(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        prompt = keys("p", 4)
        names = [name(one) for one in prompt]
        rig.serve(prompt, hints=hints(prompt))
        rig.serve(prompt, hints=hints(prompt))

        assert _slices(rig.told(SlicesStored), Tier.DRAM) == names
        assert sorted(_slices(rig.told(SlicesStored), Tier.SSD)) == sorted(names)
        assert _slices(rig.told(SlicesHit), Tier.DRAM) == names
        assert _slices(rig.told(SlicesHit), Tier.SSD) == []


def test_what_leaves_dram_is_told_and_found_on_the_ssd(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd, dram_slices=6), monkeypatch) as rig:
        first, second = keys("p", 4), keys("q", 4)
        rig.serve(first, hints=hints(first))
        rig.serve(second, hints=hints(second))
        gone = _slices(rig.told(SlicesRemoved), Tier.DRAM)
        assert gone == [name(first[3]), name(first[2])], "children before their parents"

        assert rig.serve(first, hints=hints(first)) == 4
        assert sorted(_slices(rig.told(SlicesHit), Tier.SSD)) == sorted(gone)


def test_prompt_that_fills_dram_comes_up_whole_beside_another(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd, dram_slices=6), monkeypatch) as rig:
        first, second = keys("p", 6), keys("q", 6)
        for prompt in (first, second, first, second, first):
            rig.serve(prompt)
        assert rig.serve(second) == 6
        assert rig.serve(first) == 6


def test_slices_are_found_again_by_name_after_a_restart(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    prompt = keys("p", 4)
    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        rig.serve(prompt, hints=hints(prompt))

    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        assert sorted(_slices(rig.told(SlicesStored), Tier.SSD)) == sorted(name(one) for one in prompt)
        assert rig.serve(prompt) == 4
        assert len(_slices(rig.told(SlicesHit), Tier.SSD)) == 4


@pytest.mark.parametrize("arrived", [False, True])
def test_reset_while_slices_come_up_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, ssd: Path, arrived: bool
) -> None:
    prompt = keys("p", 4)
    with running(extra_config(ssd=ssd, reset_keeps_ssd=True), monkeypatch) as rig:
        rig.serve(prompt)
        rig.manager.reset_cache()
        asked = rig.request(prompt)
        assert rig.look_up(asked) is None, "they are on their way"
        rig.step()
        tier = rig.manager.secondary_tiers[0]
        while arrived and tier._threads._finished.empty():
            time.sleep(0.001)

        rig.manager.reset_cache()
        rig.manager.on_request_finished(asked.context)

        assert tier.failures == 0, "what was called off is no failure"
        asked = rig.request(prompt)
        assert rig.found(asked) == 4
        rig.load(asked, 4)
        rig.manager.reset_cache()
        rig.manager.on_request_finished(asked.context)
        rig.settle()
        assert rig.serve(prompt) == 4


def test_names_of_what_has_left_do_not_pile_up(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    monkeypatch.setattr(ssd_tier, "NAMES_SPARE", 4)
    settings = extra_config(ssd=ssd, dram_slices=16)
    settings["tidegate"]["ssd_bytes"] = 6 * (SLICE_BYTES + HEADER_BYTES)
    with running(settings, monkeypatch) as rig:
        for number in range(12):
            prompt = keys(f"p{number}", 3)
            rig.serve(prompt, hints=hints(prompt))
            assert len((ssd / NAMES_FILE).read_text().splitlines()) <= 2 * 6 + 4 + 3
        held = rig.manager.memory.residency.keys(Tier.SSD)

    with running(settings, monkeypatch) as rig:
        assert sorted(_slices(rig.told(SlicesStored), Tier.SSD)) == sorted(name(one) for one in held)
        assert len(held) == 6


def test_slices_of_another_namespace_are_not_there(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    prompt = keys("p", 4)
    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        rig.serve(prompt)
    other = extra_config(ssd=ssd) | {"tidegate_namespace": (b"m" * 16).hex()}
    with running(other, monkeypatch) as rig:
        assert rig.serve(prompt) == 0


@pytest.mark.parametrize(("keeps", "found"), [(True, 4), (False, 0)])
def test_reset_voids_the_ssd_unless_the_settings_keep_it(
    monkeypatch: pytest.MonkeyPatch, ssd: Path, keeps: bool, found: int
) -> None:
    with running(extra_config(ssd=ssd, reset_keeps_ssd=keeps), monkeypatch) as rig:
        prompt = keys("p", 4)
        rig.serve(prompt)
        rig.manager.reset_cache()
        cleared = [fact.tier for fact in rig.told(SlicesCleared)]
        assert cleared == ([Tier.DRAM] if keeps else [Tier.DRAM, Tier.SSD])
        assert rig.serve(prompt) == found


@pytest.mark.parametrize(("keeps", "found"), [(True, 4), (False, 0)])
def test_what_was_stored_after_a_reset_is_not_found_after_a_restart(
    monkeypatch: pytest.MonkeyPatch, ssd: Path, keeps: bool, found: int
) -> None:
    prompt = keys("p", 4)
    with running(extra_config(ssd=ssd, reset_keeps_ssd=keeps), monkeypatch) as rig:
        rig.manager.reset_cache()  # vLLM does so when weights change: these are no longer those of the namespace.
        rig.serve(prompt)
        assert rig.serve(prompt) == 4

    with running(extra_config(ssd=ssd, reset_keeps_ssd=keeps), monkeypatch) as rig:
        assert rig.serve(prompt) == found

    with running(extra_config(ssd=ssd, reset_keeps_ssd=keeps), monkeypatch) as rig:
        assert rig.serve(prompt) == 4, "the next one has the model as it was, and what it stored is good"


def test_engine_that_cannot_mark_what_is_void_stores_no_more(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    prompt = keys("p", 4)
    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        mark = rig.manager.secondary_tiers[0]._void
        mark.symlink_to(ssd / "elsewhere")
        rig.manager.reset_cache()
        rig.serve(prompt)
        assert not _slices(rig.told(SlicesStored), Tier.SSD)
        assert "void" in rig.manager.secondary_tiers[0].trouble
        mark.unlink()
