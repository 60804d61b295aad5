"""The pool's time in one process: what the log last said, plus this machine's monotonic clock.

Nobody's wall clock stands in the log but at the very first tick. `speed` is how much faster than the wall the
pool's time runs: 1 with real engines, more with simulated ones.
"""

import time


class PoolClock:
    """Reads in integer nanoseconds of pool time; never goes back."""

    def __init__(self, *, speed: int = 1, start_ns: int = 0) -> None:
        self.speed = speed
        self._pool_ns = start_ns or time.time_ns()
        self._mono_ns = time.monotonic_ns()
        self._shown_ns = 0

    def now_ns(self) -> int:
        """Pool time now."""
        now = self._pool_ns + (time.monotonic_ns() - self._mono_ns) * self.speed
        self._shown_ns = max(self._shown_ns, now)
        return self._shown_ns

    def follow(self, ts_ns: int) -> None:
        """A tick with this time was just read from the log."""
        self._pool_ns, self._mono_ns = ts_ns, time.monotonic_ns()

    def wall_s(self, pool_ns: int) -> float:
        """How many seconds of this machine's time a span of pool time takes."""
        return pool_ns / self.speed / 1e9
