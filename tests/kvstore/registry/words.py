"""Words for tests of registries: a few slices, holdings by number, and a writer."""

from events.base import EngineId, SliceId
from events.slice import Tier
from kvstore.fingerprint import fingerprints
from kvstore.registry.base import (
    Holding,
    Registry,
    Table,
    Use,
    Write,
    Written,
    field_of,
    pack_holding,
    pack_number,
    pack_use,
)

A, B, C, D, E = IDS = fingerprints(range(5), key=b"test", slice_tokens=1)
ODD = SliceId("k" + "ab" * 20)
E1, E2 = EngineId("e1"), EngineId("e2")
HOLDINGS = {
    1: Holding(engine_id=E1, tier=Tier.HBM, slice_bytes=100),
    2: Holding(engine_id=E1, tier=Tier.DRAM, slice_bytes=100),
    3: Holding(engine_id=E1, tier=Tier.SSD, slice_bytes=60),
    4: Holding(engine_id=E2, tier=Tier.HBM, slice_bytes=100),
    5: Holding(engine_id=E1, tier=Tier.DRAM, slice_bytes=50),
}
Item = tuple[Table, bytes, bytes | None]


def held(slice_id: SliceId, *numbers: int, hits: int = 0, last_use_ns: int = 0) -> Item:
    return Table.SLICES, field_of(slice_id), pack_use(Use(hits, last_use_ns, numbers))


def gone(table: Table, field: bytes) -> Item:
    return table, field, None


HELD: list[Item] = [(Table.HOLDINGS, pack_number(number), pack_holding(one)) for number, one in HOLDINGS.items()]


class Writer:
    """A writer's side of a registry."""

    def __init__(self, registry: Registry, *, epoch: int = 1, owner: str = "w") -> None:
        self.registry, self.epoch, self.owner, self.number = registry, epoch, owner, 0

    def next(self, *items: Item, anew: bool = False) -> Write:
        self.number += 1
        return Write(
            epoch=self.epoch, owner=self.owner, number=self.number, seq=10 * self.number, now_ns=1_000, items=items,
            anew=anew,
        )  # fmt: skip

    async def write(self, *items: Item, anew: bool = False) -> Written:
        return await self.registry.write(self.next(*items, anew=anew))
