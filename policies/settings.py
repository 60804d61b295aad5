"""The settings of admission: one struct, with the range of each, and the one way they are changed."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from events.base import NS_PER_MS, NS_PER_S, PPM


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


class AdmissionSettings(msgspec.Struct, kw_only=True):
    """What can be changed about admission, live.

    `safety_ppm` of an engine's KV blocks are never promised. `output_quantile_ppm` of a tenant's outputs are
    expected to end within the reserved length; `output_tokens_default` stands in where nothing is known.
    A predicted TTFT is multiplied by `ttft_margin_ppm` before it is held against the slack; TPOT limits by
    `tpot_margin_ppm` (0 = no TPOT guard). A request waits here, not in an engine, while that engine's prefill
    backlog is above `backlog_max_ns` (0 = no such limit).

    At most `queue_max` requests are deferred. The oldest of a queue is passed by at most `passes_max` later ones,
    and at most `scan_max` are looked at per record.

    A holder is lost after `holder_timeout_ns` without a word; a request holds its place at most
    `request_max_ns`. `retry_after_max_ns` bounds the advice given with a refusal.

    `affinity_tokens_min` cached tokens bind a prompt to an engine (placement `prefix_affinity`) unless its load is
    above `affinity_load_ppm` of the mean.
    """

    mode: Mode = Mode.ENFORCE
    placement: Placement = Placement.SLO_AWARE
    safety_ppm: int = 50_000
    output_quantile_ppm: int = 800_000
    output_tokens_default: int = 512
    ttft_margin_ppm: int = 1_100_000
    tpot_margin_ppm: int = PPM
    backlog_max_ns: int = 500 * NS_PER_MS
    queue_max: int = 1_024
    passes_max: int = 8
    scan_max: int = 16
    holder_timeout_ns: int = 5 * NS_PER_S
    request_max_ns: int = 3_600 * NS_PER_S
    retry_after_max_ns: int = 60 * NS_PER_S
    affinity_tokens_min: int = 1_024
    affinity_load_ppm: int = 1_500_000


CHOICES: dict[str, type[StrEnum]] = {"mode": Mode, "placement": Placement}
RANGES: dict[str, tuple[int, int]] = {
    "safety_ppm": (0, 500_000),
    "output_quantile_ppm": (1, PPM),
    "output_tokens_default": (1, 1_000_000),
    "ttft_margin_ppm": (100_000, 10 * PPM),
    "tpot_margin_ppm": (0, 10 * PPM),
    "backlog_max_ns": (0, 600 * NS_PER_S),
    "queue_max": (0, 100_000),
    "passes_max": (0, 10_000),
    "scan_max": (1, 1_000),
    "holder_timeout_ns": (2 * NS_PER_S, 3_600 * NS_PER_S),
    "request_max_ns": (60 * NS_PER_S, 86_400 * NS_PER_S),
    "retry_after_max_ns": (NS_PER_S, 3_600 * NS_PER_S),
    "affinity_tokens_min": (1, 1_000_000),
    "affinity_load_ppm": (PPM, 100 * PPM),
}


def apply(settings: AdmissionSettings, changes: Mapping[str, Any]) -> None:
    """Change the named keys, all of them or none. Raises ValueError with key, value and what is allowed."""
    checked = {key: _checked(key, value) for key, value in changes.items()}
    for key, value in checked.items():
        setattr(settings, key, value)


def _checked(key: str, value: object) -> int | StrEnum:
    if key in CHOICES:
        allowed = [choice.value for choice in CHOICES[key]]
        if value not in allowed:
            raise ValueError(f"admission.{key} = {value!r} (allowed: {', '.join(allowed)})")
        return CHOICES[key](value)
    if key not in RANGES:
        raise ValueError(f"admission.{key} = {value!r}: no such setting (allowed: {', '.join([*CHOICES, *RANGES])})")
    low, high = RANGES[key]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"admission.{key} = {value!r} (allowed: a whole number from {low} to {high})")
    return value
