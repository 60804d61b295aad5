"""The registry of slices in this process: what tests and logs at rest are read with, and what the Redis kind has to
equal."""

from collections.abc import Sequence

from events.base import EngineId, SliceId
from kvstore.registry.base import (
    TIERS,
    Position,
    Prefix,
    SliceInfo,
    Table,
    TierRow,
    Write,
    Written,
    field_of,
    info_of,
    longest_first,
    prefix_of,
    read_tiers,
    unpack_ns,
)
from kvstore.registry.heat import heat_at, unpack_score


class MemoryRegistry:
    """See `Registry`."""

    def __init__(self) -> None:
        self._position: Position | None = None
        self._tables = _empty()

    def forget(self) -> None:
        """Lose everything, as a server does that is flushed."""
        self._position, self._tables = None, _empty()

    async def write(self, write: Write) -> Written:
        """Apply all of a write, or nothing of it."""
        held, writes = self._position, 0
        if held is not None and (held.epoch, held.owner) > (write.epoch, write.owner):
            return Written.REPLACED
        if held is not None and (held.epoch, held.owner) == (write.epoch, write.owner):
            writes = held.writes
        if writes >= write.number:
            return Written.BEFORE
        if write.anew:
            self._tables = _empty()
        elif writes != write.number - 1 or not writes:
            return Written.LOST
        for table, field, value in write.items:
            self._tables[table].pop(field, None)
            if value is not None:
                self._tables[table][field] = value
        self._position = Position(
            epoch=write.epoch, owner=write.owner, writes=write.number, seq=write.seq, now_ns=write.now_ns,
            complete=write.complete,
        )  # fmt: skip
        return Written.WRITTEN

    async def position(self) -> Position | None:
        """How far it is."""
        return self._position

    async def longest_prefixes(self, prompts: Sequence[Sequence[SliceId]]) -> list[list[Prefix]]:
        """For each prompt the engines that have its beginning, the longest first."""
        return [self._longest_prefix(slices) for slices in prompts]

    def _longest_prefix(self, slices: Sequence[SliceId]) -> list[Prefix]:
        reach: dict[EngineId, list[int]] = {}
        for before, slice_id in enumerate(slices):
            held = {(one.engine_id, one.tier) for one in self._info(field_of(slice_id)).holders}
            if before == 0:
                reach = {engine_id: [0] * (1 + len(TIERS)) for engine_id, _ in sorted(held)}
            for engine_id, counts in reach.items():
                for place, tiers in enumerate((TIERS, *((tier,) for tier in TIERS))):
                    if counts[place] == before and any((engine_id, tier) in held for tier in tiers):
                        counts[place] += 1
            if all(counts[0] <= before for counts in reach.values()):
                break
        return longest_first(prefix_of(engine_id, counts) for engine_id, counts in reach.items())

    async def slices(self, ids: Sequence[SliceId]) -> list[SliceInfo]:
        """One for each id, in that order."""
        return [self._info(field_of(slice_id)) for slice_id in ids]

    async def hot(self, count: int) -> list[SliceInfo]:
        """The hottest slices, the hottest first."""
        scores = sorted(((-unpack_score(score), field) for field, score in self._tables[Table.HOT].items()))
        return [self._info(field) for _, field in scores[:count]]

    async def pinned(self) -> list[SliceInfo]:
        """The slices that are pinned, those that stay longest first."""
        pins = sorted((-unpack_ns(until), field) for field, until in self._tables[Table.PINS].items())
        return [self._info(field) for _, field in pins]

    async def tiers(self) -> list[TierRow]:
        """The tiers of all engines, by engine, the fastest first."""
        return read_tiers(self._tables[Table.TIERS].values())

    def _info(self, field: bytes) -> SliceInfo:
        tables = self._tables
        score = tables[Table.HOT].get(field)
        now_ns = self._position.now_ns if self._position is not None else 0
        return info_of(
            field, tables[Table.HOLDINGS], record=tables[Table.SLICES].get(field), pin=tables[Table.PINS].get(field),
            heat=0.0 if score is None else heat_at(unpack_score(score), now_ns),
        )  # fmt: skip


def _empty() -> dict[Table, dict[bytes, bytes]]:
    return {table: {} for table in Table}
