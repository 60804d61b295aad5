"""A decider that is asked at every step beside the one whose decisions stand in the log, and whose word is not taken.

What it says is compared; what was recorded is taken into its state. So at every step it stands where the actor stood:
the same facts, the same past.
"""

import dataclasses
from typing import Any

from events.base import Event, Recorded
from policies.decider import Decider
from replay.differences import Difference, Tally, TenantBook


class Beside:
    """`decider` is the one to drive with `advance`, after `expect` for each record. While `compares` is off the tried
    one is not asked. `decided` is what it said in the last step, `new` what of that differs and did not before."""

    def __init__(self, decider: Decider[Any], tenants: TenantBook) -> None:
        self.tally = Tally(decider.name, tenants)
        self.compares = True
        self.decided: list[Event] = []
        self.new: list[Difference] = []
        self.decider = dataclasses.replace(decider, decide=self._decide)
        self._tried = decider
        self._recorded: Recorded | None = None
        self._said: list[Recorded] = []

    def expect(self, recorded: Recorded, said: list[Recorded]) -> None:
        """The next record, and what the log says that was decided because of it."""
        self._recorded, self._said, self.decided, self.new = recorded, said, [], []

    def _decide(self, state: Any, event: Event, now_ns: int) -> list[Event]:
        assert self._recorded is not None, "a decision is made because of a record"
        if self.compares:
            self.decided = self._tried.decide(state, event, now_ns)
            self.new = self.tally.compare(self._recorded, self._said, self.decided)
        return [one.event for one in self._said]


def broke(recorded: Recorded, error: Exception) -> str:
    """What is said of a policy that raised on a record."""
    return f"record {recorded.at}: {type(error).__name__}: {error}"
