"""The report of a memory benchmark: one schema for live, replayed and simulated runs.

A `RunResult` is one system on one workload at one load with one seed; a `Cell` is the same over all seeds, beside those
that it is held against. Goodput and attainment are in the words of `replay.score`. Amounts: bytes, tokens, nanoseconds
where a name ends in `_ns`, seconds in series.
"""

import math
from enum import StrEnum
from typing import Final

import msgspec

from replay.flops import Utilisation
from replay.score import Scores
from replay.series import Series

SCHEMA = 1
"""Grows when a field changes its meaning; a reader refuses what is newer."""


class EngineModel(StrEnum):
    """What answered: the light model, vLLM's scheduler in virtual time, or engines at an address."""

    LIGHT = "light"
    VLLM_SCHEDULER = "vllm_scheduler"
    LIVE = "live"


class Origin(StrEnum):
    """Where a number comes from."""

    OBSERVED = "observed"
    MODELLED = "modelled"


class System(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared: policies, what stands behind device memory, and how engines are run.

    `preset` is of `policies.catalog`; `settings` by actor on top of it. Tiers are shares of the workload's unique KV
    bytes over all engines, in millionths; `lazy_tiers` take in what device memory evicts, others what is computed.
    `batch_tokens` and `seqs_max` 0 = the best of the grid for this system.
    `unlimited_kv`: device memory holds all there ever is; `shared_kv`: what one engine has all have. `source` says
    whose rule it is.
    """

    name: str
    title: str
    preset: str = "default"
    settings: dict[str, dict[str, object]] = msgspec.field(default_factory=dict)
    dram_ppm: int = 0
    ssd_ppm: int = 0
    tier_eviction: str = ""
    lazy_tiers: bool = False
    batch_tokens: int = 0
    seqs_max: int = 0
    unlimited_kv: bool = False
    shared_kv: bool = False
    source: str = ""


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `load` is a multiple of the knee (0 = not measured against one), `scale` what the workload was offered
    at; `digest` is that of its log ("" = live). `flops`: model-FLOPs utilisation, where it was asked for."""

    workload: str
    system: str
    engine: EngineModel
    load: float
    scale: float
    seed: int
    batch_tokens: int
    seqs_max: int
    engines: int
    origin: Origin
    scores: Scores
    series: tuple[Series, ...] = ()
    digest: str = ""
    wall_s: float = 0.0
    flops: Utilisation | None = None
    notes: tuple[str, ...] = ()


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One system at one load of one workload, over all seeds: means, and their standard deviation over seeds where a
    name ends in `_std`. `ratios` are of goodput, by the name of the system that it is held against.
    `output_fluctuation` and `output_least` are of the tokens produced (`replay.score`); `unbroken_share`: of all that
    were sent, those that no engine preempted or refused for want of memory."""

    workload: str
    system: str
    engine: EngineModel
    load: float
    runs: int
    offered_per_s: float
    goodput_per_s: float
    goodput_std: float
    attainment: float
    ttft_p50_ns: int | None
    ttft_p99_ns: int | None
    tpot_p50_ns: int | None
    tpot_p99_ns: int | None
    hit_share: float | None
    hit_by_tier: dict[str, float] = msgspec.field(default_factory=dict)
    worst_class_share: float | None = None
    throughput_tokens_per_s: float = 0.0
    throughput_fluctuation: float | None = None
    output_fluctuation: float | None = None
    output_least: float | None = None
    unbroken_share: float | None = None
    occupancy_fluctuation: float | None = None
    device_hours_per_million: float | None = None
    jain: float = 1.0
    flops_used: float | None = None
    flops_bound: float | None = None
    attainment_retried: float = 0.0
    ratios: dict[str, float] = msgspec.field(default_factory=dict)


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """Where the careful baseline has its peak goodput. `at_edge`: the sweep ended there, so it may lie beyond."""

    scale: float
    goodput_per_s: float
    at_edge: bool
    scales: tuple[float, ...] = ()
    goodputs: tuple[float, ...] = ()


class WorkloadInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was offered. `ideal_hit_share`: of prompt tokens, with unlimited shared KV. `closed_loop`: turns wait for
    the answers before them. `unique_kv_bytes`: what tiers are shares of, at every load. `drawn` says which part was
    generated ("" = none). `shipped_knee` is that of vLLM as shipped. `hit_bounds`: shares of prompt tokens by name,
    such as what Belady's rule would have with one cache of all engines' memory and tiers. `tokens`: prompts and output
    of all requests."""

    name: str
    source: str
    requests: int
    seconds: float
    engines: int
    closed_loop: bool
    unique_kv_bytes: int
    ideal_hit_share: float
    tokens: int = 0
    drawn: str = ""
    knee: Knee | None = None
    shipped_knee: Knee | None = None
    hit_bounds: dict[str, float] = msgspec.field(default_factory=dict)
    other_knees: dict[str, Knee] = msgspec.field(default_factory=dict)


THE_OFFER, IDEAL, BELADY = "the offer", "the workload's own repeats", "Belady"
ARITHMETIC: Final = (THE_OFFER, IDEAL, BELADY)
"""Bounds that follow from what is offered alone, so that no policy is beyond them."""


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """One goal: `value` must be at least (or, with `at_most`, at most) `limit`. None: not measured. `bound` is the most
    (the least) that is possible, and `bound_by` what stops it there: unlimited KV, Belady, compute, the offer. Of a
    limit of 0 nothing is asked: the number is there to be looked at."""

    workload: str
    name: str
    limit: float
    value: float | None
    at_most: bool = False
    engine: EngineModel = EngineModel.LIGHT
    where: str = ""
    bound: float | None = None
    bound_by: str = ""

    @property
    def is_bounded(self) -> bool:
        """Whether it is missed, and what it is held against as its bound misses it too."""
        if self.met is not False or self.bound is None:
            return False
        return self.bound > self.limit if self.at_most else self.bound < self.limit

    @property
    def is_out_of_reach(self) -> bool:
        """Whether it is missed, and so it would be by anybody: its bound is arithmetic, no policy that was run."""
        return self.is_bounded and self.bound_by in ARITHMETIC

    @property
    def met(self) -> bool | None:
        """Whether it is met; None where it was not measured, or nothing is asked."""
        if self.value is None or not self.limit:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity of a calibration: what was measured, what the model says, and how far off it may be."""

    name: str
    measured: float
    modelled: float
    unit: str
    off_max: float

    @property
    def off(self) -> float:
        """Relative error of the model; infinite where there is something in the model alone."""
        if not self.measured:
            return math.inf if self.modelled else 0.0
        return abs(self.modelled - self.measured) / self.measured


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """A model held against something nearer to the truth: `against` says what."""

    model: str
    against: str
    requests: int
    checked: tuple[Checked, ...]
    note: str = ""

    @property
    def calibrated(self) -> bool:
        """Whether every quantity is within its limit."""
        return all(one.off <= one.off_max for one in self.checked)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that a benchmark found, with what it ran on. `uncalibrated`: why its modelled numbers carry that word
    ("" = they do not)."""

    suite: str
    made_at: str
    version: str
    code_version: str
    seeds: tuple[int, ...]
    loads: tuple[float, ...]
    systems: tuple[System, ...]
    workloads: tuple[WorkloadInfo, ...]
    runs: tuple[RunResult, ...]
    cells: tuple[Cell, ...]
    goals: tuple[Goal, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    uncalibrated: str = ""
    seconds: float = 0.0
    stopped_early: bool = False
    schema: int = SCHEMA
