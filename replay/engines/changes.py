"""What came into a tier of an engine and what left it since that was last said."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from events.base import EngineId, Event, RequestId, SliceId
from events.slice import SlicesRemoved, SlicesStored, Tier

SAID_MAX = 1_024
"""Slices that one fact names."""


class Tail(NamedTuple):
    """The end of the prompt of one request. Nobody else can ask for it, so no fact names it."""

    request_id: RequestId


class Changes:
    """Only what differs from what was last said: a slice that came and left again, or left and came back, is not
    mentioned. Bounded by what the tier held then and holds now."""

    def __init__(self) -> None:
        self._bytes: dict[Hashable, int] = {}  # What it takes there now; 0 = it left.

    def stored(self, key: Hashable, bytes_: int) -> None:
        """It is there now."""
        assert bytes_ > 0, "a slice takes room"
        if self._bytes.get(key) == 0:
            del self._bytes[key]
        else:
            self._bytes[key] = bytes_

    def removed(self, key: Hashable) -> None:
        """It is not there any more."""
        if self._bytes.get(key):
            del self._bytes[key]
        else:
            self._bytes[key] = 0

    def take(self, engine_id: EngineId, tier: Tier) -> list[Event]:
        """The facts; from now on it counts as said."""
        by_size: dict[int, list[Hashable]] = {}
        for key, bytes_ in self._bytes.items():
            by_size.setdefault(bytes_, []).append(key)
        self._bytes.clear()
        facts: list[Event] = [
            SlicesRemoved(engine_id=engine_id, tier=tier, slices=slices) for slices in named(by_size.pop(0, []))
        ]
        for bytes_, found in by_size.items():
            facts += [
                SlicesStored(engine_id=engine_id, tier=tier, slices=slices, slice_bytes=bytes_)
                for slices in named(found)
            ]
        return facts


def named(keys: Sequence[Hashable]) -> list[tuple[SliceId, ...]]:
    """As they stand in facts, in runs that one fact can name."""
    told = [SliceId(str(key)) for key in keys if not isinstance(key, Tail)]
    return [tuple(told[first : first + SAID_MAX]) for first in range(0, len(told), SAID_MAX)]
