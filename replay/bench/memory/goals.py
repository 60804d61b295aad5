"""The goals of the memory benchmark, computed from its cells, each with what bounds it.

A ratio of goodput cannot be more than what is offered over what the other one serves in time ("the offer"): where that
is below the limit it says what stops the goal, else what our policy has with unlimited KV that all engines share
("unlimited KV"). Percentiles are infinite where more than the rest has no answer.

Every goal has a bound that was computed, where it can be missed. One whose bound misses the limit too is out of reach
if that bound is arithmetic; if it is a policy that was run, another may do better.
Fluctuation is asked for at constant offered load: it is that of the steady workloads, which have no other goals, and
what it has with unlimited KV is the offer's own.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from replay.bench.memory.bounds import belady, lru, online, reach
from replay.bench.memory.report import BELADY, IDEAL, THE_OFFER, Cell, EngineModel, Goal, WorkloadInfo
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
COLLAPSED_BELOW: Final = 0.5
"""A window of 10 s with less than this part of the mean is a collapse."""
UNBROKEN_SHARE: Final = 1.0
STEADY: Final = "_steady"
"""Ends the name of a workload whose offer does not change."""
COST_SHARE: Final = 0.7
COST_LOADS: Final = (1.0, 1.2)
NEVER: Final = 1e9
"""Stands for an infinite ratio: ours has no answer where the other one has."""
AT_SHIPPED_KNEE: Final = f"at the knee of {SHIPPED}"
AT_EDGE: Final = "knee at the edge of what was tried"
UNLIMITED_KV: Final = "unlimited KV"
ONLINE: Final = "no foresight: the best kind of eviction in one cache"
COMPUTE: Final = "compute: unlimited KV has no less"
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
    if found.info.name.endswith(STEADY):
        yield from _steady_throughput(found) if _is_coding(found) else _steady_occupancy(found)
        return
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


def _bound(found: _Found, other: str, load: float, limit: float) -> dict[str, object]:
    """The most that a ratio of goodput can be at a load, and why: what is offered, where that is below the limit, else
    what our policy has with unlimited KV, which nobody need keep to."""
    own, beside, free = found.cell(OURS, load), found.cell(other, load), found.cell(OURS_UNLIMITED, load)
    if own is None or beside is None or not beside.goodput_per_s:
        return {}
    offer = {"bound": own.offered_per_s / beside.goodput_per_s, "bound_by": THE_OFFER}
    if own.offered_per_s < limit * beside.goodput_per_s or free is None or free.goodput_per_s <= own.goodput_per_s:
        return offer
    return {"bound": free.goodput_per_s / beside.goodput_per_s, "bound_by": UNLIMITED_KV}


def _ratio_at(found: _Found, other: str, load: float, limit: float) -> Goal:
    value = _ratio(found, other, load)
    return found.goal(f"goodput / {other} at {load:g}", limit, value, **_bound(found, other, load, limit))


def _least_ratio(found: _Found, other: str, limit: float, least_load: float) -> Goal:
    """The ratio of goodput at the load where it is least."""
    ratios = {load: _ratio(found, other, load) for load in found.loads(OURS, least_load)}
    known = {load: ratio for load, ratio in ratios.items() if ratio is not None}
    name = f"goodput / {other}, " + ("at every load" if not least_load else f"at loads from {least_load:g}")
    if not known:
        return found.goal(name, limit, None)
    worst = min(known, key=lambda load: known[load])
    return found.goal(name, limit, known[worst], where=f"at {worst:g}", **_bound(found, other, worst, limit))


def _own_peak(found: _Found) -> Goal:
    name, last = f"own goodput at {OWN_LOAD:g} / own peak", found.cell(OURS, OWN_LOAD)
    cells = [cell for load in found.loads(OURS) if (cell := found.cell(OURS, load)) is not None]
    peak = max(cells, key=lambda cell: cell.goodput_per_s, default=None)
    if last is None or peak is None or not peak.goodput_per_s:
        return found.goal(name, OWN_PEAK_SHARE, None)
    value = last.goodput_per_s / peak.goodput_per_s
    most = last.offered_per_s / peak.goodput_per_s
    return found.goal(name, OWN_PEAK_SHARE, value, where=f"peak at {peak.load:g}", bound=most, bound_by=THE_OFFER)


def _classes(found: _Found) -> Goal:
    name = "worst prompt-length class / overall attainment"
    shares = {
        load: cell.worst_class_share for load in found.loads(OURS)
        if (cell := found.cell(OURS, load)) is not None and cell.worst_class_share is not None
    }  # fmt: skip
    worst = min(shares, key=lambda load: shares[load], default=None)
    if worst is None:
        return found.goal(name, CLASS_SHARE, None)
    value, own, free = shares[worst], found.cell(OURS, worst), found.cell(OURS_UNLIMITED, worst)
    if free is not None and free.worst_class_share is not None and free.worst_class_share > value:
        bound = {"bound": free.worst_class_share, "bound_by": UNLIMITED_KV}
    else:  # All of that class in time, and the others as they are.
        bound = {"bound": 1 / own.attainment, "bound_by": THE_OFFER} if own is not None and own.attainment else {}
    return found.goal(name, CLASS_SHARE, value, where=f"at {worst:g}", **bound)


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
        yield found.goal(name, GAP_SHARE, value, where=said, bound=max(1.0, value), bound_by=UNLIMITED_KV)


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
            where, bound = f"at {load:g}", dict[str, object]()
            if least is not None and value is not None:
                gap = value - least
                where += f"; gap to unlimited KV {gap:+.3f}" if abs(gap) < NEVER / 2 else ""
                # What ours is below is no bound of it: then memory is not what stops it.
                bound = {"bound": least, "bound_by": UNLIMITED_KV} if gap >= 0 else {"bound_by": COMPUTE}
            yield found.goal(f"{what} / {other}, {AT_SHIPPED_KNEE}", limit, value, at_most=True, where=where, **bound)


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
    """Tokens that were not computed again, at the knee: all of them, and the way to Belady's rule."""
    info, own = found.info, found.cell(OURS, KNEE)
    if own is not None and _is_coding(found):
        yield found.goal(
            f"tokens reused at {KNEE:g}", REUSE_SHARE, own.hit_share, bound=info.ideal_hit_share, bound_by=IDEAL
        )
    for suffix, ppm in (("", DRAM_PPM), (SMALL, DRAM_SMALL_PPM)):
        ours, careful = found.cell(OURS + suffix, KNEE), found.cell(CAREFUL + suffix, KNEE)
        if ours is not None and careful is not None and belady(ppm) in info.hit_bounds:
            yield from _ways_to_belady(found, ours.hit_share or 0.0, careful.hit_share or 0.0, ppm)


def _ways_to_belady(found: _Found, ours: float, careful: float, ppm: int) -> Iterator[Goal]:
    """From LRU in one cache, as that rule is counted, and from the careful baseline's hits: it evicts by LRU (or ARC)
    in as many caches as there are engines, by its own routing, as ours does. How far one can come without foresight is
    what the best of our kinds of eviction has in one cache of all memory."""
    info = found.info
    best, usual, kind = (info.hit_bounds.get(name(ppm), 0.0) for name in (belady, lru, online))
    said = (
        f"ideal {info.ideal_hit_share:.3f}, Belady {best:.3f}, best kind of eviction in one cache {kind:.3f}, "
        f"LRU in one cache {usual:.3f}, careful {careful:.3f}, ours {ours:.3f}"
    )
    for whose, base in (("LRU's hits in one cache", usual), ("the careful baseline's hits", careful)):
        value, without_foresight = reach(info, ours, base, ppm), reach(info, kind, base, ppm)
        bound: dict[str, object] = {"bound": 1.0, "bound_by": BELADY}
        if value is not None and without_foresight is not None and without_foresight >= value:
            bound = {"bound": without_foresight, "bound_by": ONLINE}
        name = f"gap from {whose} to Belady closed, DRAM {ppm // 10_000} %"
        yield found.goal(name, GAP_SHARE, value, where=said, **bound)


# At constant offered load.


def _steady_throughput(found: _Found) -> Iterator[Goal]:
    """Long contexts: even, without preemptions or collapse, and no less than the careful baseline's. What fluctuates
    is output as it is produced; that with the prompts that are computed stands beside it."""
    own, careful = found.cell(OURS, KNEE), found.cell(CAREFUL, KNEE)
    computed = own.throughput_fluctuation if own is not None else None
    yield from _at_knee(
        found, "throughput fluctuation", THROUGHPUT_FLUCTUATION, lambda cell: cell.output_fluctuation, at_most=True,
        said=f"; with computed prompts {computed:.3f}" if computed is not None else "",
    )  # fmt: skip
    yield from _at_knee(found, "throughput, least window / mean", COLLAPSED_BELOW, lambda cell: cell.output_least)
    yield from _at_knee(
        found, "requests that were neither preempted nor out of memory", UNBROKEN_SHARE,
        lambda cell: cell.unbroken_share,
    )  # fmt: skip
    if careful is not None and (least := careful.throughput_tokens_per_s):
        yield from _at_knee(found, f"throughput / {CAREFUL}", 1.0, lambda cell: cell.throughput_tokens_per_s / least)


def _steady_occupancy(found: _Found) -> Iterator[Goal]:
    yield from _at_knee(
        found, "occupancy fluctuation", OCCUPANCY_FLUCTUATION, lambda cell: cell.occupancy_fluctuation, at_most=True
    )


def _at_knee(
    found: _Found, name: str, limit: float, pick: Callable[[Cell], float | None], *, at_most: bool = False,
    said: str = "",
) -> Iterator[Goal]:  # fmt: skip
    """A quantity of ours, beside the careful baseline's. Its bound is what unlimited KV has, under the better of the
    two policies that were run with it; where ours is better still, memory is not what stops it."""
    own, careful = found.cell(OURS, KNEE), found.cell(CAREFUL, KNEE)
    if own is None:
        return
    value, beside = pick(own), pick(careful) if careful is not None else None
    free = [cell for system in (UNLIMITED, OURS_UNLIMITED) if (cell := found.cell(system, KNEE)) is not None]
    known = [one for cell in free if (one := pick(cell)) is not None]
    words, bound = [f"{CAREFUL} {beside:.3f}"] if beside is not None else [], dict[str, object]()
    if known and value is not None:
        best = (min if at_most else max)(known)
        words.append(f"{UNLIMITED_KV} {best:.3f}")
        is_past = value < best if at_most else value > best
        bound = {"bound_by": COMPUTE} if is_past else {"bound": best, "bound_by": UNLIMITED_KV}
    where = ", ".join(words) + said
    yield found.goal(f"{name} at {KNEE:g}", limit, value, at_most=at_most, where=where, **bound)


def _mixed(found: _Found) -> Iterator[Goal]:
    own = found.cell(OURS, KNEE)
    if own is not None and own.flops_used is not None:
        yield found.goal(
            f"model-FLOPs utilisation at {KNEE:g} (printed)", 0.0, own.flops_used, bound=own.flops_bound,
            bound_by=STEP_MODEL,
        )  # fmt: skip
    for load in COST_LOADS:
        yield from _cost(found, load, load, f"at {load:g}")
    own_best, shipped_best = (_cheapest(found, name) for name in (OURS, SHIPPED))
    if own_best is not None and shipped_best is not None:
        yield from _cost(found, own_best, shipped_best, "each at its own best load")


def _cheapest(found: _Found, system: str) -> float | None:
    """The load at which a system needs the fewest devices for what it serves in time."""
    costs = {
        load: cell.device_hours_per_million for load in found.loads(system)
        if (cell := found.cell(system, load)) is not None and cell.device_hours_per_million is not None
    }  # fmt: skip
    return min(costs, key=lambda load: costs[load], default=None)


def _cost(found: _Found, load: float, shipped_load: float, said: str) -> Iterator[Goal]:
    """Device hours per SLO-met token beside vLLM as shipped. The bound is what they would be if all that is offered
    were in time, at the highest load that was run where each is taken at its own."""
    own, shipped = found.cell(OURS, load), found.cell(SHIPPED, shipped_load)
    if own is None or shipped is None or not own.device_hours_per_million or not shipped.device_hours_per_million:
        return
    beside, most = shipped.device_hours_per_million, load if load == shipped_load else max(found.loads(OURS))
    # What was offered to other engines is not theirs: another knee, fewer engines, another time.
    least = _all_in_time(found.info, most) if found.engine is EngineModel.LIGHT else None
    yield found.goal(
        f"device hours per SLO-met token / {SHIPPED}, {said}", COST_SHARE, own.device_hours_per_million / beside,
        at_most=True, where="" if load == shipped_load else f"ours at {load:g}, {SHIPPED} at {shipped_load:g}",
        **({"bound": least / beside, "bound_by": THE_OFFER} if least is not None else {}),
    )  # fmt: skip


def _all_in_time(info: WorkloadInfo, load: float) -> float | None:
    """Device hours per million tokens where all that is offered at a load is in time: it grows with the load."""
    if not info.tokens or not load:
        return None
    return info.engines * info.seconds / 3_600 / (info.tokens * load / 1_000_000)
