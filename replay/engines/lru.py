"""A line of slices by time of use: the one used longest ago goes first, but for those that somebody holds.

Each costs O(1): what is used moves to the end, and what is held is passed over, so it keeps its place.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Held(Protocol):
    """A slice as a line knows it: its name, and how many hold it."""

    holds: int

    @property
    def key(self) -> Hashable:
        """Its name."""
        ...


T = TypeVar("T", bound=Held)


class Lru(Generic[T]):
    """See the module."""

    def __init__(self) -> None:
        self._line: OrderedDict[Hashable, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._line

    def came(self, slice_: T) -> None:
        """It is there now, used last of all."""
        self._line[slice_.key] = slice_

    def used(self, slice_: T) -> None:
        """A later request uses it."""
        self._line.move_to_end(slice_.key)

    def left(self, slice_: T) -> None:
        """It is not there any more."""
        del self._line[slice_.key]

    def foremost(self) -> T | None:
        """The one to evict now; None when all are held. It stays until it `left`."""
        return next((slice_ for slice_ in self._line.values() if not slice_.holds), None)
