"""Whose turn it is to leave a slower tier by ARC: what was used once against what was used again, in parts it learns.

Slices used once stand in one line, those used again in another; each goes by time of use. What was evicted is
remembered by name, as many names as slices fit. When one of those comes again its line was too short: the part of what
was used once (`target`) grows or shrinks, by the more the fewer such names there are beside those of the other line.
The line that is above its part gives.

Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache" (FAST 2003). vLLM's CPU offloading has it as
`arc`, and as there a slice is used again only by a later request, and leaves a hole before those that follow it.
"""

from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

from policies.memory.evictable import Evictable, Shield


class Named(Protocol):
    """A slice as ARC knows it."""

    @property
    def key(self) -> Hashable:
        """Its name."""
        ...


T = TypeVar("T", bound=Named)


class Arc(Generic[T]):
    """In the place of an `Evictable`, with what ARC has to hear besides: what comes, what is used again, what left."""

    def __init__(self) -> None:
        self._lines: tuple[Evictable[T], Evictable[T]] = (Evictable(), Evictable())
        self._used_again: dict[Hashable, bool] = {}
        self._once = 0
        self._gone: tuple[dict[Hashable, None], dict[Hashable, None]] = ({}, {})
        self.target = 0
        """Slices used once that may stay while others have to go."""

    def __len__(self) -> int:
        return len(self._lines[False]) + len(self._lines[True])

    def put(self, slice_: T, shield: Shield, rank: int) -> None:
        """It may be evicted from now on."""
        self._lines[self._used_again[slice_.key]].put(slice_, shield, rank)

    def drop(self, slice_: T) -> None:
        """It may not, any more."""
        for line in self._lines:
            line.drop(slice_)

    def pop(self) -> T:
        """The one to evict now. IndexError when there is none."""
        once, again = self._lines
        if len(once) and (self._once >= self.target or not len(again)):
            return once.pop()
        return again.pop()

    # What it learns from.

    def missed(self, key: Hashable, slots: int) -> None:
        """A slice is computed anew; `slots` of its size fit in all."""
        once, again = self._gone
        if key in once:
            self.target = min(slots, self.target + max(1, len(again) // len(once)))
            del once[key]
        elif key in again:
            self.target = max(0, self.target - max(1, len(once) // len(again)))
            del again[key]

    def came(self, key: Hashable) -> None:
        """A slice is there now."""
        self._used_again[key] = False
        self._once += 1

    def used(self, key: Hashable) -> None:
        """A later request uses it; to be said while it is in no line."""
        self._once -= not self._used_again[key]
        self._used_again[key] = True

    def left(self, key: Hashable) -> None:
        """It is not there any more."""
        self._once -= not self._used_again.pop(key)

    def evicted(self, key: Hashable, slots: int) -> None:
        """It is about to leave to make room; of such names `slots` are kept a line."""
        gone = self._gone[self._used_again[key]]
        gone[key] = None
        if len(gone) > slots:
            del gone[next(iter(gone))]
