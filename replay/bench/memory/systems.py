"""What the memory benchmark compares: our policy, those it is measured against, and bounds that nobody reaches.

All of them run in one harness: the same arrivals, engines, step times and SLO limits. Baselines run engines at the
best of a stated grid of `max_num_batched_tokens` x `max_num_seqs`, each for itself; our own policy takes what was best
for the honest rival, and so is tuned no better than that.

DRAM is lazy or written through: a lazy one takes in what device memory evicts, one that is written through what is
computed, at once. Ours is lazy. vLLM's own CPU offload writes through, and so the careful baseline does and all that
have its tier; vLLM's lazy connector is a system of its own (`careful_lazy`), and so is ours written through.
"""

from typing import Final

from replay.bench.memory.report import System

GRID_TOKENS: Final = (512, 1_024, 2_048, 8_192)
GRID_SEQS: Final = (128, 256, 512)
"""`max_num_batched_tokens` x `max_num_seqs` that are tried. vLLM 0.32 ships 2048 (8192 on an H100) and 256 (1024)."""
SHIPPED_TOKENS: Final = 2_048
SHIPPED_SEQS: Final = 256

DRAM_SMALL_PPM: Final = 50_000
DRAM_PPM: Final = 100_000
SSD_PPM: Final = 500_000
"""Tiers as parts of the workload's unique KV bytes: DRAM of 5 and 10 %, and an SSD of 50 % where there is one."""
SMALL: Final = "_dram5"
"""Ends the name of a system with the smaller DRAM tier."""
LRU: Final = "lru"
ARC: Final = "arc"

SHIPPED: Final = "as_shipped"
CAREFUL: Final = "careful"
RIVAL: Final = "honest_rival"
OURS: Final = "tidegate"
UNLIMITED: Final = "unlimited_kv"
OURS_UNLIMITED: Final = "tidegate_unlimited_kv"
_AFFINITY: Final = "longest cached prefix unless much busier (routers of vLLM and SGLang)"
_OFFLOAD: Final = "vLLM 0.32 native CPU offload"

_EVERY: Final = (
    System(
        name=SHIPPED, title="vLLM as shipped", preset="first_come",
        source="vLLM 0.32 behind a plain proxy: round robin, no tier",
    ),
    System(
        name="least_loaded", title="vLLM, least loaded", preset="least_loaded",
        source="vLLM 0.32 behind a proxy that sends to whoever holds the fewest tokens, no tier",
    ),
    System(
        name="prefix_affinity", title="prefix affinity", preset="first_come_affinity",
        source=f"{_AFFINITY}, no tier",
    ),
    System(
        name="careful_lru", title="careful baseline, lru", preset="first_come_affinity", dram_ppm=DRAM_PPM,
        tier_eviction=LRU, source=f"{_OFFLOAD}, eviction_policy=lru; {_AFFINITY}",
    ),
    System(
        name="careful_arc", title="careful baseline, arc", preset="first_come_affinity", dram_ppm=DRAM_PPM,
        tier_eviction=ARC, source=f"{_OFFLOAD}, eviction_policy=arc; {_AFFINITY}",
    ),
    System(
        name=CAREFUL, title="careful baseline", preset="first_come_affinity", dram_ppm=DRAM_PPM,
        source=f"{_OFFLOAD} (lru or arc, whichever is better on the workload); {_AFFINITY}",
    ),
    System(
        name=RIVAL, title="honest rival", preset="honest_rival", dram_ppm=DRAM_PPM,
        source="the careful baseline with Mooncake's early rejection by predicted load (Qin et al., FAST 2025)",
    ),
    System(
        name="dynamo_kv", title="Dynamo's rule", preset="dynamo_kv", dram_ppm=DRAM_PPM,
        source=f"NVIDIA Dynamo 1.3's published KV cost; {_OFFLOAD}",
    ),
    System(
        name=OURS, title="Tidegate", dram_ppm=DRAM_PPM, lazy_tiers=True,
        source="the default policy, before DRAM that takes in what device memory evicts",
    ),
    System(
        name=UNLIMITED, title="bound: unlimited, shared KV", preset="first_come_affinity", unlimited_kv=True,
        shared_kv=True, source="a bound: the careful baseline where all that any engine computed is everywhere",
    ),
    System(
        name=OURS_UNLIMITED, title="bound: Tidegate with unlimited, shared KV", unlimited_kv=True, shared_kv=True,
        source="a bound: the default policy where all that any engine computed is everywhere",
    ),
    System(
        name=f"{CAREFUL}_lazy", title="careful baseline, lazy DRAM", preset="first_come_affinity", dram_ppm=DRAM_PPM,
        tier_eviction=LRU, lazy_tiers=True, source=f"vLLM 0.32 SimpleCPUOffloadConnector, lazy_offload; {_AFFINITY}",
    ),
    System(
        name=f"{OURS}_write_through", title="Tidegate, DRAM written through", dram_ppm=DRAM_PPM,
        source="the default policy, before DRAM that takes in what is computed",
    ),
    System(
        name=f"{CAREFUL}_ssd", title="careful baseline, DRAM and SSD", preset="first_come_affinity",
        dram_ppm=DRAM_PPM, ssd_ppm=SSD_PPM, source="vLLM 0.32 tiered offloading (fs behind CPU); the careful baseline",
    ),
    System(
        name=f"{OURS}_ssd", title="Tidegate, DRAM and SSD", dram_ppm=DRAM_PPM, ssd_ppm=SSD_PPM, lazy_tiers=True,
        source="the default policy, with an SSD behind its DRAM",
    ),
)  # fmt: skip


def _small(system: System) -> System:
    return System(
        name=system.name + SMALL, title=f"{system.title}, DRAM 5 %", preset=system.preset, settings=system.settings,
        dram_ppm=DRAM_SMALL_PPM, tier_eviction=system.tier_eviction, lazy_tiers=system.lazy_tiers,
        source=system.source,
    )  # fmt: skip


SYSTEMS: dict[str, System] = {
    system.name: system for one in _EVERY for system in ((one, _small(one)) if one.dram_ppm == DRAM_PPM else (one,))
}
"""By name. Those with a DRAM tier of 10 % have a twin with 5 %, named `..._dram5`."""
