"""The settings of admission, each with its range."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from events.base import NS_PER_MS, NS_PER_S, PPM
from policies.settings import Settings, Switch


class Mode(StrEnum):
    """`enforce` decides; `observe` passes everything through and says what would have been decided."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class Placement(StrEnum):
    """How an engine is picked. See `policies.placement`."""

    SLO_AWARE = "slo_aware"
    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    PREFIX_AFFINITY = "prefix_affinity"


class AdmissionSettings(Settings, kw_only=True):
    """What can be changed about admission, live.

    `safety_ppm` of an engine's KV blocks are never promised. `output_quantile_ppm` of a tenant's outputs are
    expected to end within the reserved length; `output_tokens_default` stands in where nothing is known.
    A predicted TTFT is multiplied by `ttft_margin_ppm` before it is held against the slack; TPOT limits by
    `tpot_margin_ppm` (0 = no TPOT guard). A request waits here, not in an engine, while that engine's prefill
    backlog is above `backlog_max_ns` (0 = no such limit). `deferral` off: nothing waits here; what would be in time
    goes on at once, whatever the engine's memory (early rejection alone).

    At most `queue_max` requests are deferred. The oldest of a queue is passed by at most `passes_max` later ones,
    and at most `scan_max` are looked at per record.

    A holder is lost after `holder_timeout_ns` without a word; a request holds its place at most
    `request_max_ns`. `retry_after_max_ns` bounds the advice given with a refusal.

    `affinity_tokens_min` cached tokens bind a prompt to an engine (placement `prefix_affinity`) unless its load is
    above `affinity_load_ppm` of the mean.
    """

    mode: Mode = Mode.ENFORCE
    deferral: Switch = Switch.ON
    placement: Placement = Placement.SLO_AWARE
    safety_ppm: Annotated[int, Meta(ge=0, le=500_000)] = 50_000
    output_quantile_ppm: Annotated[int, Meta(ge=1, le=PPM)] = 800_000
    output_tokens_default: Annotated[int, Meta(ge=1, le=1_000_000)] = 512
    ttft_margin_ppm: Annotated[int, Meta(ge=100_000, le=10 * PPM)] = 1_100_000
    tpot_margin_ppm: Annotated[int, Meta(ge=0, le=10 * PPM)] = PPM
    backlog_max_ns: Annotated[int, Meta(ge=0, le=600 * NS_PER_S)] = 500 * NS_PER_MS
    queue_max: Annotated[int, Meta(ge=0, le=100_000)] = 1_024
    passes_max: Annotated[int, Meta(ge=0, le=10_000)] = 8
    scan_max: Annotated[int, Meta(ge=1, le=1_000)] = 16
    holder_timeout_ns: Annotated[int, Meta(ge=2 * NS_PER_S, le=3_600 * NS_PER_S)] = 5 * NS_PER_S
    request_max_ns: Annotated[int, Meta(ge=60 * NS_PER_S, le=86_400 * NS_PER_S)] = 3_600 * NS_PER_S
    retry_after_max_ns: Annotated[int, Meta(ge=NS_PER_S, le=3_600 * NS_PER_S)] = 60 * NS_PER_S
    affinity_tokens_min: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_024
    affinity_load_ppm: Annotated[int, Meta(ge=PPM, le=100 * PPM)] = 1_500_000
