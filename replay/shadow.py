"""A second policy beside an actor at work: from one record on it is asked at every step, and nobody goes by it.

Until then it takes the log in as the actor did. At that record its settings change as they would if it were promoted,
so what it says is what the actor would say from then on, each time from where the actor really stands.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from events.base import Cause, Event, LogDamaged, Recorded
from policies.decider import Decider, advance, begin
from replay.beside import Beside, broke
from replay.differences import Difference, Differences, TenantBook
from replay.tried import Candidate


class Shadow:
    """One actor's. `seq` is the last message that was taken in, `now_ns` the pool's time there."""

    def __init__(self, decider: Decider[Any], of: Candidate) -> None:
        self._decider, self._of = decider, of
        self._tenants = TenantBook()
        self._beside = Beside(dataclasses.replace(decider, configure=self._configure), self._tenants)
        self._beside.compares = False
        self._progress = begin(self._beside.decider)

    @property
    def found(self) -> Differences:
        """What differs so far."""
        return self._beside.tally.found

    @property
    def now_ns(self) -> int:
        """The pool's time."""
        return self._progress.now_ns

    def begin(self) -> None:
        """From the next record on its settings hold, and what it says is compared. Raises ValueError for a setting that
        is not there."""
        self._decider.configure(self._progress.state, self._of.wanted(self._decider))
        self._beside.compares = True

    def take(
        self, recorded: Recorded, said: list[Recorded], *, quarantined: frozenset[Cause] = frozenset()
    ) -> tuple[list[Event], list[Difference]]:
        """Take one record in, with what the actor decided because of it. What the shadow would have decided, and what
        of that is another outcome and was not before. Once its policy broke (`found.failed`) it takes nothing more."""
        if self.found.failed:
            return [], []
        self._tenants.note(recorded.event)
        self._beside.expect(recorded, said)
        try:
            advance(self._beside.decider, self._progress, recorded, quarantined=quarantined)
        except LogDamaged:
            raise
        except Exception as error:
            # It is tried on live records because it may break on them; the actor goes on.
            self.found.failed = broke(recorded, error)
        return self._beside.decided, self._beside.new

    def _configure(self, state: Any, settings: Mapping[str, Any]) -> None:
        """What the log says of settings holds until it begins, and where it leaves them open."""
        if self._beside.compares and self._of.whole:
            return
        self._decider.configure(state, settings)
        if self._beside.compares:
            self._decider.configure(state, self._of.wanted(self._decider))
