"""The goals of the memory benchmark, computed from its cells, each with what bounds it.

A ratio of goodput cannot be more than what is offered over what the other one serves in time ("the offer"), nor is it
likely to be more than what our policy has with unlimited KV that all engines share ("unlimited KV"): where a goal is
missed, the smaller of the two says what stops it. Percentiles are infinite where more than the rest has no answer.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from replay.bench.memory.bounds import belady, lru, reach
from replay.bench.memory.report import Cell, EngineModel, Goal, WorkloadInfo
from replay.bench.memory.systems import (
    CAREFUL,
    DRAM_PPM,
    DRAM_SMALL_PPM,
    OURS,
    OURS_UNLIMITED,
    RIVAL,
    SHIPPED,
    SMALL,
    UNLIMITED,
)

KNEE: Final = 1.0
SHIPPED_RATIO, SHIPPED_RATIO_CODING = 2.5, 2.0
CAREFUL_RATIOS: Final = ((1.0, 1.3), (1.2, 1.8))
RIVAL_RATIOS: Final = ((1.2, 1.1), (1.5, 1.1))
"""(Load, at least so many times its goodput)."""
BELOW: Final = 0.98
"""Never below by more than 2 %."""
OWN_LOAD, OWN_PEAK_SHARE = 1.5, 0.95
CLASS_SHARE: Final = 0.5
REQUESTS_MIN: Final = 50
"""Of fewer requests no goal says anything."""
GAP_SHARE: Final = 0.5
GAP_MIN: Final = 0.01
"""A gap of less than this part of the careful baseline's goodput is none."""
LATENCY_SHARE, LATENCY_ABOVE = 0.8, 1.02
REUSE_SHARE: Final = 0.6
THROUGHPUT_FLUCTUATION, OCCUPANCY_FLUCTUATION = 0.15, 0.10
COST_SHARE: Final = 0.7
NEVER: Final = 1e9
"""Stands for an infinite ratio: ours has no answer where the other one has."""
AT_SHIPPED_KNEE: Final = f"at the knee of {SHIPPED}"
AT_EDGE: Final = "knee at the edge of what was tried"
THE_OFFER, UNLIMITED_KV, BELADY, IDEAL = "the offer", "unlimited KV", "Belady", "the workload's own repeats"
STEP_MODEL: Final = "the step model at full steps"

Pick = Callable[[Cell], float | int | None]


class _Found:
    """The cells of one kind of engine on one workload."""

    def __init__(self, cells: Iterable[Cell], info: WorkloadInfo, engine: EngineModel) -> None:
        self.info, self.engine = info, engine
        self._cells = {
            (cell.system, cell.load): cell for cell in cells if (cell.engine, cell.workload) == (engine, info.name)
        }

    def cell(self, system: str, load: float) -> Cell | None:
        return self._cells.get((system, load))

    def loads(self, system: str, least: float = 0.0, most: float = math.inf) -> list[float]:
        return sorted(load for name, load in self._cells if name == system and least <= load <= most)

    def goal(self, name: str, limit: float, value: float | None, **more: object) -> Goal:
        made = Goal(workload=self.info.name, name=name, limit=limit, value=value, engine=self.engine)
        return _with(made, more)


def goals(cells: Sequence[Cell], infos: Mapping[str, WorkloadInfo]) -> tuple[Goal, ...]:
    """All goals that the cells say something about, by kind of engine and workload. Where a load that a goal speaks of
    was not run, or there was next to nothing to do, its value is None; on engines that ran a part of the loads only,
    such goals are left out."""
    made: list[Goal] = []
    for engine in dict.fromkeys(cell.engine for cell in cells):
        for name in dict.fromkeys(cell.workload for cell in cells if cell.engine is engine):
            found = _Found(cells, infos[name], engine)
            known = [one for one in _of(found) if engine is EngineModel.LIGHT or one.value is not None]
            known = known if infos[name].requests >= REQUESTS_MIN else [_too_few(one, infos[name]) for one in known]
            made += [_doubted(one, infos[name]) for one in known]
    return tuple(made)


def _too_few(goal: Goal, info: WorkloadInfo) -> Goal:
    return replace(goal, value=None, bound=None, bound_by="", where=f"{info.requests} requests say nothing")


def _doubted(goal: Goal, info: WorkloadInfo) -> Goal:
    """The goal, with a word where it speaks of a knee that may lie beyond what was tried."""
    knee = info.other_knees.get(goal.engine.value, info.knee)
    at_shipped = AT_SHIPPED_KNEE in goal.name and info.shipped_knee is not None and info.shipped_knee.at_edge
    if at_shipped or (knee is not None and knee.at_edge):
        return replace(goal, where=f"{goal.where}; {AT_EDGE}" if goal.where else AT_EDGE)
    return goal


def _of(found: _Found) -> Iterator[Goal]:
    yield _least_ratio(found, SHIPPED, SHIPPED_RATIO_CODING if _is_coding(found) else SHIPPED_RATIO, KNEE)
    for load, ratio in CAREFUL_RATIOS if not _is_coding(found) else ():
        yield _ratio_at(found, CAREFUL, load, ratio)
    yield _least_ratio(found, CAREFUL, BELOW, 0.0)
    for load, ratio in RIVAL_RATIOS if not _is_coding(found) else ():
        yield _ratio_at(found, RIVAL, load, ratio)
    yield _least_ratio(found, RIVAL, BELOW, 0.0)
    yield _own_peak(found)
    yield _classes(found)
    for suffix in ("", SMALL):
        yield from _gaps(found, suffix)
    if found.engine is EngineModel.LIGHT:  # Of other engines neither that knee nor what was offered is the same.
        yield from _latencies(found)
        yield from _reuse(found)
    if _is_coding(found):
        yield from _steady(found)
    if "mixed" in found.info.name or "embedding" in found.info.name:
        yield from _mixed(found)


def _is_coding(found: _Found) -> bool:
    return found.info.name.startswith("coding")


def _with(goal: Goal, more: Mapping[str, object]) -> Goal:
    return replace(goal, **more)


# Goodput.


def _ratio(found: _Found, other: str, load: float) -> float | None:
    own, beside = found.cell(OURS, load), found.cell(other, load)
    if own is None or beside is None:
        return None
    return own.goodput_per_s / beside.goodput_per_s if beside.goodput_per_s else NEVER


def _bound(found: _Found, other: str, load: float) -> dict[str, object]:
    """The most that a ratio of goodput can be at a load, and why."""
    own, beside, free = found.cell(OURS, load), found.cell(other, load), found.cell(OURS_UNLIMITED, load)
    if own is None or beside is None or not beside.goodput_per_s:
        return {}
    offer = {"bound": own.offered_per_s / beside.goodput_per_s, "bound_by": THE_OFFER}
    if free is None or free.goodput_per_s <= own.goodput_per_s:
        return offer
    return {"bound": free.goodput_per_s / beside.goodput_per_s, "bound_by": UNLIMITED_KV}


def _ratio_at(found: _Found, other: str, load: float, limit: float) -> Goal:
    value = _ratio(found, other, load)
    return found.goal(f"goodput / {other} at {load:g}", limit, value, **_bound(found, other, load))


def _least_ratio(found: _Found, other: str, limit: float, least_load: float) -> Goal:
    """The ratio of goodput at the load where it is least."""
    ratios = {load: _ratio(found, other, load) for load in found.loads(OURS, least_load)}
    known = {load: ratio for load, ratio in ratios.items() if ratio is not None}
    name = f"goodput / {other}, " + ("at every load" if not least_load else f"at loads from {least_load:g}")
    if not known:
        return found.goal(name, limit, None)
    worst = min(known, key=lambda load: known[load])
    return found.goal(name, limit, known[worst], where=f"at {worst:g}", **_bound(found, other, worst))


def _own_peak(found: _Found) -> Goal:
    name, last = f"own goodput at {OWN_LOAD:g} / own peak", found.cell(OURS, OWN_LOAD)
    cells = [cell for load in found.loads(OURS) if (cell := found.cell(OURS, load)) is not None]
    peak = max(cells, key=lambda cell: cell.goodput_per_s, default=None)
    if last is None or peak is None or not peak.goodput_per_s:
        return found.goal(name, OWN_PEAK_SHARE, None)
    value = last.goodput_per_s / peak.goodput_per_s
    return found.goal(name, OWN_PEAK_SHARE, value, where=f"peak at {peak.load:g}")


def _classes(found: _Found) -> Goal:
    name = "worst prompt-length class / overall attainment"
    shares = {
        load: cell.worst_class_share for load in found.loads(OURS)
        if (cell := found.cell(OURS, load)) is not None and cell.worst_class_share is not None
    }  # fmt: skip
    worst = min(shares, key=lambda load: shares[load], default=None)
    if worst is None:
        return found.goal(name, CLASS_SHARE, None)
    return found.goal(name, CLASS_SHARE, shares[worst], where=f"at {worst:g}")


def _gaps(found: _Found, suffix: str) -> Iterator[Goal]:
    """How much of the gap between the careful baseline and the bound is closed, at each load up to the knee. The bound
    is unlimited KV under the better of the two policies that were run with it, so that nobody is above it by policy."""
    percent = (DRAM_SMALL_PPM if suffix else DRAM_PPM) // 10_000
    for load in found.loads(OURS + suffix, most=KNEE):
        own, careful = (found.cell(name, load) for name in (OURS + suffix, CAREFUL + suffix))
        free = [cell for name in (UNLIMITED, OURS_UNLIMITED) if (cell := found.cell(name, load)) is not None]
        bound = max(free, key=lambda cell: cell.goodput_per_s, default=None)
        name = f"gap to unlimited KV closed at {load:g}, DRAM {percent} %"
        if own is None or careful is None or bound is None:
            continue
        gap = bound.goodput_per_s - careful.goodput_per_s
        if gap < GAP_MIN * careful.goodput_per_s:
            yield found.goal(name, GAP_SHARE, 1.0, where=f"no gap: {gap:+.2f}/s of {careful.goodput_per_s:.2f}/s")
            continue
        value = (own.goodput_per_s - careful.goodput_per_s) / gap
        said = f"gap {gap:.2f}/s of {careful.goodput_per_s:.2f}/s, to {bound.system}"
        yield found.goal(name, GAP_SHARE, value, where=said)


# Latency.


def _latencies(found: _Found) -> Iterator[Goal]:
    """At the knee of vLLM as shipped: percentiles beside it, and beside the careful baseline."""
    knee, shipped = found.info.knee, found.info.shipped_knee
    if knee is None or shipped is None:
        return
    load = load_of(shipped.scale, knee.scale)
    picks: tuple[tuple[str, Pick], ...] = (
        ("TTFT p99", lambda cell: cell.ttft_p99_ns), ("TPOT p99", lambda cell: cell.tpot_p99_ns),
    )  # fmt: skip
    for what, pick in picks:
        for other, limit in ((SHIPPED, LATENCY_SHARE), (CAREFUL, LATENCY_ABOVE)):
            own, beside = found.cell(OURS, load), found.cell(other, load)
            if own is None or beside is None:
                continue
            value = over(pick(own), pick(beside))
            least = _least_with_unlimited(found, load, pick, beside)
            if least is None or value is None or value < least:
                least = None  # What ours is below is no bound.
            yield found.goal(
                f"{what} / {other}, {AT_SHIPPED_KNEE}", limit, value, at_most=True, where=f"at {load:g}",
                bound=least, bound_by=UNLIMITED_KV if least is not None else "",
            )  # fmt: skip


def _least_with_unlimited(found: _Found, load: float, pick: Pick, beside: Cell) -> float | None:
    """A percentile with unlimited KV that all engines share, as a multiple of another one: the better policy's."""
    free = [cell for name in (UNLIMITED, OURS_UNLIMITED) if (cell := found.cell(name, load)) is not None]
    ratios = [ratio for cell in free if (ratio := over(pick(cell), pick(beside))) is not None]
    return min(ratios, default=None)


def load_of(scale: float, knee_scale: float) -> float:
    """The load that a scale is, as reports call it."""
    return round(scale / knee_scale, 3)


def over(value: float | None, other: float | None) -> float | None:
    """A ratio of two percentiles of which each may be infinite (None). Both: nothing can be said."""
    if value is None:
        return None if other is None else NEVER
    if other is None:
        return 0.0
    return value / other if other else None


# Memory.


def _reuse(found: _Found) -> Iterator[Goal]:
    """Tokens that were not computed again, at the knee: all of them, and the way to Belady's rule: from LRU in one
    cache, as that rule is counted, and from the careful baseline, which has as many caches as ours."""
    info, own = found.info, found.cell(OURS, KNEE)
    if own is not None and _is_coding(found):
        yield found.goal(
            f"tokens reused at {KNEE:g}", REUSE_SHARE, own.hit_share, bound=info.ideal_hit_share, bound_by=IDEAL
        )
    for suffix, ppm in (("", DRAM_PPM), (SMALL, DRAM_SMALL_PPM)):
        ours, careful = found.cell(OURS + suffix, KNEE), found.cell(CAREFUL + suffix, KNEE)
        if ours is None or careful is None or belady(ppm) not in info.hit_bounds:
            continue
        bound = info.hit_bounds[belady(ppm)]
        said = (
            f"ideal {info.ideal_hit_share:.3f}, Belady {bound:.3f}, LRU in one cache {info.hit_bounds[lru(ppm)]:.3f}, "
            f"careful {careful.hit_share:.3f}, ours {ours.hit_share:.3f}"
        )
        for whose, base in (
            ("LRU's hits in one cache", info.hit_bounds[lru(ppm)]),
            ("the careful baseline's hits", careful.hit_share),
        ):
            name, value = (
                f"gap from {whose} to Belady closed, DRAM {ppm // 10_000} %",
                reach(info, ours.hit_share, base, ppm),
            )
            yield found.goal(name, GAP_SHARE, value, where=said, bound=1.0, bound_by=BELADY)


def _steady(found: _Found) -> Iterator[Goal]:
    """Long contexts: even throughput, and no less than the careful baseline's."""
    own, careful = found.cell(OURS, KNEE), found.cell(CAREFUL, KNEE)
    if own is None:
        return
    yield found.goal(
        f"throughput fluctuation at {KNEE:g}", THROUGHPUT_FLUCTUATION, own.throughput_fluctuation, at_most=True,
        where=f"careful {careful.throughput_fluctuation:.3f}" if careful and careful.throughput_fluctuation else "",
    )  # fmt: skip
    if careful is not None and careful.throughput_tokens_per_s:
        ratio = own.throughput_tokens_per_s / careful.throughput_tokens_per_s
        yield found.goal(f"throughput / {CAREFUL} at {KNEE:g}", 1.0, ratio)


def _mixed(found: _Found) -> Iterator[Goal]:
    own, shipped = found.cell(OURS, KNEE), found.cell(SHIPPED, KNEE)
    if own is None:
        return
    yield found.goal(
        f"occupancy fluctuation at {KNEE:g}", OCCUPANCY_FLUCTUATION, own.occupancy_fluctuation, at_most=True
    )
    if own.flops_used is not None:
        yield found.goal(
            f"model-FLOPs utilisation at {KNEE:g} (printed)", 0.0, own.flops_used, bound=own.flops_bound,
            bound_by=STEP_MODEL,
        )  # fmt: skip
    if shipped is not None and own.device_hours_per_million and shipped.device_hours_per_million:
        ratio = own.device_hours_per_million / shipped.device_hours_per_million
        yield found.goal(f"device hours per SLO-met token / {SHIPPED} at {KNEE:g}", COST_SHARE, ratio, at_most=True)
