"""Facts about slices: runs of KV blocks and where they are. Batched: never one event per block."""

from enum import StrEnum

from events.base import EngineId, Event, SliceId


class Tier(StrEnum):
    """Where KV can be."""

    HBM = "hbm"
    DRAM = "dram"
    SSD = "ssd"


class SlicesStored(Event, frozen=True, kw_only=True, tag="slices_stored.v1"):
    """These slices are now resident, whole, in a tier of an engine."""

    engine_id: EngineId
    tier: Tier
    slices: tuple[SliceId, ...]
    slice_bytes: int


class SlicesRemoved(Event, frozen=True, kw_only=True, tag="slices_removed.v1"):
    """These slices are no longer (wholly) resident there."""

    engine_id: EngineId
    tier: Tier
    slices: tuple[SliceId, ...]


class SlicesCleared(Event, frozen=True, kw_only=True, tag="slices_cleared.v1"):
    """Everything known of a tier of an engine is void (restart, reset, or a gap in its reports)."""

    engine_id: EngineId
    tier: Tier
    reason: str = ""


class SlicesPinned(Event, frozen=True, kw_only=True, tag="slices_pinned.v1"):
    """An operator wants these slices to stay where they are for `for_ns` of pool time (0 = no longer)."""

    slices: tuple[SliceId, ...]
    for_ns: int
