"""Facts about slices: runs of KV blocks and where they are. Batched: never one event per block."""

from enum import StrEnum

from events.base import EngineId, Event, RequestId, SliceId


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


class SlicesHit(Event, frozen=True, kw_only=True, tag="slices_hit.v1"):
    """Requests began with these slices and got them from this tier instead of computing them; a slice stands here once
    for each time."""

    engine_id: EngineId
    tier: Tier
    slices: tuple[SliceId, ...]


class TierMeasured(Event, frozen=True, kw_only=True, tag="tier_measured.v1"):
    """What a tier of an engine holds, and what its link to the tier above does: bytes per second as last measured (0 =
    not yet), and the bytes that stand in its queue now. Totals count from the engine's start.

    `slice_bytes` is what one slice takes there; `corrupt_total` slices failed their checksum and were never served.
    Said of the device's own tier, `directive_version` is the newest `engine_directed` that the engine's agent was told.
    `lazy`: the tier takes in what the one above evicts, and not what is computed.
    """

    engine_id: EngineId
    tier: Tier
    bytes_max: int
    bytes_used: int
    slice_bytes: int
    read_bytes_per_s: int = 0
    write_bytes_per_s: int = 0
    read_queue_bytes: int = 0
    write_queue_bytes: int = 0
    hits_total: int = 0
    misses_total: int = 0
    evictions_total: int = 0
    failures_total: int = 0
    corrupt_total: int = 0
    directive_version: int = 0
    lazy: bool = False


class TransferEnd(StrEnum):
    """How a transfer ended. `partly`: `slices_done` of them are there; what is missing was not moved by halves."""

    DONE = "done"
    PARTLY = "partly"
    FAILED = "failed"
    CANCELLED = "cancelled"
    NOT_NEEDED = "not_needed"


class TransferFinished(Event, frozen=True, kw_only=True, tag="transfer_finished.v1"):
    """What became of an order (`transfer_ordered`). `took_ns` counts from its being taken up; `slices_done` are there
    now (of a drop: gone now), `bytes_moved` went over the link. `why` names the failure ("" = none)."""

    order: str
    engine_id: EngineId
    end: TransferEnd
    slices_done: int
    bytes_moved: int = 0
    took_ns: int = 0
    tries: int = 1
    why: str = ""


class ChoiceKind(StrEnum):
    """What an engine chooses alone, within a step, by its directive: which slices leave a tier, who gives way, whether
    to fetch or to compute again."""

    EVICT = "evict"
    VICTIM = "victim"
    FETCH = "fetch"


class ChoiceMade(Event, frozen=True, kw_only=True, tag="choice_made.v1"):
    """A delegated choice, said afterwards. `number` is its place in the engine's own journal, `directive_version` the
    directive that it was made under, `candidates_digest` the digest of all that was looked at, in order (BLAKE2b-16, in
    hex), `candidates` how many; `chosen` are the slices that left, or the requests that gave way; of a fetch, `chosen`
    is empty when it was not worth it."""

    engine_id: EngineId
    number: int
    kind: ChoiceKind
    directive_version: int
    candidates: int
    candidates_digest: str
    chosen: tuple[str, ...] = ()
    for_request: RequestId = RequestId("")
