"""The pool's time in one process: what the log last said, plus this machine's monotonic clock.

Time goes on by at most TICK_MAX_NS from one tick to the next, here as in the ticks themselves: while the log is away
the pool's time stands still, and whoever reads it stands where the next tick will be. What must neither jump nor stand
still (a simulated engine, an age) is measured in steady time.

Nobody's wall clock stands in the log but at the very first tick. `speed` is how much faster than the wall the
pool's time runs: 1 with real engines, more with simulated ones.
"""

import time

from events.base import TICK_MAX_NS


class PoolClock:
    """Reads in integer nanoseconds of pool time. Before the first tick it goes on without limit; it goes back only to a
    tick that is more than TICK_MAX_NS behind it."""

    def __init__(self, *, speed: int = 1, start_ns: int = 0) -> None:
        self.speed = speed
        self._pool_ns = start_ns or time.time_ns()
        self._mono_ns = time.monotonic_ns()
        self._shown_ns = 0
        self._follows = False

    def now_ns(self) -> int:
        """Pool time now."""
        passed_ns = (time.monotonic_ns() - self._mono_ns) * self.speed
        if self._follows:
            passed_ns = min(passed_ns, TICK_MAX_NS)
        self._shown_ns = max(self._shown_ns, self._pool_ns + passed_ns)
        return self._shown_ns

    def follow(self, ts_ns: int) -> None:
        """A tick with this time was just read from the log."""
        self._pool_ns, self._mono_ns, self._follows = ts_ns, time.monotonic_ns(), True
        if self._shown_ns - ts_ns > TICK_MAX_NS:
            self._shown_ns = ts_ns

    def steady_ns(self) -> int:
        """Nanoseconds at the pool's speed, from no particular moment on, whatever the log says."""
        return time.monotonic_ns() * self.speed

    def wall_s(self, pool_ns: int) -> float:
        """How many seconds of this machine's time a span of pool time takes."""
        return pool_ns / self.speed / 1e9
