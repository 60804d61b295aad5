"""What bounds a transfer: a clock, a word to stop, the rate of a link, and the time after which computing is better.

Time is injected, so the same code runs on the machine's clock and on a simulated one.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from events.base import NS_PER_S, PPM

LATE_PPM = PPM // 10
"""A request may be that much later than if it had computed everything at once."""


class Cancel:
    """A word to stop, given once, from any thread. Whoever waits for something else registers what wakes it."""

    def __init__(self) -> None:
        self._said = threading.Event()
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], None]] = []

    def set(self) -> None:
        """Stop. Twice is fine."""
        self._said.set()
        with self._lock:
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def is_set(self) -> bool:
        """Whether it was said."""
        return self._said.is_set()

    def wait(self, timeout_ns: int) -> bool:
        """Wait for it, at most so long; whether it was said."""
        return self._said.wait(timeout_ns / NS_PER_S)

    @contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake` when it is said while the context lasts (at once if it was said before)."""
        with self._lock:
            self._wakers.append(wake)
        try:
            if self.is_set():
                wake()
            yield
        finally:
            with self._lock:
                self._wakers.remove(wake)


class Clock(Protocol):
    """Time that only goes forward."""

    def now_ns(self) -> int:
        """Now."""
        ...

    def wait(self, wait_ns: int, cancel: Cancel) -> None:
        """Return after `wait_ns`, or earlier if cancelled."""
        ...


class MonotonicClock:
    """The machine's."""

    def now_ns(self) -> int:
        """See Clock."""
        return time.monotonic_ns()

    def wait(self, wait_ns: int, cancel: Cancel) -> None:
        """See Clock."""
        cancel.wait(wait_ns)


class Link:
    """A token bucket for one direction of one link: at most `burst_bytes` at once, `bytes_per_s` in the long run.

    Who asks first goes first, and each is told how long to wait; so waiting holds no lock, and what is larger than the
    burst is only slower. 0 bytes per second is no limit. (The rule is the leaky bucket as a meter: ITU-T I.371, GCRA.)
    """

    def __init__(self, bytes_per_s: int, *, burst_bytes: int, clock: Clock) -> None:
        assert bytes_per_s >= 0, "a rate"
        assert burst_bytes > 0, "a burst lets something through"
        self.bytes_per_s, self._burst_ns = bytes_per_s, 0
        if bytes_per_s:
            self._burst_ns = burst_bytes * NS_PER_S // bytes_per_s
        self._clock, self._lock = clock, threading.Lock()
        self._free_ns = clock.now_ns() - self._burst_ns

    def take(self, bytes_: int) -> int:
        """Take the right to send so many bytes; the ns to wait before they may go."""
        if self.bytes_per_s == 0:
            return 0
        with self._lock:
            now = self._clock.now_ns()
            # The line is busy until _free_ns; having been idle longer than a burst earns no more than a burst.
            self._free_ns = max(self._free_ns, now - self._burst_ns) + self._cost_ns(bytes_)
            return max(0, self._free_ns - now)

    def give_back(self, bytes_: int) -> None:
        """They were taken and will not go."""
        if self.bytes_per_s:
            with self._lock:
                self._free_ns -= self._cost_ns(bytes_)

    def queue_bytes(self) -> int:
        """What was taken and may not go yet."""
        with self._lock:
            return max(0, self._free_ns - self._clock.now_ns()) * self.bytes_per_s // NS_PER_S

    def _cost_ns(self, bytes_: int) -> int:
        return -(-bytes_ * NS_PER_S // self.bytes_per_s)


def give_up_ns(recompute_ns: Sequence[int], *, late_ppm: int = LATE_PPM) -> tuple[int, ...]:
    """When to give up on each slice of a prefix, in ns after the start of its fetch, so that no request is later than
    its recompute time and `late_ppm` of it.

    `recompute_ns` is what each slice would take to compute, in order. A fetch that brought slice after slice has saved
    what those would have taken; it may be behind that by `late_ppm` of the whole, and no more. Then what is missing is
    computed, which ends in time: given up at late + sum(first k), computing the rest takes sum(others).

    Example: four slices of 100 ms, 10 %: give up at 40, 140, 240, 340 ms; the request is there by 440 ms in any case.
    """
    late = sum(recompute_ns) * late_ppm // PPM
    limits, saved = [], 0
    for ns in recompute_ns:
        limits.append(late + saved)
        saved += ns
    return tuple(limits)
