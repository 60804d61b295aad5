"""One run of the memory benchmark: a function of its task, in whatever process it is done.

A task holds all that a run needs, so the file of its result can be found again by the task's digest, and the same task
can be done by the light engine here or by vLLM's scheduler in its own environment (`replay.bench.far`).
"""

import time
from collections.abc import Mapping, Sequence
from hashlib import sha256

import msgspec
from msgspec.structs import replace

from events.base import NS_PER_S, EngineId
from events.engine import EngineRegistered
from policies.catalog import PRESETS
from replay.bench.memory.report import EngineModel, Origin, RunResult, System
from replay.bench.memory.workloads import WORKLOADS, Offer, arrivals, engines, unique_kv_bytes
from replay.bench.offered import SLO
from replay.cluster import Run, simulate
from replay.engines.base import EngineBuilder
from replay.engines.light import light_engine, sharing_light_engine
from replay.engines.tiers import TierSizes
from replay.engines.vllm_plugged import Plugged
from replay.flops import utilisation
from replay.series import series
from replay.traces.mooncake import BLOCK_TOKENS as SLICE_TOKENS
from replay.workloads.base import Arrival

PPM = 1_000_000
ENGINE_TOKENS_MAX = 1 << 31
"""The most KV tokens of an engine with unlimited memory."""


class MemoryTask(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run needs. `batch_tokens` and `seqs_max` are what its engines run with, whatever its system says.
    With `with_series` the result has quantities over time, and model-FLOPs utilisation. Which load its scale is, who
    runs it knows."""

    offer: Offer
    system: System
    batch_tokens: int
    seqs_max: int
    engine: EngineModel = EngineModel.LIGHT
    with_series: bool = False

    def digest(self) -> str:
        """What tells it from every other task."""
        return sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:32]


def play(task: MemoryTask, build: EngineBuilder | None = None, *, plugged: Plugged | None = None) -> RunResult:
    """Do it. `build` makes its engines; by default those of the task's kind (see `builder`)."""
    began = time.monotonic()
    run = run_of(task, build, plugged=plugged)
    return RunResult(
        workload=task.offer.workload, system=task.system.name, engine=task.engine, load=0.0,
        scale=task.offer.scale, seed=task.offer.seed, batch_tokens=task.batch_tokens, seqs_max=task.seqs_max,
        engines=task.offer.engines, origin=Origin.MODELLED, scores=run.scores,
        series=series(run.messages) if task.with_series else (), digest=run.digest,
        wall_s=round(time.monotonic() - began, 3),
        flops=utilisation(run.messages, window_ns=task.offer.seconds * NS_PER_S) if task.with_series else None,
    )  # fmt: skip


def run_of(task: MemoryTask, build: EngineBuilder | None = None, *, plugged: Plugged | None = None) -> Run:
    """The run itself, with its log."""
    workload = WORKLOADS[task.offer.workload]
    offered = arrivals(task.offer)
    described = engines(workload, task.offer.engines, batch_tokens=task.batch_tokens, seqs_max=task.seqs_max)
    described = grown_for(task.system, described, offered)
    described, tiers = behind(task.system, described, unique_kv_bytes(task.offer))
    if build is None:
        build = builder(task.engine, task.system, slice_tokens_of(offered), plugged=plugged)
    return simulate(
        offered, described, settings=settings_of(task.system), slo=SLO, tiers=tiers,
        closed_loop=workload.closed_loop, until_ns=task.offer.seconds * NS_PER_S, build=build,
    )  # fmt: skip


def settings_of(system: System) -> dict[str, dict[str, object]]:
    """The preset's settings by actor, and on top of them the system's own."""
    preset: Mapping[str, Mapping[str, object]] = PRESETS[system.preset]
    actors = [*preset, *(actor for actor in system.settings if actor not in preset)]
    return {actor: {**preset.get(actor, {}), **system.settings.get(actor, {})} for actor in actors}


def grown_for(
    system: System, described: Sequence[EngineRegistered], offered: Sequence[Arrival]
) -> list[EngineRegistered]:
    """The engines with the device memory that the system gives them: all that is offered fits where it is unlimited."""
    if not system.unlimited_kv:
        return list(described)
    tokens = min(ENGINE_TOKENS_MAX, sum(one.prompt_tokens + one.output_tokens for one in offered))
    return [_grown(one, tokens) for one in described]


def behind(
    system: System, described: Sequence[EngineRegistered], unique: int
) -> tuple[list[EngineRegistered], dict[EngineId, TierSizes]]:
    """The engines and the tiers behind them: shares of a workload's `unique` KV bytes, evenly over the engines."""
    if not system.dram_ppm:
        return list(described), {}
    sizes = TierSizes(
        dram_bytes=unique * system.dram_ppm // PPM // len(described),
        ssd_bytes=unique * system.ssd_ppm // PPM // len(described), eviction=system.tier_eviction,
        lazy=system.lazy_tiers,
    )  # fmt: skip
    reporting = [replace(one, capability=replace(one.capability, reports_slices=True)) for one in described]
    return reporting, {one.engine_id: sizes for one in reporting}


def as_able(engine: EngineModel, described: Sequence[EngineRegistered]) -> list[EngineRegistered]:
    """The engines, with what those of that kind can do: vLLM has no call to preempt."""
    if engine is not EngineModel.VLLM_SCHEDULER:
        return list(described)
    return [replace(one, capability=replace(one.capability, can_preempt=False)) for one in described]


def builder(
    engine: EngineModel, system: System, slice_tokens: int = SLICE_TOKENS, *, plugged: Plugged | None = None
) -> EngineBuilder:
    """What makes the engines of a kind, for a system and prompts with units of `slice_tokens`. `plugged` are the
    classes that follow directives inside vLLM's scheduler, where a system's tiers do. ImportError where vLLM is not
    installed and would be needed."""
    match engine:
        case EngineModel.LIGHT:
            return sharing_light_engine() if system.shared_kv else light_engine
        case EngineModel.VLLM_SCHEDULER:
            from replay.engines.vllm_scheduler import vllm_builder

            if system.lazy_tiers and system.tier_eviction:
                raise ValueError(f"{system.name}: vLLM's own offloading behind its scheduler is not lazy here")
            return vllm_builder(slice_tokens=slice_tokens, shared=system.shared_kv, plugged=plugged)
        case EngineModel.LIVE:
            raise ValueError("a live engine is at an address: see --target")


def slice_tokens_of(offered: Sequence[Arrival]) -> int:
    """How long the units of these prompts are."""
    return max((one.prefix_tokens for one in offered), default=SLICE_TOKENS)


def _grown(described: EngineRegistered, tokens: int) -> EngineRegistered:
    return replace(described, kv_blocks=max(described.kv_blocks, -(-tokens // described.block_tokens)))
