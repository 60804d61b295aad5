"""Tiers that take in what device memory evicts: the two hold different slices, so together they hold more."""

from typing import Any

import pytest
from hypothesis import given
from msgspec.structs import replace

from events.base import NS_PER_S
from events.slice import Tier, TierMeasured
from replay.engines.job import Finished
from replay.engines.light import LightEngine
from replay.engines.tiers import TierSizes, sizes_of
from replay.faults import TransferFaults
from tests.replay.test_light_engine import LOADS, Load, requests, run_light
from tests.replay.test_slow_memory import asked, now, pushed_out, served, sizes, tiered

LAZY = replace(sizes(40), lazy=True)


def in_dram(one: LightEngine) -> int:
    assert one._slow is not None
    return len(one._slow.tiers.dram)


def in_both(one: LightEngine) -> list[Any]:
    """Slices that are in device memory and in DRAM."""
    assert one._slow is not None
    device = one._batch.device
    return [unit.key for unit in device.cache._units() if unit.key in one._slow.tiers.dram]


def test_nothing_is_stored_before_device_memory_evicts_it() -> None:
    one = tiered(LAZY)
    served(one, asked("a", 10))
    assert in_dram(one) == 0
    pushed_out(one)
    assert in_dram(one) == 10


def test_what_was_evicted_comes_back_and_leaves_dram() -> None:
    one = tiered(LAZY)
    cold_ns, _ = served(one, asked("a", 10))
    again_ns, end = served(one, asked("b", 10), pushed_out(one))
    assert end.cached_tokens == 80
    assert again_ns < cold_ns / 2
    one.run_until(now(one))
    assert in_dram(one) > 0, "of the filler, which made room for it"
    assert not in_both(one)


@pytest.mark.parametrize(("lazy", "least", "most"), [(False, 0, 300), (True, 500, 3 * 6 * 32)])
def test_prompts_that_fit_into_both_together_are_found_again(lazy: bool, least: int, most: int) -> None:
    """Six prompts of four units in turn; device memory has room for five of them, DRAM for two."""
    one = tiered(replace(sizes(8), lazy=lazy))
    found = 0
    for turn in range(4):
        for family in range(6):
            _, end = served(one, asked(f"{turn}.{family}", 4, family=family), now(one))
            found += end.cached_tokens
    assert least <= found <= most


@given(LOADS)
def test_all_requests_end_whatever_comes_and_whatever_fails(loads: list[Load]) -> None:
    faults = TransferFaults(seed=len(loads), failing_ppm=100_000, stalling_ppm=100_000, stall_ns=NS_PER_S // 100)
    engine = tiered(replace(sizes(6), lazy=True), faults=faults)
    out = run_light(requests(loads), [], engine)
    assert sum(isinstance(one, Finished) for one in out) == len(loads)
    engine.check_integrity()


def test_ssd_takes_in_what_dram_does() -> None:
    one = tiered(TierSizes(dram_bytes=LAZY.dram_bytes, ssd_bytes=LAZY.dram_bytes, lazy=True))
    served(one, asked("a", 10))
    pushed_out(one)
    ssd = one.ssd()
    assert ssd is not None
    assert len(ssd) == 10
    assert ssd.tier is Tier.SSD


@pytest.mark.parametrize("lazy", [False, True])
def test_who_reads_the_log_knows_which_way_dram_is_filled(lazy: bool) -> None:
    one = tiered(replace(sizes(8), lazy=lazy))
    served(one, asked("a", 4))
    said = [fact for fact in one.slice_facts(measure=True) if isinstance(fact, TierMeasured)]
    found = sizes_of(said)
    assert found is not None
    assert found.lazy is lazy
