"""Links between the tiers of a simulated engine: one queue per direction, one transfer on its way at a time.

A transfer takes its bytes at the link's speed, after all that were sent before it; what a request waits for (`urgent`)
goes before what nobody waits for. It begins only if it is still wanted then, and if its beginning says that it can (its
room is made then, so what waits takes no room). What a link does is known beforehand, so time moves in jumps: `advance`
ends and begins transfers in order of time. Time is in femtoseconds, as in the engine's steps.

A transfer that fails (see `replay.faults`) has taken its time on the link all the same. One that stalls takes its time
on the link, and is there only when the stall is over: others pass it. After OVERDUE times what it should take it counts
as failed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from heapq import heappop, heappush

from events.base import NS_PER_S
from policies.predictors.step_time import FS_PER_NS
from replay.faults import FINE, Fate

FS_PER_S = NS_PER_S * FS_PER_NS
OVERDUE = 3
"""So many times what a transfer takes on the link are waited for it."""
FAILED = "transfer_failed"
"""Why a transfer that failed did not arrive."""
NOT_WANTED = "not_wanted"
"""Why one that nobody wanted any more when its turn came did not."""


class Transfer:
    """Bytes on their way. `begin` is asked when its turn comes, and says why it cannot ("" = it can); `end` hears once
    why it is not there ("" = it is)."""

    __slots__ = ("begin", "bytes", "end", "is_wanted", "taken", "urgent")

    def __init__(
        self, bytes_: int, *, urgent: bool, is_wanted: Callable[[], bool], begin: Callable[[], str],
        end: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.bytes, self.urgent, self.is_wanted, self.begin, self.end = bytes_, urgent, is_wanted, begin, end
        self.taken = False
        """Its turn has come."""


class Link:
    """One direction. `waiting_bytes` stand in its queue, `moved_bytes` went over it in `busy_fs`."""

    def __init__(self, bytes_per_s: int) -> None:
        assert bytes_per_s > 0, "a link has a speed"
        self.bytes_per_s = bytes_per_s
        self.moving: Transfer | None = None
        self.is_asking = False
        """Somebody is being asked whether it begins: who sends meanwhile waits for its turn."""
        self.waiting_bytes = self.moved_bytes = self.busy_fs = self.failures = 0
        self._urgent: deque[Transfer] = deque()
        self._others: deque[Transfer] = deque()

    def takes_fs(self, bytes_: int) -> int:
        """Time on the link, rounded up."""
        return -(-bytes_ * FS_PER_S // self.bytes_per_s)

    def bytes_before(self, *, urgent: bool) -> int:
        """Bytes that go before what would be sent now: what is on its way counts whole, what nobody wants not."""
        lanes = (self._urgent,) if urgent else (self._urgent, self._others)
        wanted = sum(one.bytes for lane in lanes for one in lane if not one.taken and one.is_wanted())
        return wanted + (self.moving.bytes if self.moving is not None else 0)

    def goes_first(self, transfer: Transfer | None) -> bool:
        """Whether that is one of those that `bytes_before` counts for what is urgent."""
        if transfer is None:
            return False
        return transfer is self.moving or (transfer in self._urgent and not transfer.taken and transfer.is_wanted())

    def put(self, transfer: Transfer, *, again: bool) -> None:
        """Its turn comes after all of its kind; before them if it failed just now."""
        lane = self._urgent if transfer.urgent else self._others
        if again:
            lane.appendleft(transfer)
        else:
            lane.append(transfer)
        self.waiting_bytes += transfer.bytes

    def hurry(self, transfer: Transfer) -> None:
        """Somebody waits for it now."""
        if not transfer.urgent and not transfer.taken:
            transfer.urgent = True
            self._urgent.append(transfer)  # Where it stood before it is passed over, since it will be taken by then.

    def pop(self) -> Transfer | None:
        """Whose turn it is."""
        for lane in (self._urgent, self._others):
            while lane:
                transfer = lane.popleft()
                if not transfer.taken:
                    transfer.taken = True
                    self.waiting_bytes -= transfer.bytes
                    return transfer
        return None


class Links:
    """What is on its way on any link of an engine, in order of time. `fates` says what becomes of each transfer."""

    def __init__(self, *, now_fs: int, fates: Iterator[Fate] | None = None) -> None:
        self.now_fs = now_fs
        self._fates = fates
        self._serial = 0
        self._to_come: list[tuple[int, int, Callable[[], None]]] = []

    def next_fs(self) -> int | None:
        """When something next ends or is there."""
        return self._to_come[0][0] if self._to_come else None

    def send(self, link: Link, transfer: Transfer, *, again: bool = False) -> None:
        """Queue it now; `again`: it failed just now. It may begin, and be refused, at once."""
        link.put(transfer, again=again)
        self._begin(link)

    def advance(self, now_fs: int) -> None:
        """Do all that is done by then. A time that has passed changes nothing."""
        to_come = self._to_come
        while to_come and to_come[0][0] <= now_fs:
            self.now_fs, _, act = heappop(to_come)
            act()
        self.now_fs = max(self.now_fs, now_fs)

    def _begin(self, link: Link) -> None:
        """The next one begins, if nothing is on its way."""
        if link.is_asking:
            return
        link.is_asking = True
        while link.moving is None and (transfer := link.pop()) is not None:
            why = transfer.begin() if transfer.is_wanted() else NOT_WANTED
            if why:
                transfer.end(why)
                continue
            took_fs = link.takes_fs(transfer.bytes)
            link.busy_fs += took_fs
            link.moved_bytes += transfer.bytes
            link.moving = transfer
            fate = next(self._fates) if self._fates is not None else FINE
            stall_fs = fate.stall_ns * FS_PER_NS
            is_overdue = stall_fs >= (OVERDUE - 1) * took_fs
            link.failures += fate.fails or (stall_fs > 0 and is_overdue)
            if stall_fs:
                self._at(self.now_fs + took_fs, partial(self._free, link))
                late_fs = min(took_fs + stall_fs, OVERDUE * took_fs)
                self._at(self.now_fs + late_fs, partial(transfer.end, FAILED if is_overdue else ""))
            else:
                self._at(self.now_fs + took_fs, partial(self._arrive, link, transfer, FAILED if fate.fails else ""))
        link.is_asking = False

    def _arrive(self, link: Link, transfer: Transfer, why: str) -> None:
        link.moving = None
        transfer.end(why)
        self._begin(link)

    def _free(self, link: Link) -> None:
        """What stalls is off the link."""
        link.moving = None
        self._begin(link)

    def _at(self, at_fs: int, act: Callable[[], None]) -> None:
        self._serial += 1
        heappush(self._to_come, (at_fs, self._serial, act))
