"""What is to happen in virtual time, in one order: by time, then by kind, then as it was put in."""

from collections.abc import Callable
from enum import IntEnum
from heapq import heappop, heappush


class Turn(IntEnum):
    """At the same time, in this order: what was decided takes effect, requests arrive (so that they share the step
    that begins now), engines, what goes wrong, the second's facts, then requests whose time is up."""

    EFFECT = 0
    ARRIVAL = 1
    ENGINE = 2
    FAULT = 3
    SECOND = 4
    EXPIRY = 5


class Agenda:
    """A heap, so that a run is a function of what was put into it."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, Callable[[], None]]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, at_ns: int, turn: Turn, act: Callable[[], None]) -> None:
        """Do this then."""
        self._number += 1
        heappush(self._heap, (at_ns, turn, self._number, act))

    def take(self) -> tuple[int, Callable[[], None]]:
        """The next of all, and when it is due."""
        at_ns, _, _, act = heappop(self._heap)
        return at_ns, act
