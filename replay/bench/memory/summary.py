"""From runs to cells: a system at a load of a workload over all seeds, beside those that it is held against."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev

from msgspec.structs import replace

from events.request import AbortReason
from replay.bench.memory.report import Cell, RunResult
from replay.bench.memory.systems import CAREFUL, RIVAL, SHIPPED, UNLIMITED
from replay.score import MILLION, NS_PER_HOUR, Part, Scores

AGAINST = (SHIPPED, CAREFUL, RIVAL, UNLIMITED)
"""Systems that a cell has its ratio of goodput to."""
CLASS_REQUESTS_MIN = 50
"""Prompt-length classes with fewer requests over all seeds say too little."""


def cells(results: Iterable[RunResult]) -> tuple[Cell, ...]:
    """One cell for each system, load, workload and kind of engine, in the order of their first runs."""
    groups: dict[tuple[str, str, str, float], list[RunResult]] = {}
    for one in results:
        groups.setdefault((one.engine.value, one.workload, one.system, one.load), []).append(one)
    made = [_cell(runs) for runs in groups.values()]
    by_place = {(cell.engine.value, cell.workload, cell.system, cell.load): cell for cell in made}
    return tuple(
        replace(cell, ratios={
            name: cell.goodput_per_s / other.goodput_per_s
            for name in AGAINST
            if (other := by_place.get((cell.engine.value, cell.workload, name, cell.load))) and other.goodput_per_s
        })
        for cell in made
    )  # fmt: skip


def _cell(runs: Sequence[RunResult]) -> Cell:
    first, scores = runs[0], [one.scores for one in runs]
    goodputs = [one.goodput_per_s for one in scores]
    asked = sum(one.prompt_tokens_asked or one.prompt_tokens for one in scores) or 1
    return Cell(
        workload=first.workload, system=first.system, engine=first.engine, load=first.load, runs=len(runs),
        offered_per_s=fmean(one.offered_per_s for one in scores),
        goodput_per_s=fmean(goodputs), goodput_std=stdev(goodputs) if len(goodputs) > 1 else 0.0,
        attainment=sum(one.slo_met for one in scores) / max(1, sum(one.requests for one in scores)),
        attainment_retried=sum(one.slo_met_retried for one in scores) / max(1, sum(one.requests for one in scores)),
        ttft_p50_ns=_whole(scores, lambda one: one.ttft_p50_ns),
        ttft_p99_ns=_whole(scores, lambda one: one.ttft_p99_ns),
        tpot_p50_ns=_whole(scores, lambda one: one.tpot_p50_ns),
        tpot_p99_ns=_whole(scores, lambda one: one.tpot_p99_ns),
        hit_share=_hit_share(scores, asked),
        hit_by_tier={
            tier: sum(one.hit_tokens_by_tier.get(tier, 0) for one in scores) / asked
            for tier in dict.fromkeys(tier for one in scores for tier in one.hit_tokens_by_tier)
        },
        worst_class_share=worst_class(scores)[0],
        throughput_tokens_per_s=fmean(one.tokens_per_s for one in scores),
        throughput_fluctuation=_mean(one.throughput_fluctuation for one in scores),
        output_fluctuation=_mean(one.output_fluctuation for one in scores),
        output_least=min((one.output_least for one in scores if one.output_least is not None), default=None),
        unbroken_share=_unbroken(scores),
        occupancy_fluctuation=_mean(one.occupancy_fluctuation for one in scores),
        device_hours_per_million=_cost(scores),
        jain=fmean(one.fairness_jain for one in scores),
        flops_used=_mean(one.flops.used if one.flops else None for one in runs),
        flops_bound=_mean(one.flops.bound if one.flops else None for one in runs),
    )  # fmt: skip


def _hit_share(scores: Sequence[Scores], asked: int) -> float | None:
    shares = [(one.cached_token_share, one.prompt_tokens) for one in scores]
    told = [share * tokens for share, tokens in shares if share is not None]
    return sum(told) / asked if len(told) == len(shares) else None


def worst_class(scores: Sequence[Scores]) -> tuple[float | None, str]:
    """Of the prompt-length classes the one that is worst off: its attainment as a share of that of all LLM requests,
    and its name. None where no class has enough requests, or nobody is in time."""
    prompts = _pooled([one.prompts for one in scores])
    met, requests = sum(part.slo_met for part in prompts.values()), sum(part.requests for part in prompts.values())
    if not met:
        return None, ""
    shares = {
        name: part.slo_met / part.requests / (met / requests)
        for name, part in prompts.items() if part.requests >= CLASS_REQUESTS_MIN
    }  # fmt: skip
    worst = min(shares, key=lambda name: shares[name], default="")
    return shares.get(worst), worst


def _pooled(by_run: Sequence[Mapping[str, Part]]) -> dict[str, Part]:
    pooled: dict[str, Part] = {}
    for parts in by_run:
        for name, part in parts.items():
            known = pooled.setdefault(name, Part())
            known.requests += part.requests
            known.slo_met += part.slo_met
    return pooled


def _unbroken(scores: Sequence[Scores]) -> float | None:
    """A request that was preempted twice counts twice: the share is no more than it is."""
    sent = sum(one.requests - one.unsent for one in scores)
    broken = sum(one.preemptions + one.aborted.get(AbortReason.ENGINE_REFUSED.value, 0) for one in scores)
    return max(0.0, 1 - broken / sent) if sent else None


def _cost(scores: Sequence[Scores]) -> float | None:
    """Device-hours per million SLO-met tokens, of all runs together: one that served nobody was paid for too."""
    device_ns, tokens = sum(one.device_ns for one in scores), sum(one.slo_tokens for one in scores)
    return device_ns / NS_PER_HOUR * MILLION / tokens if device_ns and tokens else None


def _whole(scores: Sequence[Scores], of: Callable[[Scores], int | None]) -> int | None:
    """The mean over runs; infinite (None) where one of them is."""
    values = [of(one) for one in scores]
    known = [value for value in values if value is not None]
    return round(fmean(known)) if known and len(known) == len(values) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
