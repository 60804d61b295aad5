"""Works through a plan with any transport: retries with a limit, gives up in time, and counts.

Each slice is tried at most `tries_max` times, each try for at most `timeout_ns` and never beyond the moment after which
computing the slice is better. What another try cannot mend is not tried again. A stall is a try that times out.
"""

import threading

import msgspec

from events.base import NS_PER_S, PPM, SliceId
from events.slice import TransferEnd
from kvstore.transfer.base import (
    AGAIN,
    Attempt,
    TransferFailed,
    TransferFault,
    TransferPlan,
    TransferReport,
    TransportEngine,
)
from kvstore.transfer.limits import Cancel, Clock, Link


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Of all transfers over a link since its start, by slice."""

    slices: int = 0
    failed: int = 0
    first_tries_failed: int = 0
    bytes_moved: int = 0
    busy_ns: int = 0

    def first_try_failure_ppm(self) -> int:
        """Of a million slices, how many failed at their first try."""
        return self.first_tries_failed * PPM // max(1, self.slices)

    def failure_ppm(self) -> int:
        """Of a million slices, how many failed in spite of all tries."""
        return self.failed * PPM // max(1, self.slices)

    def bytes_per_s(self) -> int:
        """What went over the link in the time that transfers took (0: not known yet)."""
        return self.bytes_moved * NS_PER_S // self.busy_ns if self.busy_ns else 0


class Carrier:
    """One link of one engine: a transport, its bandwidth limit and its totals. Thread-safe."""

    def __init__(self, transport: TransportEngine, *, link: Link, clock: Clock) -> None:
        self._transport, self._link, self._clock = transport, link, clock
        self._lock = threading.Lock()
        self._totals = Totals()

    def totals(self) -> Totals:
        """Since the start."""
        return self._totals

    def queue_bytes(self) -> int:
        """What stands before the link now."""
        return self._link.queue_bytes()

    def carry(self, plan: TransferPlan, cancel: Cancel) -> TransferReport:
        """Move the slices of the plan, in order. Raises nothing of the transport's: the report says how it ended."""
        assert not plan.give_up_ns or len(plan.give_up_ns) == len(plan.slices), "one limit a slice, or none at all"
        run = _Run(self._transport, self._link, self._clock, plan, cancel)
        report = run.report()
        with self._lock:
            was = self._totals
            self._totals = Totals(
                slices=was.slices + report.first_tries,
                failed=was.failed + report.slices_failed,
                first_tries_failed=was.first_tries_failed + report.first_tries_failed,
                bytes_moved=was.bytes_moved + report.bytes_moved,
                busy_ns=was.busy_ns + (report.took_ns if report.bytes_moved else 0),
            )
        return report


class _Run:
    """One plan on its way."""

    def __init__(
        self, transport: TransportEngine, link: Link, clock: Clock, plan: TransferPlan, cancel: Cancel
    ) -> None:
        self._transport, self._link, self._clock = transport, link, clock
        self._plan, self._cancel = plan, cancel
        self._start_ns = clock.now_ns()
        self._done = self._failed = self._bytes = 0
        self._tries_most = self._first_tries = self._first_failed = 0
        self._last: TransferFailed | None = None

    def report(self) -> TransferReport:
        """Do it, and say how it went."""
        for index, slice_id in enumerate(self._plan.slices):
            if not self._one(slice_id, self._give_up_ns(index)) and (self._plan.in_order or self._cancel.is_set()):
                break
        return TransferReport(
            order=self._plan.order,
            end=self._end(),
            slices_done=self._done,
            slices_failed=self._failed,
            bytes_moved=self._bytes,
            took_ns=self._clock.now_ns() - self._start_ns,
            tries=self._tries_most,
            first_tries=self._first_tries,
            first_tries_failed=self._first_failed,
            fault=self._last.fault if self._last else None,
            why=str(self._last) if self._last else "",
        )

    def _give_up_ns(self, index: int) -> int | None:
        return self._start_ns + self._plan.give_up_ns[index] if self._plan.give_up_ns else None

    def _one(self, slice_id: SliceId, give_up_ns: int | None) -> bool:
        """One slice, with all its tries; whether it is there now."""
        pause_ns = self._plan.backoff_ns
        for number in range(1, self._plan.tries_max + 1):
            now = self._clock.now_ns()
            if give_up_ns is not None and now >= give_up_ns:
                self._last = TransferFailed(where="transfer", name=slice_id, fault=TransferFault.TOO_LATE)
                self._failed += number > 1
                return False
            deadline_ns = now + self._plan.timeout_ns
            if give_up_ns is not None:
                deadline_ns = min(deadline_ns, give_up_ns)
            self._tries_most = max(self._tries_most, number)
            if self._tried(slice_id, deadline_ns, first=number == 1):
                return True
            if self._last is not None and self._last.fault not in AGAIN:
                break
            if number < self._plan.tries_max:
                self._pause(pause_ns, give_up_ns)
                pause_ns *= 2
        self._failed += not self._cancel.is_set()
        return False

    def _pause(self, pause_ns: int, give_up_ns: int | None) -> None:
        """Wait before the next try, but not beyond the time after which there is none."""
        if give_up_ns is not None:
            pause_ns = min(pause_ns, max(0, give_up_ns - self._clock.now_ns()))
        self._clock.wait(pause_ns, self._cancel)

    def _tried(self, slice_id: SliceId, deadline_ns: int, *, first: bool) -> bool:
        attempt = Attempt(slice_id, deadline_ns=deadline_ns, clock=self._clock, cancel=self._cancel, link=self._link)
        self._first_tries += first
        try:
            attempt.left_ns()
            self._bytes += self._transport.move(attempt)
        except TransferFailed as error:
            self._last = error
            self._first_failed += first and error.fault is not TransferFault.CANCELLED
            return False
        self._done += 1
        return True

    def _end(self) -> TransferEnd:
        whole = self._done == len(self._plan.slices)
        if whole:
            return TransferEnd.DONE if self._bytes else TransferEnd.NOT_NEEDED
        if self._cancel.is_set():
            return TransferEnd.CANCELLED
        return TransferEnd.PARTLY if self._done else TransferEnd.FAILED
