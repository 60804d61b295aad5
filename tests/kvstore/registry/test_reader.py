"""Look-ups hold nobody up: late, failing and empty registries all read as a miss."""

import asyncio
from collections.abc import Sequence

import pytest

from events.base import SliceId
from kvstore.registry.base import Prefix, RegistryError
from kvstore.registry.memory import MemoryRegistry
from kvstore.registry.reader import RegistryReader
from tests.kvstore.registry.words import HELD, A, B, Writer, held


class Failing(MemoryRegistry):
    """A registry that is down, or does not answer, while told so; counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.down = self.silent = False
        self.asked = 0

    async def longest_prefixes(self, prompts: Sequence[Sequence[SliceId]]) -> list[list[Prefix]]:
        self.asked += 1
        if self.down:
            raise RegistryError("it is away", where="test")
        if self.silent:
            await asyncio.Future()
        return await super().longest_prefixes(prompts)


class Clock:
    """Seconds, as the test sets them."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def registry() -> Failing:
    failing = Failing()
    await Writer(failing).write(*HELD, held(A, 1), anew=True)
    return failing


@pytest.mark.parametrize("how", ["down", "silent"])
async def test_a_registry_that_fails_is_a_miss_and_is_left_alone_for_a_while(registry: Failing, how: str) -> None:
    clock = Clock()
    reader = RegistryReader(registry, timeout_s=0.01, pause_s=1.0, clock=clock)
    assert [one.slices for one in await reader.longest_prefix([A, B])] == [1]
    setattr(registry, how, True)
    async with asyncio.timeout(2):
        assert await reader.longest_prefix([A]) == []
    assert (reader.failures, registry.asked) == (1, 2)
    assert reader.why
    assert await reader.longest_prefix([A]) == []
    assert registry.asked == 2, "it is not asked again at once"
    setattr(registry, how, False)
    clock.now_s = 1.0
    assert [one.slices for one in await reader.longest_prefix([A])] == [1]
    assert reader.why == ""


async def test_every_answer_has_its_miss(registry: Failing) -> None:
    class Away(MemoryRegistry):
        async def slices(self, ids: Sequence[SliceId]) -> list:  # type: ignore[type-arg]
            raise RegistryError("away", where="test")

        async def hot(self, count: int) -> list:  # type: ignore[type-arg]
            raise RegistryError("away", where="test")

        async def tiers(self) -> list:  # type: ignore[type-arg]
            raise RegistryError("away", where="test")

    reader = RegistryReader(Away(), pause_s=0.0)
    assert [(one.slice_id, one.holders) for one in await reader.slices([A, B])] == [(A, ()), (B, ())]
    assert (await reader.hot(3), await reader.tiers()) == ([], [])
    assert reader.failures == 3
