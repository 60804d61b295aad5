"""Sweeps of the memory benchmark: our policy with one thing changed at a time, beside itself and the careful baseline.

- ratio: the mixed workload with none to four times its embedding waves.
- quota: off, or the embedding share fixed at some values.
- eviction: each kind.
- admission: each order of those that wait; nobody waits (early rejection); everything goes on at once.
- routing: each placement.
- tiers: from nothing to DRAM of 20 % of the unique KV, and with SSD.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec.structs import replace

from policies.admission_settings import Placement, Strategy
from policies.memory.kinds import EvictionKind
from replay.bench.memory.plan import Plan
from replay.bench.memory.report import EngineModel, System
from replay.bench.memory.systems import CAREFUL, DRAM_PPM, OURS, SSD_PPM, SYSTEMS
from replay.bench.memory.workloads import RATIOS

EMBEDDING_SHARES_PPM: Final = (50_000, 100_000, 200_000, 400_000)
DRAM_SHARES_PPM: Final = (0, 50_000, 100_000, 200_000)
MIXED: Final = "mixed"


class Sweep(StrEnum):
    """What is changed."""

    RATIO = "ratio"
    QUOTA = "quota"
    EVICTION = "eviction"
    ADMISSION = "admission"
    ROUTING = "routing"
    TIERS = "tiers"


def swept(plan: Plan, sweep: Sweep) -> Plan:
    """The plan with only the light stage, and on it our policy as it is and with each change, beside the careful
    baseline. A change of the ratio is one of the workload: `mixed` and its variants."""
    added = variants(sweep)
    stage = replace(
        next(stage for stage in plan.stages if stage.engine is EngineModel.LIGHT),
        systems=(CAREFUL, OURS, *added), only_at={},
    )  # fmt: skip
    if sweep is Sweep.RATIO:
        stage = replace(stage, workloads=(MIXED, *(f"{MIXED}_embedding_x{times:g}" for times in RATIOS)))
    return replace(
        plan, suite=f"{plan.suite}, sweep {sweep.value}", stages=(stage,), systems={**plan.systems, **added},
        shipped_knee=False,
    )  # fmt: skip


def variants(sweep: Sweep) -> dict[str, System]:
    """Our policy with each change, by name."""
    match sweep:
        case Sweep.RATIO:
            return {}
        case Sweep.QUOTA:
            fixed = {f"embedding={ppm // 10_000}%": _share(ppm) for ppm in EMBEDDING_SHARES_PPM}
            return _changed({"quota=off": {"quota": {"enabled": "off"}}, **fixed})
        case Sweep.EVICTION:
            return _changed({f"eviction={kind.value}": {"eviction": {"kind": kind.value}} for kind in EvictionKind})
        case Sweep.ADMISSION:
            orders = {f"strategy={one.value}": _admission("strategy", one.value) for one in Strategy}
            return _changed({
                **orders, "deferral=off": _admission("deferral", "off"), "mode=observe": _admission("mode", "observe"),
            })  # fmt: skip
        case Sweep.ROUTING:
            return _changed({f"placement={one.value}": _admission("placement", one.value) for one in Placement})
        case Sweep.TIERS:
            tiers = [(dram, 0) for dram in DRAM_SHARES_PPM] + [(DRAM_PPM, SSD_PPM)]
            return {_of_tiers(dram, ssd).name: _of_tiers(dram, ssd) for dram, ssd in tiers}


def _changed(by_name: Mapping[str, dict[str, dict[str, object]]]) -> dict[str, System]:
    return {
        f"{OURS} {name}": replace(SYSTEMS[OURS], name=f"{OURS} {name}", title=f"Tidegate, {name}", settings=settings)
        for name, settings in by_name.items()
    }  # fmt: skip


def _admission(key: str, value: str) -> dict[str, dict[str, object]]:
    return {"admission": {key: value}}


def _share(ppm: int) -> dict[str, dict[str, object]]:
    return {"quota": {"embedding_min_ppm": ppm, "embedding_max_ppm": ppm}}


def _of_tiers(dram_ppm: int, ssd_ppm: int) -> System:
    said = f"dram={dram_ppm // 10_000}%" + (f" ssd={ssd_ppm // 10_000}%" if ssd_ppm else "")
    return replace(SYSTEMS[OURS], name=f"{OURS} {said}", title=f"Tidegate, {said}", dram_ppm=dram_ppm, ssd_ppm=ssd_ppm)
