"""The registry is what the tiers truly hold, once what was under way has settled, whatever happened on the way.

An engine tells after each operation what became of that slice, and after a restart what its SSD has; nothing else is
needed. Operations are those of the crash tests: interleaved, on disks that fail, with an end at any step.
"""

import asyncio
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import EngineId, Event, Recorded, SliceId
from events.slice import SlicesCleared, SlicesRemoved, SlicesStored, Tier
from kvstore.registry.memory import MemoryRegistry
from kvstore.tiers.tiered import TieredBackend
from services.runtime.registry_book import RegistryBook
from services.runtime.registry_feed import all_of
from tests.kvstore.tiers.faults import Crash, Turns
from tests.kvstore.tiers.test_crash import FAST, NAMES, SCRIPTS, SLICE_BYTES, House, Script

E1 = EngineId("e1")


class Teller:
    """What an engine's agent tells, as facts in a log."""

    def __init__(self) -> None:
        self.book = RegistryBook()
        self._told: set[tuple[SliceId, Tier]] = set()

    def tell(self, name: SliceId, tiers: TieredBackend) -> None:
        """What became of that slice since it was told last."""
        for tier in Tier:
            held, told = tiers[tier].holds(name), (name, tier) in self._told
            if held and not told:
                self._told.add((name, tier))
                self._take(SlicesStored(engine_id=E1, tier=tier, slices=(name,), slice_bytes=SLICE_BYTES))
            elif told and not held:
                self._told.discard((name, tier))
                self._take(SlicesRemoved(engine_id=E1, tier=tier, slices=(name,)))

    def restart(self, tiers: TieredBackend) -> None:
        """A new process has nothing but what it finds on its disk."""
        self._told.clear()
        for tier in Tier:
            self._take(SlicesCleared(engine_id=E1, tier=tier, reason="restart"))
        for name, _ in tiers[Tier.SSD].inventory():
            self.tell(name, tiers)

    def _take(self, event: Event) -> None:
        seq = self.book.seq + 1
        self.book.take(Recorded(seq=seq, item=0, event=event, ts_ns=seq))

    def registry(self) -> dict[SliceId, set[Tier]]:
        """Where each slice is, as the registry has it."""

        async def ask() -> dict[SliceId, set[Tier]]:
            registry = MemoryRegistry()
            await registry.write(all_of(self.book))
            return {info.slice_id: {one.tier for one in info.holders} for info in await registry.slices(NAMES)}

        return asyncio.run(ask())


def truth(tiers: TieredBackend) -> dict[SliceId, set[Tier]]:
    """Where each slice is."""
    return {name: set(tiers.where(name)) for name in NAMES}


@settings(max_examples=60, deadline=None)
@given(st.lists(SCRIPTS, min_size=1, max_size=3), st.integers(0, 2**32), st.integers(0, 80), st.integers(0, 30))
def test_the_registry_is_what_the_tiers_hold_after_crashes_failing_disks_and_any_order(
    scripts: list[Script], seed: int, crash_at: int, percent: int
) -> None:
    random = Random(seed)
    turns = Turns(random.randrange)

    def before() -> None:
        turns.pause()
        if random.randrange(100) < percent:
            raise OSError(random.choice([5, 13, 28, 30]), "injected")

    with TemporaryDirectory(dir=FAST) as folder:
        house, teller = House(Path(folder), before=before), Teller()
        teller.restart(house.tiers)
        house.steps.crash_at = house.steps.count + crash_at

        def work(script: Script) -> None:
            for op, name, (upper, lower) in script:
                turns.pause()
                house.do(op, name, upper, lower)
                teller.tell(name, house.tiers)

        turns.run([lambda script=script: work(script) for script in scripts])  # type: ignore[misc]
        if not house.steps.dead:
            assert teller.registry() == truth(house.tiers)
        house.steps.end()

        house = House(Path(folder))
        teller.restart(house.tiers)
        assert teller.registry() == truth(house.tiers)
        with suppress(Crash):
            work(scripts[0])
        assert teller.registry() == truth(house.tiers)
        house.tiers.close()
