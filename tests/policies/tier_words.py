"""Short words for slices in tiers: an engine that reports them, what it reports, what becomes of orders.

Slices of 10 tokens take 1,000 bytes in every tier; the engine computes one alone in 10 ms. SSD is read at 10 MB/s (so a
slice takes 0.1 ms), DRAM at 100 MB/s.
"""

from typing import Any

from events.base import EngineId, RequestId
from events.decisions import (
    CancelReason,
    DeferReason,
    RequestAdmitted,
    RequestDeferred,
    TransferCancelled,
    TransferOrdered,
)
from events.engine import EngineRegistered
from events.slice import (
    SlicesCleared,
    SlicesHit,
    SlicesPinned,
    SlicesRemoved,
    SlicesStored,
    Tier,
    TierMeasured,
    TransferEnd,
    TransferFinished,
)
from tests.policies.words import S, engine, slices
from tests.spec import START_NS

SIZE = 1_000
SSD_SPEED, DRAM_SPEED = 10_000_000, 100_000_000
HBM, DRAM, SSD = Tier.HBM, Tier.DRAM, Tier.SSD


def tiered(name: str = "e1", **more: Any) -> EngineRegistered:
    """An engine that reports its slices."""
    return engine(name, reports_slices=True, **more)


def stored(tier: Tier, *names: str, on: str = "e1") -> SlicesStored:
    return SlicesStored(engine_id=EngineId(on), tier=tier, slices=slices(*names), slice_bytes=SIZE)


def removed(tier: Tier, *names: str, on: str = "e1") -> SlicesRemoved:
    return SlicesRemoved(engine_id=EngineId(on), tier=tier, slices=slices(*names))


def cleared(tier: Tier, *, on: str = "e1") -> SlicesCleared:
    return SlicesCleared(engine_id=EngineId(on), tier=tier)


def hit(tier: Tier, *names: str, on: str = "e1") -> SlicesHit:
    return SlicesHit(engine_id=EngineId(on), tier=tier, slices=slices(*names))


def gauged(tier: Tier, used: int = 0, room: int = 100, *, on: str = "e1", queue: int = 0, **more: Any) -> TierMeasured:
    """A tier with room for so many slices, of which so many are used; `queue` slices wait to be read."""
    speed = {Tier.HBM: 0, Tier.DRAM: DRAM_SPEED, Tier.SSD: SSD_SPEED}[tier]
    return TierMeasured(
        engine_id=EngineId(on), tier=tier, bytes_max=room * SIZE, bytes_used=used * SIZE, slice_bytes=SIZE,
        read_bytes_per_s=more.pop("read", speed), write_bytes_per_s=more.pop("write", speed),
        read_queue_bytes=queue * SIZE, **more,
    )  # fmt: skip


def pinned(*names: str, for_s: int = 60) -> SlicesPinned:
    return SlicesPinned(slices=slices(*names), for_ns=for_s * S)


def deferred(name: str, *, until_s: int = 9) -> RequestDeferred:
    return RequestDeferred(
        request_id=RequestId(name), until_ns=START_NS + until_s * S, reason=DeferReason.KV_BUDGET
    )  # fmt: skip


def admitted(name: str, on: str = "e1", *, ttft_ns: int = 1) -> RequestAdmitted:
    return RequestAdmitted(
        request_id=RequestId(name), engine_id=EngineId(on), output_tokens_predicted=1, kv_cache_tokens=1,
        kv_bytes_reserved=1, ttft_predicted_ns=ttft_ns, slo_slack_ns=1,
    )  # fmt: skip


def answered(
    order: str, end: TransferEnd = TransferEnd.DONE, *, on: str = "e1", done: int = 0
) -> TransferFinished:  # fmt: skip
    return TransferFinished(order=order, engine_id=EngineId(on), end=end, slices_done=done)


def failed(order: str, *, on: str = "e1", done: int = 0) -> TransferFinished:
    return answered(order, TransferEnd.PARTLY if done else TransferEnd.FAILED, on=on, done=done)


def back(order: str, reason: CancelReason, on: str = "e1") -> TransferCancelled:
    return TransferCancelled(order=order, engine_id=EngineId(on), reason=reason)


def names_of(order: TransferOrdered) -> str:
    """Its slices, in order, as one word."""
    return " ".join(order.slices)
