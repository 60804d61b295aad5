"""A tier in plain memory of the process, for slices of any size: what tests and simulations run on."""

from events.slice import Tier
from kvstore.tiers.base import Writer
from kvstore.tiers.ledger import Entry
from kvstore.tiers.shelf import Shelf


def memory_tier(*, bytes_max: int, tier: Tier = Tier.DRAM) -> Shelf:
    """An empty one; it stands for any tier."""
    return Shelf(tier, _Memory(), where=f"{tier} (memory)", bytes_max=bytes_max)


class _Memory:
    lends_in_place = True

    def __init__(self) -> None:
        self._data: dict[int, bytearray] = {}

    def footprint(self, bytes_: int) -> int:
        return bytes_

    def store(self, entry: Entry, data: memoryview) -> None:
        self._data[entry.generation] = bytearray(data)

    def fill(self, entry: Entry, writer: Writer) -> None:
        data = bytearray(entry.bytes)
        writer(memoryview(data))
        self._data[entry.generation] = data

    def load(self, entry: Entry, out: memoryview) -> None:
        out[:] = self._data[entry.generation]

    def lend(self, entry: Entry) -> memoryview:
        return memoryview(self._data[entry.generation])

    def remove(self, entry: Entry) -> None:
        """Nothing yet: readers may still be at it."""

    def freed(self, entry: Entry) -> None:
        self._data.pop(entry.generation, None)

    def close(self) -> None:
        self._data.clear()
