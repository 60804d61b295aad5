"""What any engine of a run has computed, there for all the others at once and at no cost: a bound, not an engine.

Real engines copy KV over links and have room for a part of it. What an unlimited cache that all share would be worth is
what every policy of tiers, routing and migration is held against.
"""

from collections.abc import Hashable, Iterable, Sequence


class Commons:
    """One for all engines of a run."""

    def __init__(self) -> None:
        self._there: dict[Hashable, None] = {}

    def add(self, keys: Iterable[Hashable]) -> None:
        """Somebody has computed these."""
        self._there.update(dict.fromkeys(keys))

    def leading(self, keys: Sequence[Hashable]) -> int:
        """How many of a prompt's slices are there, without a hole."""
        return next((number for number, key in enumerate(keys) if key not in self._there), len(keys))
