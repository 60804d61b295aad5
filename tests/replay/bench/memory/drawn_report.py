"""Reports as a seeded generator draws them: what pages, tables and comparisons are tried on without a benchmark."""

from collections.abc import Sequence
from random import Random
from statistics import fmean, stdev

from msgspec.structs import replace

from events.base import NS_PER_MS, NS_PER_S
from replay.bench.memory.report import (
    Calibration,
    Cell,
    Checked,
    EngineModel,
    Goal,
    Knee,
    Origin,
    Report,
    RunResult,
    System,
    WorkloadInfo,
)
from replay.bench.memory.systems import CAREFUL, OURS, RIVAL, SHIPPED, SYSTEMS, UNLIMITED
from replay.score import Error, Part, Scores
from replay.series import Series

LOADS = (0.5, 0.8, 1.0, 1.2, 1.5)
SEEDS = (1, 2, 3)
LEADING = (OURS, CAREFUL, RIVAL, SHIPPED, "least_loaded", "dynamo_kv", UNLIMITED)
WORTH = {OURS: 1.0, RIVAL: 0.88, CAREFUL: 0.6, SHIPPED: 0.3, UNLIMITED: 1.06, "tidegate_unlimited_kv": 1.12}
"""How much of what is offered beyond the knee a system still serves."""
MADE_AT = "2026-01-02T03:04:05Z"
KNEE_PER_S = 4.0
WINDOW_S = 300
CLASSES = ("<4K", "4-16K", "16-32K", ">=32K")


def drawn_report(
    seed: int = 1, *, systems: Sequence[str] = LEADING, workloads: Sequence[str] = ("conversation", "mixed"),
    seeds: Sequence[int] = SEEDS, loads: Sequence[float] = LOADS, worth: dict[str, float] | None = None,
    with_series: bool = False, engine: EngineModel = EngineModel.LIGHT,
) -> Report:  # fmt: skip
    """A report that holds together: cells are the means of their runs. `worth` by system overrides WORTH."""
    rng = Random(seed)
    shown = [SYSTEMS[name] for name in systems]
    runs = [
        _run(rng, workload, system, engine, load, at, (worth or {}).get(system.name), with_series=with_series)
        for workload in workloads for system in shown for load in loads for at in seeds
    ]  # fmt: skip
    cells = [
        _cell([run for run in runs if (run.workload, run.system, run.load) == (workload, system.name, load)])
        for workload in workloads for system in shown for load in loads
    ]  # fmt: skip
    cells = [_beside(cell, cells) for cell in cells]
    return Report(
        suite="drawn", made_at=MADE_AT, version="0.1.0", code_version="0.1.0+0123456789ab", seeds=tuple(seeds),
        loads=tuple(loads), systems=tuple(shown), workloads=tuple(_workload(name) for name in workloads),
        runs=tuple(runs), cells=tuple(cells), goals=tuple(_goals(cells, workloads, engine)),
        calibrations=(calibration(),), seconds=412.0,
    )  # fmt: skip


def calibration(*, off: float = 0.04) -> Calibration:
    """A model that is off by so much everywhere, and allowed a tenth."""
    measured = (("TTFT p50", 120.0, "ms"), ("TPOT p50", 21.0, "ms"), ("throughput", 2_900.0, "tokens/s"))
    return Calibration(
        model="light engine, Llama-3-8B", against="vLLM's scheduler", requests=600, note="Nothing is fitted to it.",
        checked=tuple(
            Checked(name=name, measured=value, modelled=value * (1 + off), unit=unit, off_max=0.1)
            for name, value, unit in measured
        ),
    )  # fmt: skip


def _run(
    rng: Random, workload: str, system: System, engine: EngineModel, load: float, seed: int, worth: float | None, *,
    with_series: bool,
) -> RunResult:  # fmt: skip
    known = WORTH.get(system.name.removesuffix("_dram5"), 0.5) if worth is None else worth
    offered = KNEE_PER_S * load
    tiers = 0.02 if system.name.endswith("_dram5") else 0.0
    met = (0.97 if load < 1 else known ** (load - 0.5)) - tiers
    attainment = min(1.0, max(0.02, met + rng.uniform(-0.01, 0.01)))
    requests = round(offered * WINDOW_S)
    slo_met = round(requests * attainment)
    never = attainment < 0.9
    late = round(300 * NS_PER_MS * (1 + load * load / known))
    hits = {"device": 0.22 + 0.04 * known, **({"dram": 0.08 + 0.06 * known} if system.dram_ppm else {})}
    scores = Scores(
        requests=requests, finished=round(requests * 0.97), slo_met=slo_met, slo_attainment=slo_met / requests,
        window_ns=WINDOW_S * NS_PER_S, offered_per_s=offered, goodput_per_s=slo_met / WINDOW_S,
        ttft_p50_ns=late, ttft_p99_ns=None if never else late * 4, tpot_p50_ns=20 * NS_PER_MS,
        tpot_p99_ns=None if never else 45 * NS_PER_MS, cached_token_share=sum(hits.values()),
        prompt_tokens=requests * 9_000, tokens_per_s=offered * 9_400 * attainment,
        hit_tokens_by_tier={tier: round(requests * 9_000 * share) for tier, share in hits.items()},
        prompts={
            name: Part(
                requests=requests // 4, slo_met=round(requests // 4 * attainment * (1 - 0.12 * at)),
                slo_attainment=attainment * (1 - 0.12 * at),
            )
            for at, name in enumerate(CLASSES)
        },
        ttft_error_ns=Error(
            requests=slo_met, error_p50=40 * NS_PER_MS, error_p99=900 * NS_PER_MS, error_p50_share=0.07
        ),
        device_hours_per_million=0.02 / attainment, throughput_fluctuation=0.11, occupancy_fluctuation=0.07,
    )  # fmt: skip
    return RunResult(
        workload=workload, system=system.name, engine=engine, load=load, scale=load, seed=seed, batch_tokens=1_024,
        seqs_max=256, engines=4, scores=scores, digest=f"{rng.getrandbits(64):016x}",
        origin=Origin.OBSERVED if engine is EngineModel.LIVE else Origin.MODELLED,
        series=_series(rng, known) if with_series else (),
    )  # fmt: skip


def _series(rng: Random, known: float) -> tuple[Series, ...]:
    at_s = tuple(float(second) for second in range(0, WINDOW_S, 10))
    found = [
        Series(
            name=name, unit="ppm", engine=engine, at_s=at_s,
            values=tuple(min(1e6, 1e6 * (base * known + 0.2 * rng.random())) for _ in at_s),
        )
        for name, base in (("occupancy", 0.7), ("quota_utilisation", 0.5)) for engine in ("e1", "e2", "e3", "e4")
    ]  # fmt: skip
    waits = tuple(float(rng.randint(0, 30)) for _ in at_s)
    return (*found, Series(name="waiting", unit="requests", at_s=at_s, values=waits))


def _cell(runs: Sequence[RunResult]) -> Cell:
    scores, first = [run.scores for run in runs], runs[0]
    goodputs = [one.goodput_per_s for one in scores]
    p99 = [one.ttft_p99_ns for one in scores if one.ttft_p99_ns is not None]
    tpot = [one.tpot_p99_ns for one in scores if one.tpot_p99_ns is not None]
    return Cell(
        workload=first.workload, system=first.system, engine=first.engine, load=first.load, runs=len(runs),
        offered_per_s=fmean(one.offered_per_s for one in scores), goodput_per_s=fmean(goodputs),
        goodput_std=stdev(goodputs) if len(goodputs) > 1 else 0.0,
        attainment=fmean(one.slo_attainment for one in scores), ttft_p50_ns=scores[0].ttft_p50_ns,
        ttft_p99_ns=round(fmean(p99)) if len(p99) == len(runs) else None, tpot_p50_ns=scores[0].tpot_p50_ns,
        tpot_p99_ns=round(fmean(tpot)) if len(tpot) == len(runs) else None,
        hit_share=fmean(one.cached_token_share for one in scores),
        hit_by_tier={
            tier: fmean(one.hit_tokens_by_tier[tier] / one.prompt_tokens for one in scores)
            for tier in scores[0].hit_tokens_by_tier
        },
        worst_class_share=0.7, throughput_tokens_per_s=fmean(one.tokens_per_s for one in scores),
        throughput_fluctuation=0.11, occupancy_fluctuation=0.07, device_hours_per_million=0.03, jain=0.98,
        flops_used=0.31, flops_bound=0.47,
    )  # fmt: skip


def _beside(cell: Cell, cells: Sequence[Cell]) -> Cell:
    others = {
        other.system: cell.goodput_per_s / other.goodput_per_s
        for other in cells
        if (other.workload, other.load) == (cell.workload, cell.load)
        and other.system in (SHIPPED, CAREFUL, RIVAL) and other.system != cell.system
    }  # fmt: skip
    return replace(cell, ratios=others)


def _workload(name: str) -> WorkloadInfo:
    return WorkloadInfo(
        name=name, source="a generator of the tests", requests=1_200, seconds=WINDOW_S, engines=4, closed_loop=False,
        unique_kv_bytes=300 * 1024**3, ideal_hit_share=0.46, drawn="everything",
        hit_bounds={"belady_dram_100000": 0.44, "lru_dram_100000": 0.38, "belady_dram_50000": 0.41},
        knee=Knee(scale=1.0, goodput_per_s=KNEE_PER_S, at_edge=False, scales=(0.8, 1.0, 1.2), goodputs=(3.1, 3.6, 3.2)),
    )  # fmt: skip


def _goals(cells: Sequence[Cell], workloads: Sequence[str], engine: EngineModel) -> list[Goal]:
    goals = []
    for workload in workloads:
        own = {cell.load: cell for cell in cells if (cell.workload, cell.system) == (workload, OURS)}
        for other, load, limit in ((SHIPPED, 1.2, 2.5), (CAREFUL, 1.0, 1.3), (CAREFUL, 1.2, 1.8), (RIVAL, 1.5, 1.1)):
            value = own[load].ratios.get(other) if load in own else None
            goals.append(Goal(
                workload=workload, name=f"goodput / {other} at {load:g}", limit=limit, value=value, engine=engine,
                bound=limit * 0.98 if value is not None and value < limit else None,
                bound_by="all that is offered" if value is not None and value < limit else "",
            ))  # fmt: skip
        goals.append(Goal(
            workload=workload, name="device-hours per million tokens / as shipped", limit=0.7, value=0.64,
            at_most=True, engine=engine, where="at its knee",
        ))  # fmt: skip
        goals.append(Goal(workload=workload, name="reuse of tokens", limit=0.6, value=None, engine=engine))
    return goals
