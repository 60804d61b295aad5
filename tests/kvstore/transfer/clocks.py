"""Time for tests: it passes only when somebody waits."""

from collections.abc import Callable

from kvstore.transfer.limits import Cancel


class FakeClock:
    """See Clock. `at` calls something when the time comes."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000
        self._calls: list[tuple[int, Callable[[], None]]] = []

    def now_ns(self) -> int:
        return self.ns

    def at(self, after_ns: int, call: Callable[[], None]) -> None:
        self._calls.append((self.ns + after_ns, call))

    def wait(self, wait_ns: int, cancel: Cancel) -> None:
        end = self.ns + wait_ns
        for due, call in sorted(self._calls, key=lambda item: item[0]):
            if due <= end and not cancel.is_set():
                self.ns = max(self.ns, due)
                self._calls.remove((due, call))
                call()
        if not cancel.is_set():
            self.ns = end
