"""How far the light engine is from vLLM's own scheduler: the same arrivals, policy and step times on both.

Three workloads, each short of memory on purpose (less KV than an H100 has), so that eviction, preemption and the DRAM
tier decide: what is not used cannot be wrong. The policy is the careful baseline's (prefix affinity, first come first
served, a DRAM tier that evicts lru), which decides little, so that the engines' differences show.

- `conversation`: a window of the Mooncake conversation trace.
- `coding`: shorter coding-agent sessions in a closed loop: what comes depends on when answers do.
- `mixed`: sessions of three tenants and waves of embedding jobs.

Each is played in several windows, by seed, and judged by the mean of each figure over them, as claims of the benchmark
are made over several seeds: in an overloaded window the two part by chance, at a step that one of them takes otherwise,
and what the tails of one window say after that is no error of the model.

Limits are what a claim made with the light engine, over as many windows, may rest on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

import msgspec
from msgspec.structs import replace

from events import codec
from events.base import NS_PER_MS, NS_PER_S
from events.request import RequestFinished
from policies.catalog import PRESETS
from replay.bench.memory.report import Calibration, Checked, EngineModel
from replay.bench.memory.systems import SYSTEMS
from replay.bench.memory.task import builder
from replay.bench.memory.workloads import WORKLOADS, Offer, arrivals, engines, trace_of
from replay.bench.offered import BATCH_TOKENS_SHIPPED, SLO
from replay.bench.runs import Player
from replay.cluster import Run, simulate
from replay.engines.tiers import TierSizes

GIB: Final = 1 << 30
ENGINES: Final = 2
SECONDS: Final = 240
SEED: Final = 11
"""That of the first window; the others follow. Tuning seeds: nothing is claimed here about policies."""
POLICY: Final = "first_come_affinity"
SEQS_MAX: Final = 256


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A workload at a scale, on engines with so much KV and DRAM each."""

    workload: str
    scale: float
    kv_tokens: int
    dram_bytes: int


SHAPES: Final = {
    "conversation": Shape(workload="conversation", scale=0.7, kv_tokens=90_000, dram_bytes=64 * GIB),
    "coding": Shape(workload="coding_small", scale=4.0, kv_tokens=160_000, dram_bytes=32 * GIB),
    "mixed": Shape(workload="mixed", scale=0.5, kv_tokens=50_000, dram_bytes=16 * GIB),
}
"""By name."""


class EngineTask(msgspec.Struct, frozen=True, kw_only=True):
    """One workload on engines of one kind. `trace` is its file ("" = drawn)."""

    shape: str
    engine: EngineModel
    seed: int = SEED
    seconds: int = SECONDS
    trace: str = ""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. Times are those of requests that were answered, so that percentiles are numbers in a closed
    loop too, whose last turns never come."""

    requests: int
    answered: int
    ttft_p50_ns: int
    ttft_p99_ns: int
    tpot_p50_ns: int
    tpot_p99_ns: int
    tokens_per_s: float
    goodput_per_s: float
    cached_share: float
    preemptions: int


class Limit(msgspec.Struct, frozen=True):
    """How a quantity is read from the figures, in which unit, and how far off the light engine may be."""

    name: str
    unit: str
    off_max: float
    value: Callable[[Figures], float]


LIMITS: Final = (
    Limit("TTFT p50", "ms", 0.25, lambda found: found.ttft_p50_ns / NS_PER_MS),
    Limit("TTFT p99", "ms", 0.20, lambda found: found.ttft_p99_ns / NS_PER_MS),
    Limit("TPOT p50", "ms", 0.05, lambda found: found.tpot_p50_ns / NS_PER_MS),
    Limit("TPOT p99", "ms", 0.10, lambda found: found.tpot_p99_ns / NS_PER_MS),
    Limit("throughput", "tokens/s", 0.05, lambda found: found.tokens_per_s),
    Limit("goodput", "requests/s", 0.05, lambda found: found.goodput_per_s),
    Limit("prompt tokens found cached", "share", 0.05, lambda found: found.cached_share),
    Limit("times a request ran (1 + preemptions)", "", 0.05, lambda found: 1 + found.preemptions / found.answered),
)
NOTE: Final = (
    "Both take the same steps until vLLM's scheduler lets a step run short before it preempts, or its DRAM makes room "
    "at another moment than the light engine's. In an overloaded window all that follows differs by chance."
)


def play(task: EngineTask) -> Figures:
    """One run."""
    shape = SHAPES[task.shape]
    workload = WORKLOADS[shape.workload]
    offer = Offer(
        workload=shape.workload, seed=task.seed, scale=shape.scale, seconds=task.seconds, engines=ENGINES,
        trace=task.trace,
    )  # fmt: skip
    described = [
        replace(one, kv_blocks=shape.kv_tokens // one.block_tokens,
                capability=replace(one.capability, reports_slices=True, can_preempt=False))
        for one in engines(workload, ENGINES, batch_tokens=BATCH_TOKENS_SHIPPED, seqs_max=SEQS_MAX)
    ]  # fmt: skip
    sizes = TierSizes(dram_bytes=shape.dram_bytes, eviction="lru")
    run = simulate(
        arrivals(offer), described, settings=PRESETS[POLICY], slo=SLO, closed_loop=workload.closed_loop,
        until_ns=task.seconds * NS_PER_S, tiers={one.engine_id: sizes for one in described},
        build=builder(task.engine, SYSTEMS["careful_lru"]),
    )  # fmt: skip
    return _figures(run)


def _figures(run: Run) -> Figures:
    ends = [
        recorded.event
        for message in run.messages
        for recorded in codec.decode(message.seq, message.subject, message.body)
        if isinstance(recorded.event, RequestFinished)
    ]
    if not ends:
        raise ValueError("no request was answered: the window is too short for this workload")
    ttft = sorted(one.ttft_ns for one in ends)
    tpot = sorted(one.tpot_ns for one in ends if one.output_tokens > 1)
    return Figures(
        requests=run.scores.requests, answered=len(ends), ttft_p50_ns=_at(ttft, 50), ttft_p99_ns=_at(ttft, 99),
        tpot_p50_ns=_at(tpot, 50), tpot_p99_ns=_at(tpot, 99), tokens_per_s=run.scores.tokens_per_s,
        goodput_per_s=run.scores.goodput_per_s, cached_share=run.scores.cached_token_share or 0.0,
        preemptions=run.scores.preemptions,
    )  # fmt: skip


def _at(ordered: Sequence[int], percent: int) -> int:
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def tasks(engine: EngineModel, traces: Path | None, *, seconds: int, windows: int) -> list[EngineTask]:
    """All windows of all workloads on engines of that kind."""
    return [
        EngineTask(
            shape=name, engine=engine, seed=SEED + window, seconds=seconds,
            trace=trace_of(WORKLOADS[shape.workload], traces),
        )
        for name, shape in SHAPES.items() for window in range(windows)
    ]  # fmt: skip


def compared(
    here: Player[EngineTask, Figures], far: Player[EngineTask, Figures], traces: Path | None, *, seconds: int,
    windows: int, on_done: Callable[[], None],
) -> list[Calibration]:  # fmt: skip
    """The light engine, run `here`, held against vLLM's scheduler, run `far`; `on_done` hears of every run."""
    asked = tasks(EngineModel.LIGHT, traces, seconds=seconds, windows=windows)
    light = here(asked, lambda _number, _figures: on_done())
    wanted = tasks(EngineModel.VLLM_SCHEDULER, traces, seconds=seconds, windows=windows)
    real = far(wanted, lambda _number, _figures: on_done())
    return [
        held(asked[first : first + windows], light[first : first + windows], real[first : first + windows])
        for first in range(0, len(asked), windows)
    ]


def held(windows: Sequence[EngineTask], light: Sequence[Figures], real: Sequence[Figures]) -> Calibration:
    """One workload, in all its windows."""
    task = windows[0]
    drawn = "" if task.trace else ", drawn"
    checked = tuple(_checked(limit, light, real) for limit in LIMITS)
    return Calibration(
        model="light engine",
        against=f"vLLM 0.32 Scheduler and KVCacheManager: {task.shape}, {ENGINES} engines, "
        f"mean of {len(windows)} windows of {task.seconds} s{drawn}",
        requests=sum(one.requests for one in real),
        checked=checked,
        note=" ".join((NOTE, *_alone(windows, light, real))),
    )


def _checked(limit: Limit, light: Sequence[Figures], real: Sequence[Figures]) -> Checked:
    return Checked(
        name=limit.name, measured=fmean(map(limit.value, real)), modelled=fmean(map(limit.value, light)),
        unit=limit.unit, off_max=limit.off_max,
    )  # fmt: skip


def _alone(windows: Sequence[EngineTask], light: Sequence[Figures], real: Sequence[Figures]) -> list[str]:
    """What is beyond a limit in one window alone, in words."""
    if len(windows) == 1:
        return []
    beyond = [
        f"{limit.name} {100 * (one.modelled / one.measured - 1):+.1f} % (seed {task.seed})"
        for limit in LIMITS
        for task, ours, theirs in zip(windows, light, real, strict=True)
        if (one := _checked(limit, [ours], [theirs])).off > one.off_max and one.measured
    ]
    return [f"One window alone: {', '.join(beyond)}."] if beyond else []
