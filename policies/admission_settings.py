"""The settings of admission, each with its range."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from events.base import NS_PER_MS, NS_PER_S, PPM
from policies.predictors.output_length import OutputPredictor
from policies.settings import Settings, Switch


class Mode(StrEnum):
    """`enforce` decides; `observe` passes everything through and says what would have been decided."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class Preemption(StrEnum):
    """Who may be preempted: nobody, who has a lower priority, or also who waits in an engine for its first token and
    has more slack. See `policies.preemption`."""

    OFF = "off"
    PRIORITY = "priority"
    SLACK = "slack"


class Placement(StrEnum):
    """How an engine is picked. See `policies.placement`."""

    SLO_AWARE = "slo_aware"
    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    PREFIX_AFFINITY = "prefix_affinity"
    LOAD_BALANCED = "load_balanced"
    AFFINITY = "affinity"
    LOCALITY = "locality"
    TOPOLOGY_AWARE = "topology_aware"
    DYNAMO_KV = "dynamo_kv"


class Strategy(StrEnum):
    """In which order those that wait are looked at. See `policies.ordering`."""

    FIFO = "fifo"
    PRIORITY = "priority"
    SLO_AWARE = "slo_aware"
    COST_OPTIMIZED = "cost_optimized"
    ADAPTIVE = "adaptive"
    HYBRID = "hybrid"


class AdmissionSettings(Settings, kw_only=True):
    """What can be changed about admission, live.

    `safety_ppm` of an engine's KV blocks are never promised. `output_predictor` says how long answers will be;
    `output_quantile_ppm` of them are to end within the reserved length, and its calibration keeps that.
    `output_tokens_default` stands in where nothing is known.
    A predicted TTFT is multiplied by `ttft_margin_ppm` before it is held against the slack; TPOT limits by
    `tpot_margin_ppm` (0 = no TPOT guard). A request waits here, not in an engine, while that engine's prefill
    backlog is above `backlog_max_ns` (0 = no such limit) and four times what it takes of late from a decision to its
    engine. `deferral` off: nothing waits here; what would be in time
    goes on at once, whatever the engine's memory (early rejection alone).

    At most `queue_max` requests are deferred. They are looked at in the order of `strategy`; the first is passed by at
    most `passes_max` later ones, and at most `scan_max` are looked at per record. A prefill of `long_prefill_ns` or
    more (0 = none is long) begins only while fewer than `long_lane_calm_ppm` of the engines have that much before
    them; under pressure down to `long_lane_ppm` (`policies.ordering.long_lane`). A class of prompts (or a tenant) of
    which less than `fairness_ppm` of the overall share is served comes first (0 = no such floor).

    What cannot be in time any more is not refused but served late where that harms nobody, if that is possible within
    `late_max_ns` (0 = it is refused at once); under pressure it is refused (`policies.late_service`).

    `preemption` says who may be preempted for a more urgent request, at most `preempt_victims_max` for one, none whose
    answer is past `protect_ppm` of its expected length, and each at most `preemptions_max` times. One that was
    preempted after its first token goes on after at most `resume_max_ns`, whatever else waits.

    `session_slots` on: sessions begin only while the prefixes of the active ones stay within `session_kv_ppm` of the
    model's KV in the pool; a turn waits for that at most `session_wait_max_ns`, and a session that is silent for
    `session_lease_max_ns` is active no more. Off by default: it pays only where the sessions' prefixes are larger than
    the engines' KV.

    A holder is lost after `holder_timeout_ns` without a word; a request holds its place at most
    `request_max_ns`. `retry_after_max_ns` bounds the advice given with a refusal.

    `affinity_tokens_min` cached tokens bind a prompt to an engine (placements `prefix_affinity`, `affinity`,
    `topology_aware`) unless its load is above `affinity_load_ppm` of the mean. `overlap_ppm` is the weight of prefill
    blocks in placement `dynamo_kv`.
    """

    mode: Mode = Mode.ENFORCE
    deferral: Switch = Switch.ON
    placement: Placement = Placement.SLO_AWARE
    strategy: Strategy = Strategy.SLO_AWARE
    safety_ppm: Annotated[int, Meta(ge=0, le=500_000)] = 20_000
    output_predictor: OutputPredictor = OutputPredictor.QUANTILE
    output_quantile_ppm: Annotated[int, Meta(ge=1, le=PPM)] = 800_000
    output_tokens_default: Annotated[int, Meta(ge=1, le=1_000_000)] = 512
    ttft_margin_ppm: Annotated[int, Meta(ge=100_000, le=10 * PPM)] = 1_100_000
    tpot_margin_ppm: Annotated[int, Meta(ge=0, le=10 * PPM)] = PPM
    backlog_max_ns: Annotated[int, Meta(ge=0, le=600 * NS_PER_S)] = 20 * NS_PER_MS
    queue_max: Annotated[int, Meta(ge=0, le=100_000)] = 1_024
    passes_max: Annotated[int, Meta(ge=0, le=10_000)] = 8
    scan_max: Annotated[int, Meta(ge=1, le=1_000)] = 16
    long_prefill_ns: Annotated[int, Meta(ge=0, le=600 * NS_PER_S)] = 1_500 * NS_PER_MS
    long_lane_ppm: Annotated[int, Meta(ge=1, le=PPM)] = 250_000
    long_lane_calm_ppm: Annotated[int, Meta(ge=1, le=PPM)] = 500_000
    fairness_ppm: Annotated[int, Meta(ge=0, le=PPM)] = 600_000
    late_max_ns: Annotated[int, Meta(ge=0, le=600 * NS_PER_S)] = 30 * NS_PER_S
    preemption: Preemption = Preemption.PRIORITY
    preempt_victims_max: Annotated[int, Meta(ge=1, le=64)] = 4
    protect_ppm: Annotated[int, Meta(ge=0, le=PPM)] = 800_000
    preemptions_max: Annotated[int, Meta(ge=0, le=100)] = 2
    resume_max_ns: Annotated[int, Meta(ge=0, le=600 * NS_PER_S)] = 3 * NS_PER_S
    session_slots: Switch = Switch.OFF
    session_kv_ppm: Annotated[int, Meta(ge=1, le=10 * PPM)] = 900_000
    session_wait_max_ns: Annotated[int, Meta(ge=0, le=600 * NS_PER_S)] = 5 * NS_PER_S
    session_lease_max_ns: Annotated[int, Meta(ge=0, le=3_600 * NS_PER_S)] = 60 * NS_PER_S
    holder_timeout_ns: Annotated[int, Meta(ge=2 * NS_PER_S, le=3_600 * NS_PER_S)] = 5 * NS_PER_S
    request_max_ns: Annotated[int, Meta(ge=60 * NS_PER_S, le=86_400 * NS_PER_S)] = 3_600 * NS_PER_S
    retry_after_max_ns: Annotated[int, Meta(ge=NS_PER_S, le=3_600 * NS_PER_S)] = 60 * NS_PER_S
    affinity_tokens_min: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_024
    affinity_load_ppm: Annotated[int, Meta(ge=PPM, le=100 * PPM)] = 1_500_000
    overlap_ppm: Annotated[int, Meta(ge=0, le=100 * PPM)] = PPM
