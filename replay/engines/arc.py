"""Whose turn it is to leave a slower tier by ARC: what was used once against what was used again, in parts it learns.

Slices used once stand in one line, those used again in another; each goes by time of use. What was evicted is
remembered by name, as many names as slices fit. When one of those comes again its line was too short: the part of what
was used once (`target`) grows or shrinks, by the more the fewer such names there are beside those of the other line.
The line that is above its part gives.

Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache" (FAST 2003). vLLM's CPU offloading has it as
`arc`, and as there a slice is used again only by a later request, and leaves a hole before those that follow it.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from replay.engines.lru import Held, Lru

T = TypeVar("T", bound=Held)


class Arc(Generic[T]):
    """In the place of an `Lru`, with what ARC has to hear besides: what is computed anew, and what is evicted."""

    def __init__(self) -> None:
        self._once: Lru[T] = Lru()
        self._again: Lru[T] = Lru()
        self._gone: tuple[OrderedDict[Hashable, None], OrderedDict[Hashable, None]] = (OrderedDict(), OrderedDict())
        self.target = 0
        """Slices used once that may stay while others have to go."""

    def came(self, slice_: T) -> None:
        """A slice is there now."""
        self._once.came(slice_)

    def used(self, slice_: T) -> None:
        """A later request uses it."""
        if slice_.key in self._again:
            self._again.used(slice_)
        else:
            self._once.left(slice_)
            self._again.came(slice_)

    def left(self, slice_: T) -> None:
        """It is not there any more."""
        (self._again if slice_.key in self._again else self._once).left(slice_)

    def foremost(self) -> T | None:
        """The one to evict now; None when all are held."""
        once, again = self._once.foremost(), self._again.foremost()
        return once if once is not None and (len(self._once) >= self.target or again is None) else again

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

    def evicted(self, key: Hashable, slots: int) -> None:
        """It is about to leave to make room; of such names `slots` are kept a line."""
        gone = self._gone[key in self._again]
        gone[key] = None
        if len(gone) > slots:
            gone.popitem(last=False)
