"""What the DRAM and SSD tiers of an engine hold, and what of that was told to the log: facts, in the log's names."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Final

from events.base import EngineId, Event, SliceId
from events.slice import SlicesCleared, SlicesHit, SlicesRemoved, SlicesStored, Tier
from services.vllm_plugin.naming import Naming

FACT_SLICES_MAX: Final = 1_024
"""Slices in one fact: it has to fit into a message."""
TIERS: Final[tuple[Tier, ...]] = (Tier.DRAM, Tier.SSD)
Tell = Callable[[Event], None]


class Residency:
    """Told by the scheduler's thread, asked for an inventory by the agent's. What was told as stored under a name is
    told as removed under that name. `hits` and `misses` count slices from the engine's start."""

    def __init__(self, engine_id: EngineId, naming: Naming, tell: Tell, *, slice_bytes: int) -> None:
        self._engine_id, self._naming, self._tell, self._slice_bytes = engine_id, naming, tell, slice_bytes
        self._lock = threading.Lock()
        self._told: dict[Tier, dict[bytes, SliceId]] = {tier: {} for tier in TIERS}
        self.hits: dict[Tier, int] = dict.fromkeys(TIERS, 0)

    def stored(self, tier: Tier, keys: Iterable[bytes]) -> None:
        """They are there, whole."""
        told = self._told[tier]
        names: dict[bytes, SliceId] = {}
        for key in keys:
            if key not in told and key not in names:
                names[key] = self._naming.hold(key)
        with self._lock:
            told.update(names)
        for some in _parts(names.values()):
            self._tell(SlicesStored(engine_id=self._engine_id, tier=tier, slices=some, slice_bytes=self._slice_bytes))

    def removed(self, tier: Tier, keys: Iterable[bytes]) -> None:
        """They are gone."""
        told = self._told[tier]
        with self._lock:
            names = {key: told.pop(key) for key in keys if key in told}
        for key in names:
            self._naming.release(key)
        for some in _parts(names.values()):
            self._tell(SlicesRemoved(engine_id=self._engine_id, tier=tier, slices=some))

    def cleared(self, tier: Tier, reason: str) -> None:
        """Everything there is gone."""
        with self._lock:
            gone, self._told[tier] = self._told[tier], {}
        for key in gone:
            self._naming.release(key)
        self._tell(SlicesCleared(engine_id=self._engine_id, tier=tier, reason=reason))

    def hit(self, tier: Tier, keys: Collection[bytes]) -> None:
        """A request got these from there."""
        self.hits[tier] += len(keys)
        for some in _parts(self._naming.names(keys)):
            self._tell(SlicesHit(engine_id=self._engine_id, tier=tier, slices=some))

    def renamed(self, key: bytes) -> None:
        """It has another name now: told anew wherever it is."""
        for tier in TIERS:
            if key in self._told[tier]:
                self.removed(tier, [key])
                self.stored(tier, [key])

    def holds(self, tier: Tier, key: bytes) -> bool:
        """Whether it was told to be there."""
        return key in self._told.get(tier, ())

    def keys(self, tier: Tier) -> list[bytes]:
        """What is there, the oldest first."""
        return list(self._told[tier])

    def inventory(self, tier: Tier) -> list[SlicesStored]:
        """What is there now, as facts. From any thread."""
        with self._lock:
            names = list(self._told[tier].values())
        return [
            SlicesStored(engine_id=self._engine_id, tier=tier, slices=some, slice_bytes=self._slice_bytes)
            for some in _parts(names)
        ]


def _parts(names: Iterable[SliceId]) -> Iterator[tuple[SliceId, ...]]:
    rest = iter(names)
    while some := tuple(islice(rest, FACT_SLICES_MAX)):
        yield some
