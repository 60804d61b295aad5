"""What the registry of slices has to say, folded from the log: who holds which slice, how it is used, what tiers hold.

Pure, and bounded; nobody decides by it. `changed` says what to write down again. What an engine says twice counts once,
but for uses: a slice stands in `slices_hit` once for each time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from events.base import EngineId, Event, Recorded, SliceId
from events.control import Ticked
from events.engine import EngineHealthChanged, EngineRemoved
from events.slice import (
    SlicesCleared,
    SlicesHit,
    SlicesPinned,
    SlicesRemoved,
    SlicesStored,
    Tier,
    TierMeasured,
)
from kvstore.registry.base import (
    NUMBERS_MAX,
    Holding,
    Table,
    TierRow,
    Use,
    field_of,
    pack_holding,
    pack_ns,
    pack_number,
    pack_use,
    tier_field,
    unpack_use,
)
from kvstore.registry.heat import hit, pack_score
from policies.pins import PINS_MAX

SLICES_MAX: Final = 1 << 21
"""Slices that are told apart in a pool; those stored beyond are counted (`untold`)."""
TIERS_MAX: Final = 1_024
HOLDINGS_MAX: Final = 8_192
"""Tiers of engines by bytes per slice."""
SLICE_BYTES_MAX: Final = 2**40
"""So that what all slices take together can be written down, whatever an engine says."""
HOT_MAX: Final = 1_024
"""Hot slices: so many of the hottest are kept; up to twice as many until they are sorted out."""
NO_USE: Final = Use(0, 0, ())


@dataclass(slots=True)
class _Held:
    """A number in use: what it stands for, and the slices whose records name it."""

    holding: Holding
    fields: dict[bytes, None] = field(default_factory=dict)


class RegistryBook:
    """The tables of a registry after every record that `take` was given."""

    def __init__(self) -> None:
        self.seq = 0
        self.now_ns = 0
        self.changed: dict[tuple[Table, bytes], None] = {}
        self.rows: dict[tuple[EngineId, Tier], TierRow] = {}
        self._slices: dict[bytes, bytes] = {}
        self._pins: dict[bytes, int] = {}
        self._heat: dict[bytes, float] = {}
        self._health: dict[EngineId, str] = {}
        self._held: dict[int, _Held] = {}
        self._numbers: dict[tuple[EngineId, Tier], dict[int, int]] = {}
        self._next_number = 0

    @property
    def slices_known(self) -> int:
        """Slices that somebody holds."""
        return len(self._slices)

    @property
    def pins_known(self) -> int:
        """Slices that are pinned."""
        return len(self._pins)

    def held(self, engine_id: EngineId, slice_id: SliceId) -> bool:
        """Whether an engine holds a slice, in whatever tier."""
        record = self._slices.get(field_of(slice_id))
        if record is None:
            return False
        return any(self._held[number].holding.engine_id == engine_id for number in unpack_use(record).holdings)

    def take(self, recorded: Recorded) -> None:
        """Fold one record in."""
        self.seq = recorded.seq
        self.now_ns = max(self.now_ns, recorded.ts_ns)
        event = recorded.event
        match event:
            case SlicesStored():
                self._stored(event)
            case SlicesRemoved():
                self._removed(event)
            case SlicesHit():
                self._hit(event)
            case SlicesCleared():
                self._cleared(event.engine_id, event.tier)
            case TierMeasured():
                self._measured(event)
            case _:
                self._take_rest(event)

    def fields(self, table: Table) -> Sequence[bytes]:
        """What stands in a table now."""
        match table:
            case Table.HOLDINGS:
                return [pack_number(number) for number in self._held]
            case Table.TIERS:
                return [tier_field(*name) for name in self.rows]
            case Table.SLICES:
                return list(self._slices)
            case Table.PINS:
                return list(self._pins)
            case Table.HOT:
                return list(self._heat)

    def value(self, table: Table, name: bytes) -> bytes | None:
        """What stands in a field; None when it is gone."""
        match table:
            case Table.HOLDINGS:
                held = self._held.get(int.from_bytes(name, "little"))
                return pack_holding(held.holding) if held is not None else None
            case Table.TIERS:
                engine_id, _, tier = name.decode().rpartition("/")
                row = self.rows.get((EngineId(engine_id), Tier(tier)))
                return msgspec.json.encode(row) if row is not None else None
            case Table.SLICES:
                return self._slices.get(name)
            case Table.PINS:
                until_ns = self._pins.get(name)
                return pack_ns(until_ns) if until_ns is not None else None
            case Table.HOT:
                score = self._heat.get(name)
                return pack_score(score) if score is not None else None

    def items(self) -> Iterator[tuple[Table, bytes, bytes | None]]:
        """All of it."""
        for table in Table:
            for name in self.fields(table):
                yield table, name, self.value(table, name)

    def _take_rest(self, event: Event) -> None:
        match event:
            case Ticked():
                self._unpin([name for name, until_ns in self._pins.items() if until_ns <= self.now_ns])
            case SlicesPinned():
                self._pinned(event)
            case EngineRemoved():
                for name in [name for name in self.rows if name[0] == event.engine_id]:
                    self._cleared(*name)
                    del self.rows[name]
                    self._change(Table.TIERS, tier_field(*name))
                self._health.pop(event.engine_id, None)
            case EngineHealthChanged():
                if event.engine_id in self._health or len(self._health) < TIERS_MAX:
                    self._health[event.engine_id] = event.health.value
                for name in [name for name in self.rows if name[0] == event.engine_id]:
                    self.rows[name].health = event.health.value
                    self._change(Table.TIERS, tier_field(*name))
            case _:
                pass

    def _stored(self, event: SlicesStored) -> None:
        row = self._row(event.engine_id, event.tier)
        if row is None or (number := self._number_of(event.engine_id, event.tier, event.slice_bytes)) is None:
            return
        row.stored_told += len(event.slices)
        others = [other for other in self._numbers[event.engine_id, event.tier].values() if other != number]
        for slice_id in event.slices:
            name = field_of(slice_id)
            if name not in self._slices and len(self._slices) >= SLICES_MAX:
                row.untold += 1
                continue
            for other in others:
                if name in self._held[other].fields:
                    self._let_go(row, name, other)
            if name not in self._held[number].fields:
                self._take_up(row, name, number)
        self._retire(event.engine_id, event.tier)

    def _removed(self, event: SlicesRemoved) -> None:
        row = self._row(event.engine_id, event.tier)
        if row is None:
            return
        row.removed_told += len(event.slices)
        for name in map(field_of, event.slices):
            for number in self._numbers.get((event.engine_id, event.tier), {}).values():
                if name in self._held[number].fields:
                    self._let_go(row, name, number)
        self._retire(event.engine_id, event.tier)

    def _cleared(self, engine_id: EngineId, tier: Tier) -> None:
        row = self._row(engine_id, tier)
        if row is None:
            return
        row.cleared_told += row.slices
        row.untold = row.measured_ns = 0  # What was measured of it is void as well.
        for number in self._numbers.get((engine_id, tier), {}).values():
            for name in list(self._held[number].fields):
                self._let_go(row, name, number)
        self._retire(engine_id, tier)

    def _hit(self, event: SlicesHit) -> None:
        row = self._row(event.engine_id, event.tier)
        if row is not None:
            row.hits_told += len(event.slices)
        for name in map(field_of, event.slices):
            self._heat[name] = hit(self._heat.get(name), self.now_ns)
            self._change(Table.HOT, name)
            record = self._slices.get(name)
            if record is not None:
                use = unpack_use(record)
                self._put(name, Use(use.hits + 1, self.now_ns, use.holdings))
        if len(self._heat) > 2 * HOT_MAX:
            self._cool_down()

    def _cool_down(self) -> None:
        """Only the hottest stay."""
        coolest_first = sorted(self._heat, key=lambda name: (self._heat[name], name))
        for name in coolest_first[: len(coolest_first) - HOT_MAX]:
            del self._heat[name]
            self._change(Table.HOT, name)

    def _pinned(self, event: SlicesPinned) -> None:
        """As actors do: see `policies.pins`."""
        self._unpin(map(field_of, event.slices))
        if event.for_ns <= 0:
            return
        for name in map(field_of, event.slices):
            if len(self._pins) < PINS_MAX:
                self._pins[name] = self.now_ns + event.for_ns
                self._change(Table.PINS, name)

    def _unpin(self, names: Iterable[bytes]) -> None:
        for name in names:
            if self._pins.pop(name, None) is not None:
                self._change(Table.PINS, name)

    def _measured(self, event: TierMeasured) -> None:
        row = self._row(event.engine_id, event.tier)
        if row is None:
            return
        row.measured_ns = self.now_ns
        for name in _MEASURED:
            setattr(row, name, getattr(event, name))

    def _row(self, engine_id: EngineId, tier: Tier) -> TierRow | None:
        """The tier's row, about to be changed; None beyond the limit."""
        row = self.rows.get((engine_id, tier))
        if row is None:
            if len(self.rows) >= TIERS_MAX:
                return None
            health = self._health.get(engine_id, "")
            row = self.rows[engine_id, tier] = TierRow(engine_id=engine_id, tier=tier, health=health)
        self._change(Table.TIERS, tier_field(engine_id, tier))
        return row

    def _number_of(self, engine_id: EngineId, tier: Tier, slice_bytes: int) -> int | None:
        """The number of a holding, a new one if need be; None beyond the limit. Numbers go round, so that one is not
        used again while an old record may still stand somewhere."""
        slice_bytes = min(max(slice_bytes, 0), SLICE_BYTES_MAX)
        numbers = self._numbers.setdefault((engine_id, tier), {})
        if slice_bytes not in numbers:
            if len(self._held) >= HOLDINGS_MAX:
                return None
            while self._next_number in self._held:
                self._next_number = (self._next_number + 1) % NUMBERS_MAX
            number, self._next_number = self._next_number, (self._next_number + 1) % NUMBERS_MAX
            numbers[slice_bytes] = number
            self._held[number] = _Held(Holding(engine_id=engine_id, tier=tier, slice_bytes=slice_bytes))
            self._change(Table.HOLDINGS, pack_number(number))
        return numbers[slice_bytes]

    def _retire(self, engine_id: EngineId, tier: Tier) -> None:
        """Numbers under which nothing is held any more."""
        numbers = self._numbers.get((engine_id, tier), {})
        for slice_bytes in [size for size, number in numbers.items() if not self._held[number].fields]:
            number = numbers.pop(slice_bytes)
            del self._held[number]
            self._change(Table.HOLDINGS, pack_number(number))
        if not numbers:
            self._numbers.pop((engine_id, tier), None)

    def _take_up(self, row: TierRow, name: bytes, number: int) -> None:
        held = self._held[number]
        held.fields[name] = None
        row.slices += 1
        row.slices_bytes += held.holding.slice_bytes
        record = self._slices.get(name)
        use = unpack_use(record) if record is not None else NO_USE
        self._put(name, Use(use.hits, max(use.last_use_ns, self.now_ns), (*use.holdings, number)))

    def _let_go(self, row: TierRow, name: bytes, number: int) -> None:
        held = self._held[number]
        del held.fields[name]
        row.slices -= 1
        row.slices_bytes -= held.holding.slice_bytes
        use = unpack_use(self._slices[name])
        left = tuple(other for other in use.holdings if other != number)
        if left:
            self._put(name, Use(use.hits, use.last_use_ns, left))
        else:
            del self._slices[name]
            self._change(Table.SLICES, name)

    def _put(self, name: bytes, use: Use) -> None:
        self._slices[name] = pack_use(use)
        self._change(Table.SLICES, name)

    def _change(self, table: Table, name: bytes) -> None:
        self.changed[table, name] = None


_MEASURED: Final = tuple(
    name
    for name in TierMeasured.__struct_fields__
    if name in TierRow.__struct_fields__ and name not in ("engine_id", "tier")
)
"""What a row has of a measurement, under the same names."""
