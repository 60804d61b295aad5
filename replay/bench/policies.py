"""Every preset on the same arrivals, at loads around the knee: what each is worth, and whether the goals are met.

Three rounds of runs:

1. The knee of a workload: of the scales in its sweep, the one at which `first_come_affinity` has its peak goodput
   (mean over the seeds; the lower one of equals). Loads are multiples of it.
2. The chunk budget: of the grid, the one at which `honest_rival` has the most goodput at the loads of 1.0 and more.
   Presets that decide nothing (mode `observe`) run engines as shipped; all others get what is best for the rival.
3. All other variants: presets, kinds of eviction, quota on and off.

Rejected is missed. A variant's figure at a load is the mean over seeds; attainments are over all requests of all seeds.
SEEDS were not used while defaults were chosen; TUNING_SEEDS were.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

import msgspec

from policies.catalog import PRESETS, Preset
from policies.eviction import EVICTION
from policies.memory.kinds import EvictionKind
from policies.quota import QUOTA
from policies.settings import Switch
from replay.bench.offered import BATCH_TOKENS_SHIPPED, SWEEPS, Extent, Offer, Workload, arrivals
from replay.bench.runs import Player, Task, play, players
from replay.score import Part, Scores

TUNING_SEEDS = (11, 12, 13)
"""What defaults were chosen with."""
SEEDS = (1, 2, 3, 4, 5)
"""What defaults are judged with."""
LOADS = (0.5, 0.8, 1.0, 1.2, 1.5)
CHUNK_GRID = (512, 1_024, 2_048)
QUOTA_OFF = "quota_off"
BASELINE, RIVAL, DEFAULT = "first_come_affinity", "honest_rival", "default"
OnDone = Callable[[int, Scores], None]
CHUNK_LOAD_MIN = 1.0
"""From this load on the rival's goodput counts in the choice of its chunk budget."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `presets` are names, or what `variants` adds to them; `trace` "" = the drawn conversation."""

    presets: tuple[str, ...]
    workloads: tuple[Workload, ...] = (Workload.CONVERSATION, Workload.EMBEDDING, Workload.MIXED)
    loads: tuple[float, ...] = LOADS
    seeds: tuple[int, ...] = SEEDS
    chunks: tuple[int, ...] = CHUNK_GRID
    sweeps: dict[Workload, tuple[float, ...]] = msgspec.field(default_factory=lambda: dict(SWEEPS))
    extent: Extent = Extent()
    trace: str = ""
    jobs: int = 1


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """One scale of a sweep: offered and met per second, mean over the seeds."""

    scale: float
    offered_per_s: float
    goodput_per_s: float


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """Where the baseline has its peak. `at_edge`: the sweep ended there, so the peak may lie beyond it."""

    scale: float
    goodput_per_s: float
    at_edge: bool
    sweep: tuple[Swept, ...]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One variant at one load of one workload. Goodput is in SLO-met requests per second: mean, standard deviation,
    least and most over the seeds. Attainments are shares of all requests of all seeds, None where there are none."""

    variant: str
    load: float
    scale: float
    batch_tokens: int
    offered_per_s: float
    goodput_per_s: float
    goodput_std: float
    goodput_min: float
    goodput_max: float
    attainment: float
    attainment_llm: float | None
    attainment_embedding: float | None
    prompts: dict[str, Part]
    tenants: dict[str, Part]
    jain: float
    preemptions: int
    rejected: dict[str, int]
    aborted: dict[str, int]
    ttft_error_p99_ns: int
    ratio_baseline: float | None = None
    ratio_rival: float | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found on one workload."""

    workload: Workload
    source: str
    knee: Knee
    batch_tokens: int
    chunks: dict[int, float]
    cells: tuple[Cell, ...]

    def cell(self, variant: str, load: float) -> Cell | None:
        """The cell of a variant at a load."""
        return next((one for one in self.cells if (one.variant, one.load) == (variant, load)), None)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison found, with what it ran on."""

    seeds: tuple[int, ...]
    loads: tuple[float, ...]
    runs: int
    seconds: float
    found: tuple[Found, ...]


def variants() -> dict[str, Preset]:
    """All that is compared, by name: presets, then the default with each kind of slice eviction, and without quota."""
    kinds = {f"eviction_{kind.value}": {EVICTION.name: {"kind": kind.value}} for kind in EvictionKind}
    return {**PRESETS, **kinds, QUOTA_OFF: {QUOTA.name: {"enabled": Switch.OFF.value}}}


def compare(plan: Plan, *, on_progress: Callable[[int], None] = lambda _done: None) -> Report:
    """Run it all. `on_progress(runs done)` of `runs_of(plan)`. Raises KeyError for a variant that is not there,
    TraceError for a bad trace, ValueError for a setting that is not allowed."""
    began, done = time.monotonic(), 0

    def advance(_number: int, _scores: Scores) -> None:
        nonlocal done
        done += 1
        on_progress(done)

    for workload in plan.workloads:
        arrivals(_offer(plan, workload, plan.sweeps[workload][0], plan.seeds[0]))  # A bad trace is said here, at once.
    with players(plan.jobs, play) as play_all:
        knees = _knees(plan, play_all, advance)
        rivals = _rivals(plan, knees, play_all, advance)
        found = _all(plan, knees, rivals, play_all, advance)
    return Report(seeds=plan.seeds, loads=plan.loads, runs=done, seconds=time.monotonic() - began, found=tuple(found))


def knee_of(sweep: Sequence[Swept]) -> Knee:
    """The peak of a sweep; of equals the one at the lower scale."""
    peak = max(sweep, key=lambda one: (one.goodput_per_s, -one.scale))
    scales = [one.scale for one in sweep]
    at_edge = peak.scale in (min(scales), max(scales))
    return Knee(scale=peak.scale, goodput_per_s=peak.goodput_per_s, at_edge=at_edge, sweep=tuple(sweep))


def chunk_for(settings: Preset, tuned: int) -> int:
    """What passes everything through runs engines as shipped; what decides runs them as tuned."""
    observes = settings.get("admission", {}).get("mode") == "observe"
    return BATCH_TOKENS_SHIPPED if observes else tuned


def summed(variant: str, load: float, scale: float, batch_tokens: int, runs: Sequence[Scores]) -> Cell:
    """The figures of a variant at a load from its runs, one a seed."""
    goodputs = [run.goodput_per_s for run in runs]
    kinds = _pooled([run.kinds for run in runs])
    llm, embedding = kinds.get("llm"), kinds.get("embedding")
    return Cell(
        variant=variant, load=load, scale=scale, batch_tokens=batch_tokens,
        offered_per_s=fmean(run.offered_per_s for run in runs),
        goodput_per_s=fmean(goodputs), goodput_std=stdev(goodputs) if len(runs) > 1 else 0.0,
        goodput_min=min(goodputs), goodput_max=max(goodputs),
        attainment=sum(run.slo_met for run in runs) / max(1, sum(run.requests for run in runs)),
        attainment_llm=llm.slo_attainment if llm else None,
        attainment_embedding=embedding.slo_attainment if embedding else None,
        prompts=_pooled([run.prompts for run in runs]), tenants=_pooled([run.tenants for run in runs]),
        jain=fmean(run.fairness_jain for run in runs), preemptions=sum(run.preemptions for run in runs),
        rejected=_added([run.rejected for run in runs]), aborted=_added([run.aborted for run in runs]),
        ttft_error_p99_ns=max(run.ttft_error_ns.error_p99 for run in runs),
    )  # fmt: skip


def best_chunk(rival: Mapping[int, Sequence[Cell]]) -> tuple[int, dict[int, float]]:
    """The chunk budget at which the rival has most goodput under load, and the mean goodput at each."""
    means = {}
    for chunk, cells in rival.items():
        loaded = [cell for cell in cells if cell.load >= CHUNK_LOAD_MIN] or cells
        means[chunk] = fmean(cell.goodput_per_s for cell in loaded)
    return max(means, key=lambda chunk: (means[chunk], chunk)), means


def beside(cell: Cell, baseline: Cell | None, rival: Cell | None) -> Cell:
    """The cell with its ratios to the two that everything is held against."""
    return msgspec.structs.replace(cell, ratio_baseline=_ratio(cell, baseline), ratio_rival=_ratio(cell, rival))


def runs_of(plan: Plan) -> int:
    """How many runs a plan is."""
    sweeps = sum(len(plan.sweeps[workload]) for workload in plan.workloads)
    each = len(plan.chunks) + len([name for name in plan.presets if name != RIVAL])
    return len(plan.seeds) * (sweeps + len(plan.workloads) * len(plan.loads) * each)


def _knees(plan: Plan, play_all: Player[Task, Scores], advance: OnDone) -> dict[Workload, Knee]:
    points = [(workload, scale) for workload in plan.workloads for scale in plan.sweeps[workload]]
    tasks = [
        _task(plan, workload, scale, seed, PRESETS[BASELINE], BATCH_TOKENS_SHIPPED)
        for workload, scale in points
        for seed in plan.seeds
    ]
    swept: dict[Workload, list[Swept]] = {workload: [] for workload in plan.workloads}
    for (workload, scale), runs in zip(points, _by_seed(plan, play_all(tasks, advance)), strict=True):
        offered = fmean(run.offered_per_s for run in runs)
        goodput = fmean(run.goodput_per_s for run in runs)
        swept[workload].append(Swept(scale=scale, offered_per_s=offered, goodput_per_s=goodput))
    return {workload: knee_of(sweep) for workload, sweep in swept.items()}


def _rivals(
    plan: Plan, knees: Mapping[Workload, Knee], play_all: Player[Task, Scores], advance: OnDone
) -> dict[Workload, dict[int, list[Cell]]]:
    """By workload and chunk budget: the rival's cells, one a load."""
    points = [(w, chunk, load) for w in plan.workloads for chunk in plan.chunks for load in plan.loads]
    tasks = [
        _task(plan, workload, load * knees[workload].scale, seed, PRESETS[RIVAL], chunk)
        for workload, chunk, load in points
        for seed in plan.seeds
    ]
    cells: dict[Workload, dict[int, list[Cell]]] = {w: {chunk: [] for chunk in plan.chunks} for w in plan.workloads}
    for (workload, chunk, load), runs in zip(points, _by_seed(plan, play_all(tasks, advance)), strict=True):
        cells[workload][chunk].append(summed(RIVAL, load, load * knees[workload].scale, chunk, runs))
    return cells


def _all(
    plan: Plan, knees: Mapping[Workload, Knee], rivals: Mapping[Workload, Mapping[int, Sequence[Cell]]],
    play_all: Player[Task, Scores], advance: OnDone,
) -> list[Found]:  # fmt: skip
    every = variants()
    chosen = {workload: best_chunk(rivals[workload]) for workload in plan.workloads}
    points = [
        (workload, name, load) for workload in plan.workloads for name in plan.presets if name != RIVAL
        for load in plan.loads
    ]  # fmt: skip
    chunk_of = {(w, name): chunk_for(every[name], chosen[w][0]) for w, name, _ in points}
    tasks = [
        _task(plan, workload, load * knees[workload].scale, seed, every[name], chunk_of[workload, name])
        for workload, name, load in points
        for seed in plan.seeds
    ]
    cells = {workload: list(rivals[workload][chosen[workload][0]]) for workload in plan.workloads}
    for (workload, name, load), runs in zip(points, _by_seed(plan, play_all(tasks, advance)), strict=True):
        scale = load * knees[workload].scale
        cells[workload].append(summed(name, load, scale, chunk_of[workload, name], runs))
    return [_found(plan, workload, knees[workload], chosen[workload], cells[workload]) for workload in plan.workloads]


def _found(
    plan: Plan, workload: Workload, knee: Knee, chosen: tuple[int, dict[int, float]], cells: Sequence[Cell]
) -> Found:  # fmt: skip
    by_place = {(cell.variant, cell.load): cell for cell in cells}
    ordered = [
        beside(by_place[name, load], by_place.get((BASELINE, load)), by_place[RIVAL, load])
        for name in (*plan.presets, *(() if RIVAL in plan.presets else (RIVAL,)))
        for load in plan.loads
    ]
    source = "drawn"
    if plan.trace and workload is not Workload.MIXED:
        source = "Mooncake conversation trace"
    return Found(
        workload=workload, source=source, knee=knee, batch_tokens=chosen[0], chunks=chosen[1], cells=tuple(ordered)
    )


def _task(plan: Plan, workload: Workload, scale: float, seed: int, settings: Preset, batch_tokens: int) -> Task:
    return Task(offer=_offer(plan, workload, scale, seed), settings=settings, batch_tokens=batch_tokens)


def _offer(plan: Plan, workload: Workload, scale: float, seed: int) -> Offer:
    return Offer(workload=workload, seed=seed, scale=scale, extent=plan.extent, trace=plan.trace)


def _by_seed(plan: Plan, scores: Sequence[Scores]) -> list[Sequence[Scores]]:
    count = len(plan.seeds)
    return [scores[first : first + count] for first in range(0, len(scores), count)]


def _pooled(by_run: Sequence[Mapping[str, Part]]) -> dict[str, Part]:
    pooled: dict[str, Part] = {}
    for parts in by_run:
        for name, part in parts.items():
            known = pooled.setdefault(name, Part())
            known.requests += part.requests
            known.slo_met += part.slo_met
            known.slo_attainment = known.slo_met / max(1, known.requests)
    return pooled


def _added(by_run: Sequence[Mapping[str, int]]) -> dict[str, int]:
    added: dict[str, int] = {}
    for counts in by_run:
        for name, count in counts.items():
            added[name] = added.get(name, 0) + count
    return dict(sorted(added.items()))


def _ratio(cell: Cell, other: Cell | None) -> float | None:
    return cell.goodput_per_s / other.goodput_per_s if other is not None and other.goodput_per_s else None
