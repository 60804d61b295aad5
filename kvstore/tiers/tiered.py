"""Several tiers of one engine as one object: HBM over DRAM over SSD, fastest first.

A slice may lie in several tiers at once. A move copies first and lets go afterwards, so there is a whole copy at every
moment; a read takes the fastest copy that is good and goes on to the next one if that is damaged, gone or out of
reach. Nothing is evicted here: a full tier raises BudgetExceeded, and the caller, who has a policy, makes room.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from events.base import SliceId
from events.slice import Tier
from kvstore.errors import BudgetExceeded, ChecksumMismatch, NotResident, Pinned, TierUnavailable
from kvstore.tiers.base import Buffer, TierStats, TierStore

Recode = Callable[[memoryview, Tier, Tier], Buffer]
"""The bytes of a slice as the first tier keeps them, in the form of the second one (another dtype, say)."""


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """Where a slice came from, how many bytes it has, and whether it is now in the tier it was to be promoted to."""

    tier: Tier
    bytes_: int
    promoted: bool = False


class TieredBackend:
    """Thread-safe. Callers give and get slices in the form of the fastest tier; `recode` makes it that of another."""

    def __init__(self, tiers: Sequence[TierStore], *, recode: Recode | None = None) -> None:
        assert tiers, "at least one tier"
        self._tiers = {store.tier: store for store in tiers}
        assert len(self._tiers) == len(tiers), "one store a tier"
        self._top, self._recode = tiers[0].tier, recode

    def __getitem__(self, tier: Tier) -> TierStore:
        """The store of that tier: its budget, pins, inventory and amounts. KeyError if there is none."""
        return self._tiers[tier]

    def put(self, slice_id: SliceId, data: Buffer, *, tier: Tier | None = None) -> bool:
        """Keep a copy in that tier (the fastest unless said otherwise). See TierStore.put."""
        store = self._tiers[tier or self._top]
        return store.put(slice_id, self._form(memoryview(data).cast("B"), self._top, store.tier))

    def fetch(self, slice_id: SliceId, out: bytearray | memoryview, *, promote_to: Tier | None = None) -> Fetched:
        """Copy the slice to the beginning of `out`, from the fastest tier that can give it, whole.

        With `promote_to` a copy goes there too, if its budget has room: a read never fails for that. NotResident if no
        tier has it; TierUnavailable if the only ones that have it are out of reach. `out` is unspecified then.
        """
        out = memoryview(out).cast("B")
        away: TierUnavailable | None = None
        for store in self._tiers.values():
            if store.holds(slice_id):
                try:
                    bytes_ = self._read(store, slice_id, out)
                except (NotResident, ChecksumMismatch):
                    continue
                except TierUnavailable as error:
                    away = error
                    continue
                promoted = promote_to is not None and self._promoted(slice_id, out[:bytes_], promote_to)
                return Fetched(tier=store.tier, bytes_=bytes_, promoted=promoted)
        raise away or NotResident(where="/".join(self._tiers), name=slice_id)

    def _read(self, store: TierStore, slice_id: SliceId, out: memoryview) -> int:
        if self._recode is None or store.tier is self._top:
            return store.read_into(slice_id, out)
        with store.lend(slice_id) as view:
            data = memoryview(self._recode(view, store.tier, self._top)).cast("B")
        out[: data.nbytes] = data
        return data.nbytes

    def _promoted(self, slice_id: SliceId, data: memoryview, tier: Tier) -> bool:
        store = self._tiers[tier]
        with suppress(BudgetExceeded, TierUnavailable):
            store.put(slice_id, self._form(data, self._top, tier))
        return store.holds(slice_id)

    def replicate(self, slice_id: SliceId, *, source: Tier, target: Tier) -> bool:
        """Have a copy in `target` as well; whether it is there now. False: another thread is at it.

        Raises NotResident or ChecksumMismatch (of the source), BudgetExceeded (of the target), TierUnavailable.
        """
        there, here = self._tiers[target], self._tiers[source]
        if there.holds(slice_id):
            return True
        if self._recode is not None:
            with here.lend(slice_id) as view:
                there.put(slice_id, self._recode(view, source, target))
        elif here.lends_in_place:
            with here.lend(slice_id) as view:
                there.put(slice_id, view)
        else:
            _fill(slice_id, here, there)
        return there.holds(slice_id)

    def promote(self, slice_id: SliceId, *, target: Tier) -> bool:
        """Have a copy in `target`, from the fastest tier that has a good one; that one keeps its own. See replicate."""
        last: NotResident | ChecksumMismatch | TierUnavailable = NotResident(where=target, name=slice_id)
        for tier in self.where(slice_id):
            try:
                return self.replicate(slice_id, source=tier, target=target)
            except (NotResident, ChecksumMismatch, TierUnavailable) as error:
                last = error
        raise last

    def demote(self, slice_id: SliceId, *, source: Tier, target: Tier) -> bool:
        """Move it: a whole copy in `target`, then none in `source`. False: another thread is at it, nothing was let go.

        Raises Pinned (in the source) and what `replicate` raises; the source then still has it.
        """
        here, there = self._tiers[source], self._tiers[target]
        if pins := here.pins(slice_id):
            raise Pinned(where=source, name=slice_id, pins=pins)
        if not self.replicate(slice_id, source=source, target=target):
            return False
        try:
            there.pin(slice_id)  # Nobody lets go of the copy before the original is gone.
        except NotResident:
            return False
        try:
            with suppress(NotResident):
                here.drop(slice_id)
        finally:
            there.unpin(slice_id)
        return True

    def drop(self, slice_id: SliceId, *, tier: Tier) -> None:
        """Let go of the copy in that tier. See TierStore.drop."""
        self._tiers[tier].drop(slice_id)

    def pin(self, slice_id: SliceId, *, tier: Tier) -> None:
        """Keep the copy in that tier until unpinned. See TierStore.pin."""
        self._tiers[tier].pin(slice_id)

    def unpin(self, slice_id: SliceId, *, tier: Tier) -> None:
        """Take one pin of it back. See TierStore.unpin."""
        self._tiers[tier].unpin(slice_id)

    def where(self, slice_id: SliceId) -> tuple[Tier, ...]:
        """The tiers that hold it, whole, fastest first."""
        return tuple(tier for tier, store in self._tiers.items() if store.holds(slice_id))

    def inventory(self) -> dict[Tier, tuple[tuple[SliceId, int], ...]]:
        """What is where, whole."""
        return {tier: store.inventory() for tier, store in self._tiers.items()}

    def stats(self) -> Mapping[Tier, TierStats]:
        """Amounts of each tier."""
        return {tier: store.stats() for tier, store in self._tiers.items()}

    def close(self) -> None:
        """Close every tier; what lies on disk stays."""
        for store in self._tiers.values():
            store.close()

    def _form(self, data: memoryview, held: Tier, wanted: Tier) -> Buffer:
        return data if self._recode is None or held is wanted else self._recode(data, held, wanted)


def _fill(slice_id: SliceId, source: TierStore, target: TierStore) -> None:
    """Have the source write straight into the memory of the target."""
    size = source.bytes_of(slice_id)

    def write(memory: memoryview) -> None:
        if source.read_into(slice_id, memory) != size:
            raise NotResident(where=source.tier, name=slice_id)  # Another one took its name meanwhile.

    target.fill(slice_id, size, write)
