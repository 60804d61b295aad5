"""Look-ups that never hold anybody up: what the registry cannot say in time is a miss."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from events.base import SliceId
from kvstore.registry.base import Prefix, Registry, RegistryError, SliceInfo, TierRow

TIMEOUT_S: Final = 0.05
"""A look-up that takes longer is worth less than none: computing a slice again takes about as long."""
PAUSE_S: Final = 0.5
"""So long nobody asks after a failure: every answer is a miss at once."""

T = TypeVar("T")


class RegistryReader:
    """Reads a registry, and answers "nothing known" where that fails. `failures` counts those that were asked, `why`
    says what was wrong with the last one ("" = it answered)."""

    def __init__(
        self, registry: Registry, *, timeout_s: float = TIMEOUT_S, pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._registry, self._timeout_s, self._pause_s, self._clock = registry, timeout_s, pause_s, clock
        self._asks_again_s = clock()
        self.failures = 0
        self.why = ""

    async def longest_prefix(self, slices: Sequence[SliceId]) -> list[Prefix]:
        """The engines that have the beginning of a prompt, the longest first; none when in doubt."""
        miss: list[list[Prefix]] = [[]]
        found = await self._asked(lambda: self._registry.longest_prefixes([slices]), miss)
        return found[0]

    async def slices(self, ids: Sequence[SliceId]) -> list[SliceInfo]:
        """One for each id, without holders when in doubt."""
        return await self._asked(lambda: self._registry.slices(ids), [SliceInfo(slice_id=one) for one in ids])

    async def hot(self, count: int) -> list[SliceInfo]:
        """The hottest slices, the hottest first; none when in doubt."""
        return await self._asked(lambda: self._registry.hot(count), [])

    async def tiers(self) -> list[TierRow]:
        """The tiers of all engines; none when in doubt."""
        return await self._asked(self._registry.tiers, [])

    async def _asked(self, ask: Callable[[], Awaitable[T]], miss: T) -> T:
        if self._clock() < self._asks_again_s:
            return miss
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await ask()
        except (RegistryError, TimeoutError) as error:
            self.failures += 1
            self.why = str(error) or f"no answer within {self._timeout_s} s"
            self._asks_again_s = self._clock() + self._pause_s
            return miss
        self.why = ""
        return answer
