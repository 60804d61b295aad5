"""Which slices are in which tier of an engine, and how quick its tiers are: from what the engine reports.

For engines that report (`Capability.reports_slices`); of others only what was sent there is known
(`policies.prefix_index`). Reports may come late or not at all after a gap, so this is what was last said, not what is.

A prompt's slices form a chain, each worth something only with all before it. What an engine has of it is: the leading
run in HBM, free; then the run after that, as long as every slice is in DRAM or SSD, which has to be loaded. A slice in
HBM behind a hole is not found there (vLLM looks for the longest prefix), so behind the first run HBM does not count.

Example: slices a, b in HBM, c in DRAM, d in SSD and DRAM, e in SSD, f nowhere, g in HBM: 2 in HBM, 2 in DRAM, 1 in SSD.
"""

from collections.abc import Container, Sequence
from typing import Final, NamedTuple

import msgspec

from events.base import SliceId
from events.slice import SlicesCleared, SlicesHit, SlicesRemoved, SlicesStored, Tier, TierMeasured
from policies.memory.gate import fetch_ns

ENTRIES_MAX = 65_536
"""Slices known of one engine; those stored or used longest ago are forgotten first."""
BIT: Final[dict[Tier, int]] = {Tier.HBM: 1, Tier.DRAM: 2, Tier.SSD: 4}
"""How a tier stands in a slice's set of tiers."""
_HBM, _DRAM, _SSD = BIT[Tier.HBM], BIT[Tier.DRAM], BIT[Tier.SSD]
_BELOW = _DRAM | _SSD

SliceFact = SlicesStored | SlicesRemoved | SlicesCleared | SlicesHit | TierMeasured
"""What an index is made of."""
SLICE_FACTS: Final = (SlicesStored, SlicesRemoved, SlicesCleared, SlicesHit, TierMeasured)


class Gauge(msgspec.Struct):
    """What was last measured of a tier, and when: see `events.slice.TierMeasured`. 0 = not known yet; nor is what was
    said to be below it."""

    at_ns: int = 0
    bytes_max: int = 0
    bytes_used: int = 0
    slice_bytes: int = 0
    read_bytes_per_s: int = 0
    write_bytes_per_s: int = 0
    read_queue_bytes: int = 0
    write_queue_bytes: int = 0


class TierIndex(msgspec.Struct):
    """One engine's slices, each with the set of its tiers (sums of BIT), used longest ago first; its tiers' gauges."""

    tiers_of: dict[SliceId, int] = msgspec.field(default_factory=dict)
    gauges: dict[Tier, Gauge] = msgspec.field(default_factory=dict)


class Leading(NamedTuple):
    """What an engine has of a prompt, in slices from its beginning: `hbm` in device memory; behind those `near` that
    are all in DRAM; and in all `dram` in DRAM (those included) and `ssd` in SSD alone that go on without a hole."""

    hbm: int
    near: int
    dram: int
    ssd: int


NOTHING: Final = Leading(0, 0, 0, 0)


def heed(index: TierIndex, event: SliceFact, now_ns: int) -> None:
    """Take a report of this engine in. Said again, it changes nothing but how recent a slice is. Of slices that are
    named together, first to last, the first counts as the one used last: what is forgotten is the end of a chain."""
    match event:
        case SlicesStored():
            _stored(index, event)
        case SlicesRemoved():
            for slice_id in event.slices:
                _take_out(index, slice_id, event.tier)
        case SlicesCleared():
            _clear(index, event.tier)
        case SlicesHit():
            for slice_id in reversed(event.slices):
                if (tiers := index.tiers_of.pop(slice_id, 0)) != 0:
                    index.tiers_of[slice_id] = tiers
        case TierMeasured():
            amounts = (
                event.bytes_max, event.bytes_used, event.slice_bytes, event.read_bytes_per_s, event.write_bytes_per_s,
                event.read_queue_bytes, event.write_queue_bytes,
            )  # fmt: skip
            index.gauges[event.tier] = Gauge(now_ns, *(max(0, amount) for amount in amounts))


def _stored(index: TierIndex, event: SlicesStored) -> None:
    bit, tiers_of = BIT[event.tier], index.tiers_of
    for slice_id in reversed(event.slices):
        tiers_of[slice_id] = tiers_of.pop(slice_id, 0) | bit
    while len(tiers_of) > ENTRIES_MAX:
        del tiers_of[next(iter(tiers_of))]
    gauge = index.gauges.setdefault(event.tier, Gauge())
    gauge.slice_bytes = max(0, event.slice_bytes) or gauge.slice_bytes


def _take_out(index: TierIndex, slice_id: SliceId, tier: Tier) -> None:
    left = index.tiers_of.get(slice_id, 0) & ~BIT[tier]
    if left:
        index.tiers_of[slice_id] = left
    else:
        index.tiers_of.pop(slice_id, None)


def _clear(index: TierIndex, tier: Tier) -> None:
    """Nothing is known to be in that tier any more. How quick it is, is still the best guess."""
    bit = BIT[tier]
    index.tiers_of = {slice_id: left for slice_id, tiers in index.tiers_of.items() if (left := tiers & ~bit)}
    if (gauge := index.gauges.get(tier)) is not None:
        gauge.bytes_used = gauge.read_queue_bytes = gauge.write_queue_bytes = 0


def holds(index: TierIndex, slice_id: SliceId, tier: Tier) -> bool:
    """Whether that slice is in that tier, as last reported."""
    return bool(index.tiers_of.get(slice_id, 0) & BIT[tier])


def leading(index: TierIndex, slices: Sequence[SliceId], running: Container[SliceId] = ()) -> Leading:
    """What the engine has of this prompt; `running` are slices of what runs there, which will be in HBM whether that
    was reported yet or not. Costs a look-up or two for each slice that it has, and one."""
    hbm = near = dram = ssd = 0
    device, tiers_of = True, index.tiers_of
    for slice_id in slices:
        tiers = tiers_of.get(slice_id, 0)
        if device and (tiers & _HBM or slice_id in running):
            hbm += 1
            continue
        device = False
        if not tiers & _BELOW:
            break
        if tiers & _DRAM:
            dram += 1
            near += not ssd
        else:
            ssd += 1
    return Leading(hbm, near, dram, ssd)


def read_ns(index: TierIndex, tier: Tier, slices: int, *, queued_bytes: int = 0) -> int:
    """How long bringing so many slices up from that tier to the one above takes, behind what waited there when it was
    measured, and `queued_bytes` since."""
    gauge = index.gauges.get(tier)
    if gauge is None or not slices:
        return 0
    return fetch_ns(slices * gauge.slice_bytes, gauge.read_queue_bytes + queued_bytes, gauge.read_bytes_per_s)


def load_ns(index: TierIndex, *, dram: int, ssd: int, queued_bytes: int = 0) -> int:
    """How long it takes until so many slices are in HBM, those of SSD by way of DRAM; `queued_bytes` wait at SSD since
    it was measured. The links are taken to work one after the other: the upper end."""
    return read_ns(index, Tier.SSD, ssd, queued_bytes=queued_bytes) + read_ns(index, Tier.DRAM, dram + ssd)
