"""How much of a workload's prompts could have been cached: with unlimited KV, by Belady's rule, by LRU, by the best of
our kinds of eviction; see `replay.belady`. One cache of the size of all engines' memory and tiers, which holds nothing
for requests that run. Belady's rule knows the future: the best of the kinds is what a rule without it has there."""

from collections.abc import Iterable

from events.base import PPM
from policies.memory.kinds import EvictionKind
from replay.belady import ideal_hits, ideal_share, kind_hits
from replay.bench.memory.report import Knee, WorkloadInfo
from replay.bench.memory.workloads import WORKLOADS, Offer, arrivals, drawn_of, engines, unique_kv_bytes


def belady(dram_ppm: int) -> str:
    """The name of the bound by Belady's rule with such a tier."""
    return f"belady_dram_{dram_ppm}"


def lru(dram_ppm: int) -> str:
    """The name of what LRU has with such a tier, in one cache."""
    return f"lru_dram_{dram_ppm}"


def online(dram_ppm: int) -> str:
    """The name of what the best of our kinds of eviction has with such a tier, in one cache."""
    return f"best_kind_dram_{dram_ppm}"


def described(offer: Offer, knee: Knee | None, shipped_knee: Knee | None, tiers_ppm: Iterable[int]) -> WorkloadInfo:
    """What an offer is, with the bounds for tiers of these parts of the workload's unique KV bytes."""
    workload, offered = WORKLOADS[offer.workload], arrivals(offer)
    able = engines(workload, offer.engines, batch_tokens=1, seqs_max=1)
    token_bytes = able[0].block_bytes // able[0].block_tokens
    unique = unique_kv_bytes(offer)
    device = sum(one.kv_blocks * one.block_bytes for one in able)
    bounds: dict[str, float] = {}
    for ppm in tiers_ppm:
        size = device + unique * ppm // PPM
        best = ideal_hits(offered, capacity_bytes=size, token_bytes=token_bytes)
        hits = {kind: kind_hits(offered, kind, capacity_bytes=size, token_bytes=token_bytes) for kind in EvictionKind}
        bounds[belady(ppm)], bounds[lru(ppm)] = best.share_ppm / PPM, hits[EvictionKind.LRU].share_ppm / PPM
        bounds[online(ppm)] = max(one.share_ppm for one in hits.values()) / PPM
    return WorkloadInfo(
        name=offer.workload, source=workload.title if offer.trace or not workload.file else "drawn",
        requests=len(offered), seconds=float(offer.seconds), engines=offer.engines, closed_loop=workload.closed_loop,
        unique_kv_bytes=unique, ideal_hit_share=ideal_share(offered),
        tokens=sum(one.prompt_tokens + one.output_tokens for one in offered), drawn=drawn_of(offer), knee=knee,
        shipped_knee=shipped_knee, hit_bounds=bounds,
    )  # fmt: skip


def reach(info: WorkloadInfo, found: float, base: float, dram_ppm: int) -> float | None:
    """How much of the way from a hit share to that of Belady's rule was gone; None where there is no way."""
    best = info.hit_bounds.get(belady(dram_ppm))
    return None if best is None or best <= base else (found - base) / (best - base)
