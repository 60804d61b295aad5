"""Who comes when: open loop, all at their place in the trace; closed loop, a turn after the answer it waited for.

The set of requests is fixed before a run: those whose place in the trace is before `until_ns`. What comes after that
is never sent, however quick the answers were; so every system is held against the same requests over the same time.
In a closed loop a turn of the set is not sent if what it waited for had no answer, or had it so late that the turn
would come at `until_ns` or later: then it, and all that waits for it, stays unsent, and counts as missed.

A turn may wait for one of another session: who worked on that one begins the next when it is over. It is over without
an answer too: what is left of it stays unsent, and who waits for any of that in another session comes then.

Example: a, then b 5 s after the answer to a, then c 1 s after that to b. a was rejected, came again, and was rejected
again: b and c are unsent. The next session's d, which waits for c, comes all the same.
"""

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from events.base import RequestId
from replay.workloads.base import Arrival


class Turns:
    """Raises ValueError where a turn waits for a request that is not in the set. `until_ns` 0 = no end."""

    def __init__(self, arrivals: Sequence[Arrival], *, closed_loop: bool, until_ns: int) -> None:
        self.window = [one for one in arrivals if not until_ns or one.at_ns < until_ns]
        self._until_ns = until_ns
        self._waiting: dict[str, list[Arrival]] = {}
        self._sent: dict[str, None] = {}
        names = {one.request_id for one in self.window}
        for one in self.window if closed_loop else ():
            if one.after and one.after not in names:
                raise ValueError(f"{one.request_id} waits for {one.after}, which is not in the workload's window")
            if one.after:
                self._waiting.setdefault(one.after, []).append(one)
        self.closed_loop = closed_loop

    def at_own_time(self) -> list[Arrival]:
        """Those that wait for nobody, in order."""
        return [one for one in self.window if not (self.closed_loop and one.after)]

    def answered(self, request_id: RequestId, end_ns: int) -> list[tuple[int, Arrival]]:
        """It is answered `end_ns` after the start: who comes because of it, and when."""
        return self._coming(end_ns, self._waiting.pop(request_id, ()))

    def given_up(self, arrival: Arrival, end_ns: int) -> list[tuple[int, Arrival]]:
        """It ended without an answer `end_ns` after the start, and is not offered again: who comes because of it, and
        when. What waits for it in its own session is never sent, nor what waits for that."""
        left, freed = [arrival], list[Arrival]()
        while left:
            waiting = self._waiting.pop(left.pop().request_id, ())
            left += [one for one in waiting if one.session == arrival.session]
            freed += [one for one in waiting if one.session != arrival.session]
        return self._coming(end_ns, freed)

    def is_open(self, at_ns: int) -> bool:
        """Whether a request is still sent at that time."""
        return not self._until_ns or at_ns < self._until_ns

    def _coming(self, end_ns: int, waiting: Iterable[Arrival]) -> list[tuple[int, Arrival]]:
        coming = [(end_ns + one.think_ns, one) for one in waiting]
        return [(at_ns, one) for at_ns, one in coming if self.is_open(at_ns)]

    @property
    def sent_count(self) -> int:
        """How many of the window were sent until now."""
        return len(self._sent)

    def sent(self, arrival: Arrival) -> None:
        """It was sent."""
        self._sent[arrival.request_id] = None

    def unsent(self) -> list[Arrival]:
        """Those of the window that were not sent until now, in order."""
        return [one for one in self.window if one.request_id not in self._sent]


def hastened(arrivals: Sequence[Arrival], speed: float, *, closed_loop: bool) -> list[Arrival]:
    """The same requests at `speed` times the load, in order of time. In a closed loop only the begins of sessions move:
    how long turns take and how long sessions think stays as it is."""
    begun: dict[str, tuple[int, int]] = {}
    moved: list[Arrival] = []
    for one in arrivals:
        if closed_loop and one.after in begun:
            was_ns, now_ns = begun[one.after]
        else:
            was_ns, now_ns = one.at_ns, int(one.at_ns / speed)
        begun[one.request_id] = (was_ns, now_ns)
        moved.append(replace(one, at_ns=now_ns + one.at_ns - was_ns))
    return sorted(moved, key=lambda one: one.at_ns)
