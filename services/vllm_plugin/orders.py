"""Orders to move slices, from their being read from the log to their one answer.

The agent's thread reads `transfer_ordered` and `transfer_cancelled` of its engine; the scheduler's thread takes the
orders up, carries them out, and says how each ended. Each is answered `transfer_finished` exactly once, whoever ends
it: what is cancelled before it is taken up, too late, or too much at once never reaches the scheduler's thread.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from events.base import Event
from events.decisions import TransferCancelled, TransferOrdered
from events.slice import TransferEnd, TransferFinished

ORDERS_MAX: Final = 1_024
"""Orders that are not answered yet. One more is answered `failed` at once: it would be too late anyhow."""
ANSWERED_MAX: Final = 8_192
"""Answered orders that are remembered by id, so that one that is read again is not carried out again."""


class Order(msgspec.Struct, eq=False):
    """An order that is being carried out. `cancelled`: begin nothing more of it. Times are of this machine's monotonic
    clock; `until_ns` 0: always worth it."""

    said: TransferOrdered
    until_ns: int = 0
    taken_ns: int = 0
    cancelled: bool = False


class Orders:
    """The orders of one engine. Thread-safe; no call waits for another thread's work. `tell` takes the answers."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._waiting: deque[Order] = deque()
        self._open: dict[str, Order] = {}
        self._answered: dict[str, None] = {}
        self.refused = 0

    def give(self, said: TransferOrdered, *, until_ns: int = 0) -> Order | None:
        """Agent: an order stands in the log. None: it was given before, or is answered already."""
        order = Order(said, until_ns)
        with self._lock:
            if said.order in self._open or said.order in self._answered:
                return None
            self._open[said.order] = order
            full = len(self._open) > ORDERS_MAX
            if not full:
                self._waiting.append(order)
        if full:
            self.refused += 1
            self.finish(order, TransferEnd.FAILED, why="too many orders at once")
        return None if full else order

    def cancel(self, said: TransferCancelled) -> None:
        """Agent: an order is taken back. One that was not taken up ends now; else its carrier finds it `cancelled`."""
        with self._lock:
            order = self._open.get(said.order)
            if order is None:
                return
            order.cancelled = True
            begun = order.taken_ns > 0
        if not begun:
            self.finish(order, TransferEnd.CANCELLED, why=said.reason.value)

    def take(self) -> list[Order]:
        """Scheduler: the orders to begin now, first to last. What came too late or was cancelled is not among them."""
        now_ns = time.monotonic_ns()
        with self._lock:
            taken = [order for order in self._waiting if order.said.order in self._open and not order.cancelled]
            self._waiting.clear()
            for order in taken:
                order.taken_ns = now_ns
        late = [order for order in taken if 0 < order.until_ns < now_ns]
        for order in late:
            self.finish(order, TransferEnd.NOT_NEEDED, why="too late")
        return [order for order in taken if order not in late] if late else taken

    def finish(
        self, order: Order, end: TransferEnd, *, slices_done: int = 0, bytes_moved: int = 0, why: str = ""
    ) -> None:
        """Whoever ends an order: say so. A second word about the same order is not said."""
        with self._lock:
            if self._open.pop(order.said.order, None) is None:
                return
            if order in self._waiting:
                self._waiting.remove(order)
            self._answered[order.said.order] = None
            if len(self._answered) > ANSWERED_MAX:
                del self._answered[next(iter(self._answered))]
        took_ns = time.monotonic_ns() - order.taken_ns if order.taken_ns else 0
        said = TransferFinished(
            order=order.said.order, engine_id=order.said.engine_id, end=end, slices_done=slices_done,
            bytes_moved=bytes_moved, took_ns=took_ns, tries=order.said.tries, why=why,
        )  # fmt: skip
        self._tell(said)

    def fail_all(self, why: str) -> None:
        """Agent: the engine ends, or nothing can be carried out any more."""
        with self._lock:
            left = list(self._open.values())
            self._waiting.clear()
        for order in left:
            self.finish(order, TransferEnd.FAILED, why=why)

    @property
    def waiting(self) -> bool:
        """Whether there is something to take up."""
        return bool(self._waiting)
