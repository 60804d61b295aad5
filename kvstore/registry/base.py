"""The registry of slices: who holds each one, how it is used, what tiers hold. One Protocol, two kinds (memory, Redis).

It is a view for people, the command line and other programs: nobody decides by it. All of it is tables of short byte
strings, so that both kinds hold the same, and whatever holds them can be lost: who writes it can write all of it again.

A slice's record is 12 bytes and 2 for each holder: its hits and last use, then numbers. A number stands in the table
of holdings for an engine, a tier and what one slice takes there, so a record names no engine, and one with a number
that is not in the table any more is not held there.
"""

import struct
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import ClassVar, Final, NamedTuple, Protocol

import msgspec

from events.base import EngineId, SliceId
from events.slice import Tier
from kvstore.errors import KVError

FINGERPRINT_BYTES: Final = 16
NUMBERS_MAX: Final = 1 << 16
"""Numbers of holdings there can be."""
TIERS: Final = tuple(Tier)
_USE: Final = struct.Struct("<IQ")
_HOLDING: Final = struct.Struct("<BQ")
_HITS_MAX: Final = 2**32 - 1
_NS_MAX: Final = 2**64 - 1


class Table(StrEnum):
    """What there is, in the order in which it is written: a number is there before a record that names it."""

    HOLDINGS = "holdings"
    TIERS = "tiers"
    SLICES = "slices"
    PINS = "pins"
    HOT = "hot"


class Use(NamedTuple):
    """A slice's record. `hits` counts since it was first held; `holdings` are numbers, first held first."""

    hits: int
    last_use_ns: int
    holdings: tuple[int, ...]


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What a number stands for: a tier of an engine, and the bytes that one slice takes there."""

    engine_id: EngineId
    tier: Tier
    slice_bytes: int


class TierRow(msgspec.Struct, kw_only=True):
    """A tier of an engine: what is known to be there (`slices`, `slices_bytes`), beside what the engine measured (see
    `events.slice.TierMeasured`). `..._told` count slices in facts since the log began; `untold` are there, but beyond
    the limit of the registry. `measured_ns` 0: it was not measured since it was last cleared. `health` is its engine's,
    "" where nobody said: what a lost one held is not to be had now."""

    engine_id: EngineId
    tier: Tier
    slices: int = 0
    slices_bytes: int = 0
    untold: int = 0
    health: str = ""
    stored_told: int = 0
    removed_told: int = 0
    hits_told: int = 0
    cleared_told: int = 0
    measured_ns: int = 0
    bytes_max: int = 0
    bytes_used: int = 0
    slice_bytes: int = 0
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


class Prefix(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine has of a prompt: its first `slices` are each in some tier there; `by_tier`: the first so many are
    all in that tier."""

    engine_id: EngineId
    slices: int
    by_tier: dict[Tier, int]


class SliceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a slice. `pinned_until_ns` 0: it is not pinned. `heat` counts its hits, each halved with
    every half-life since; 0 when it is not one of the hot ones."""

    slice_id: SliceId
    hits: int = 0
    last_use_ns: int = 0
    pinned_until_ns: int = 0
    heat: float = 0.0
    holders: tuple[Holding, ...] = ()


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is: all of the log up to `seq` (pool time `now_ns`), written by `owner`. Not `complete`: it is being
    filled, and what is missing reads as a miss."""

    epoch: int
    owner: str
    writes: int
    seq: int
    now_ns: int
    complete: bool


class Write(NamedTuple):
    """One write of one writer. `number` grows by one from write to write; a later writer has a higher (epoch, owner).
    `anew` clears everything before it is applied. An item without a value is gone."""

    epoch: int
    owner: str
    number: int
    seq: int
    now_ns: int
    items: Sequence[tuple[Table, bytes, bytes | None]]
    anew: bool = False
    complete: bool = True


class Written(StrEnum):
    """What becomes of a write. `before`: it was taken before, nothing changed. `lost`: the write before it is not
    there, so all must be written anew. `replaced`: another writer has taken over."""

    WRITTEN = "written"
    BEFORE = "before"
    LOST = "lost"
    REPLACED = "replaced"


class RegistryError(KVError):
    """The registry cannot be asked now. `why` is what went wrong, `mend` what a person can do."""

    exit_code: ClassVar[int] = 2

    def __init__(self, why: str, *, where: str, mend: str = "") -> None:
        super().__init__(where=where)
        self.why, self.mend = why, mend

    def __str__(self) -> str:
        return f"{self.why} ({self.where})" + (f": {self.mend}" if self.mend else "")


class Registry(Protocol):
    """Every method is one round trip, and raises RegistryError where it cannot be asked."""

    async def write(self, write: Write) -> Written:
        """Apply all of a write, or nothing of it."""
        ...

    async def position(self) -> Position | None:
        """How far it is; None where nobody wrote anything yet, or all of it was lost."""
        ...

    async def longest_prefixes(self, prompts: Sequence[Sequence[SliceId]]) -> list[list[Prefix]]:
        """For each prompt (its slices, first to last) the engines that have its beginning, the longest first."""
        ...

    async def slices(self, ids: Sequence[SliceId]) -> list[SliceInfo]:
        """One for each id, in that order; without holders where nobody holds it."""
        ...

    async def hot(self, count: int) -> list[SliceInfo]:
        """The hottest slices, the hottest first."""
        ...

    async def pinned(self) -> list[SliceInfo]:
        """The slices that are pinned, those that stay longest first."""
        ...

    async def tiers(self) -> list[TierRow]:
        """The tiers of all engines, by engine, the fastest first."""
        ...


def field_of(slice_id: SliceId) -> bytes:
    """How a slice is called in a table: the 16 bytes of a fingerprint; any other name as it is, longer than that."""
    if len(slice_id) == 2 * FINGERPRINT_BYTES:
        try:
            raw = bytes.fromhex(slice_id)
        except ValueError:
            raw = b""
        if raw.hex() == slice_id:
            return raw
    return slice_id.encode().ljust(FINGERPRINT_BYTES + 1, b"\0")


def slice_of(field: bytes) -> SliceId:
    """The slice of a field."""
    return SliceId(field.hex() if len(field) == FINGERPRINT_BYTES else field.rstrip(b"\0").decode())


def pack_use(use: Use) -> bytes:
    """A record as it is kept. Hits stay at their most."""
    numbers = struct.pack(f"<{len(use.holdings)}H", *use.holdings)
    return _USE.pack(min(use.hits, _HITS_MAX), min(max(use.last_use_ns, 0), _NS_MAX)) + numbers


def unpack_use(record: bytes) -> Use:
    """A record, read."""
    hits, last_use_ns = _USE.unpack_from(record)
    return Use(hits, last_use_ns, struct.unpack(f"<{(len(record) - _USE.size) // 2}H", record[_USE.size :]))


def pack_number(number: int) -> bytes:
    """The field of a holding: as it stands in records."""
    return number.to_bytes(2, "little")


def pack_holding(holding: Holding) -> bytes:
    """A holding as it is kept: its tier's place among TIERS (from 1), bytes per slice, the engine's name."""
    head = _HOLDING.pack(TIERS.index(holding.tier) + 1, min(max(holding.slice_bytes, 0), _NS_MAX))
    return head + holding.engine_id.encode()


def unpack_holding(packed: bytes) -> Holding:
    """A holding, read."""
    tier, slice_bytes = _HOLDING.unpack_from(packed)
    engine_id = EngineId(packed[_HOLDING.size :].decode())
    return Holding(engine_id=engine_id, tier=TIERS[tier - 1], slice_bytes=slice_bytes)


def pack_ns(at_ns: int) -> bytes:
    """A point in time as it is kept."""
    return min(max(at_ns, 0), _NS_MAX).to_bytes(8, "little")


def unpack_ns(packed: bytes) -> int:
    """A point in time, read."""
    return int.from_bytes(packed, "little")


def tier_field(engine_id: EngineId, tier: Tier) -> bytes:
    """How a tier is called in its table."""
    return f"{engine_id}/{tier}".encode()


def info_of(
    field: bytes, holdings: dict[bytes, bytes], *, record: bytes | None, pin: bytes | None, heat: float
) -> SliceInfo:
    """What the tables say of a slice."""
    use = unpack_use(record) if record is not None else Use(0, 0, ())
    packed = (holdings.get(pack_number(number)) for number in use.holdings)
    return SliceInfo(
        slice_id=slice_of(field), hits=use.hits, last_use_ns=use.last_use_ns,
        pinned_until_ns=unpack_ns(pin) if pin is not None else 0, heat=heat,
        holders=tuple(unpack_holding(each) for each in packed if each is not None),
    )  # fmt: skip


def prefix_of(engine_id: str, reach: Sequence[int]) -> Prefix:
    """`reach`: in any tier, then in each of TIERS; tiers that do not hold the first slice are left out."""
    by_tier = {tier: count for tier, count in zip(TIERS, reach[1:], strict=True) if count}
    return Prefix(engine_id=EngineId(engine_id), slices=reach[0], by_tier=by_tier)


def longest_first(prefixes: Iterable[Prefix]) -> list[Prefix]:
    """The longest first; among equals the one with more of it in a faster tier, then by name."""
    return sorted(
        prefixes, key=lambda one: (-one.slices, *(-one.by_tier.get(tier, 0) for tier in TIERS), one.engine_id)
    )


def read_tiers(packed: Iterable[bytes]) -> list[TierRow]:
    """Rows of the table of tiers, by engine, the fastest first."""
    rows = [msgspec.json.decode(row, type=TierRow) for row in packed]
    return sorted(rows, key=lambda row: (row.engine_id, TIERS.index(row.tier)))
