"""One or more engine steps in a row, with the time of each known beforehand."""

from math import isqrt
from typing import Generic, TypeVar

T = TypeVar("T")


class Stride(Generic[T]):
    """Steps in flight, in femtoseconds: the first takes `first_fs`, each next one `grow_fs` more than the one before.
    With prompt `chunks` there is one step."""

    __slots__ = ("chunks", "first_fs", "grow_fs", "start_fs", "steps")

    def __init__(self, start_fs: int, first_fs: int, grow_fs: int, steps: int, chunks: list[tuple[T, int]]) -> None:
        self.start_fs, self.first_fs, self.grow_fs, self.steps = start_fs, first_fs, grow_fs, steps
        self.chunks = chunks

    def end_fs(self, steps: int) -> int:
        """When the first `steps` steps are done."""
        return self.start_fs + steps * self.first_fs + self.grow_fs * (steps * (steps - 1) // 2)

    def done_by(self, limit_fs: int) -> int:
        """How many steps are done at `limit_fs`: the largest j <= steps with end_fs(j) <= limit_fs."""
        left = limit_fs - self.start_fs
        if left < self.first_fs:
            return 0
        if self.grow_fs == 0:
            return min(self.steps, left // self.first_fs)
        slope = 2 * self.first_fs - self.grow_fs
        root = isqrt(slope * slope + 8 * self.grow_fs * left)
        return min(self.steps, (root - slope) // (2 * self.grow_fs))
