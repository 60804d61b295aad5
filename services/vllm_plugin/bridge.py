"""Where the threads of an engine core process meet: the scheduler's thread, which must never wait, and the agent's.

The scheduler's thread (vLLM's scheduler, its offloading manager and cache policy) asks for delegated choices, says
facts, and takes up orders. The agent's thread brings directives and orders from the log, and takes facts and journal
entries away. Nothing here waits for I/O, and nothing here fails the engine: what the agent does not take in time is
dropped, counted, and made good by a resync (facts) or by a new journal (choices).
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec

from events.base import EngineId, Event, RequestId
from events.decisions import EngineDirected
from events.slice import ChoiceMade, SlicesCleared, SlicesRemoved, SlicesStored, Tier, TierMeasured, TransferFinished
from policies.memory.delegate import Delegate
from policies.memory.delegate_ops import AnyOp, Choice, Directed
from services.vllm_plugin.orders import Orders

FACTS_MAX: Final = 16_384
"""Facts that wait for the agent. One more, and all but answers to orders are dropped for a resync."""
ENTRIES_MAX: Final = 65_536
"""Journal entries that wait to be written. One more, and the journal ends there; a new one begins from a snapshot."""

_CONTENTS: Final = (SlicesStored, SlicesRemoved, SlicesCleared)

Inventory = Callable[[], Iterable[SlicesStored]]
"""What a tier holds now, as facts. Called by the agent's thread at any time: it copies under a lock of its own."""


class Entry(NamedTuple):
    """What a journal is made of: an op and its answer; or, where `snapshot` is set, the state before the next one."""

    number: int
    op: AnyOp | None = None
    choice: Choice | None = None
    snapshot: bytes = b""


class Bridge:
    """One per process (`bridge`). `engine_id` is set before anything else is asked of it; `measured` is what is last
    known of each tier."""

    def __init__(self) -> None:
        self.engine_id = EngineId("")
        self.orders = Orders(self.tell)
        self.facts_dropped = 0
        self.entries_dropped = 0
        self._lock = threading.Lock()
        self._facts: deque[Event] = deque()
        self._resync = False
        self._listening = False
        self._delegate = Delegate()
        self._directive: EngineDirected | None = None
        self._next_directive: EngineDirected | None = None
        self._number = 0
        self._entries: deque[Entry] = deque()
        self._journals = False
        self._snapshot_due = False
        self._inventories: dict[Tier, Inventory] = {}
        self._measure: Callable[[], TierMeasured] | None = None
        self._aborts: tuple[RequestId, ...] = ()
        self.measured: dict[Tier, TierMeasured] = {}
        self._told: dict[Tier, TierMeasured] = {}
        self._wake: Callable[[], None] | None = None
        self._agent_wake: Callable[[], None] | None = None

    # Scheduler's thread.

    @property
    def directive(self) -> EngineDirected | None:
        """The directive that choices are made by now; None = none was said yet."""
        return self._directive

    def choose(self, op: AnyOp) -> Choice | None:
        """Tell the delegate what happened, or ask it: None where the op is no question. Journaled either way; an
        answer is told as `choice_made`. Costs microseconds; a new directive counts from the next call on."""
        with self._lock:
            if self._next_directive is not None:
                directive, self._next_directive = self._next_directive, None
                self._take(Directed(directive=directive))
                self._directive = directive
            choice = self._take(op)
            number = self._number
        if choice is not None:
            self.tell(_made(self.engine_id, number, choice))
        return choice

    def tell(self, fact: Event) -> None:
        """Have a fact written into the log, in the order in which facts are told. Never waits: where too many wait,
        they are dropped and counted, and a resync says what is true. An order is answered all the same."""
        with self._lock:
            first = self._tell(fact)
        if first and self._agent_wake is not None:
            self._agent_wake()

    def note(self, fact: TierMeasured) -> None:
        """How a tier is after a step: the agent has it said (`tell_noted`) where nobody told it. Costs no message."""
        with self._lock:
            self.measured[fact.tier] = fact

    def holds(self, tier: Tier, slice_id: str) -> bool:
        """Whether the delegate was told that a tier has it."""
        return self._delegate.holds(tier, slice_id)

    @property
    def something_to_do(self) -> bool:
        """Whether an engine without requests has to make a step all the same."""
        return self.orders.waiting or bool(self._aborts)

    def aborts(self) -> tuple[RequestId, ...]:
        """Requests (by their names in the log) whose holder is lost: nobody waits for their answers."""
        with self._lock:
            taken, self._aborts = self._aborts, ()
            return taken

    def wake(self) -> None:
        """Have an idle engine core make a step, so that it takes up orders. From any thread."""
        if self._wake is not None:
            self._wake()

    def wakes_by(self, wake: Callable[[], None]) -> None:
        """How an idle engine core is made to step (the scheduler knows)."""
        self._wake = wake

    def report(self, tier: Tier, inventory: Inventory) -> None:
        """Who holds a tier: how its content is told after a resync."""
        self._inventories[tier] = inventory

    def measure(self, measure: Callable[[], TierMeasured]) -> None:
        """How the device's cache is measured. Called by the agent's thread at any time."""
        self._measure = measure

    # Agent's thread.

    def listen(self, wake: Callable[[], None], *, journals: bool) -> None:
        """The agent is there: keep facts for it (and journal entries, if it `journals`). `wake` is called from any
        thread when something waits again."""
        with self._lock:
            self._agent_wake, self._listening = wake, True
            self._journals = self._snapshot_due = journals

    def number_from(self, last: int) -> None:
        """Numbers of choices go on behind those of the journals that are there. Said before anything is chosen."""
        self._number = last

    def deafen(self) -> None:
        """The agent is gone: keep nothing any more. Choices go on under the last directive."""
        with self._lock:
            self._listening = self._journals = self._snapshot_due = False
            self._facts.clear()
            self._entries.clear()

    def direct(self, directive: EngineDirected) -> None:
        """A directive stands in the log: the newest counts from the next choice on."""
        with self._lock:
            newest = self._next_directive or self._directive
            if newest is None or directive.version > newest.version:
                self._next_directive = directive

    @property
    def directed_version(self) -> int:
        """The version of the newest directive that was brought (0 = none)."""
        newest = self._next_directive or self._directive
        return newest.version if newest is not None else 0

    def abort(self, requests: tuple[RequestId, ...]) -> None:
        """Have the engine give these up."""
        with self._lock:
            self._aborts += requests
        self.wake()

    def tell_noted(self) -> None:
        """Tell how tiers were after the last step, where that was not told: an idle engine makes no step that would."""
        with self._lock:
            for tier, fact in self.measured.items():
                if self._told.get(tier) != fact:
                    self._tell(fact)

    def measured_now(self) -> TierMeasured | None:
        """Of the device's cache; None while no scheduler is there."""
        return self._measure() if self._measure is not None else None

    def facts(self, most: int) -> list[Event]:
        """Up to `most` facts, in order."""
        with self._lock:
            return [self._facts.popleft() for _ in range(min(most, len(self._facts)))]

    def resync_due(self) -> bool:
        """Whether facts were dropped since the last call."""
        with self._lock:
            due, self._resync = self._resync, False
            return due

    def forget_facts(self) -> None:
        """The agent is about to say what the tiers hold now: what waits about that is of no use."""
        with self._lock:
            self._facts = deque(fact for fact in self._facts if not isinstance(fact, _CONTENTS))
            self._told.clear()  # Whoever hears of a clear wants tiers measured anew.

    def inventories(self) -> dict[Tier, Inventory]:
        """By tier, whoever reports it."""
        return dict(self._inventories)

    def entries(self) -> list[Entry]:
        """Journal entries to be written, in order."""
        with self._lock:
            taken, self._entries = list(self._entries), deque()
            return taken

    def begin_journal(self) -> None:
        """The next entry shall be a snapshot: the journal before it is full, or has a hole."""
        with self._lock:
            self._snapshot_due = self._journals

    def _tell(self, fact: Event) -> bool:
        """Under the lock. Whether nothing waited before it."""
        if isinstance(fact, TierMeasured):
            self.measured[fact.tier] = fact
        if not self._listening:
            return False
        if len(self._facts) >= FACTS_MAX:
            self._drop_facts()
        if isinstance(fact, TierMeasured):
            self._told[fact.tier] = fact
        self._facts.append(fact)
        return len(self._facts) == 1

    def _drop_facts(self) -> None:
        kept: deque[Event] = deque(fact for fact in self._facts if isinstance(fact, TransferFinished))
        self.facts_dropped += len(self._facts) - len(kept)
        self._facts, self._resync = kept, True
        self._told.clear()

    def _take(self, op: AnyOp) -> Choice | None:
        self._number += 1
        if self._snapshot_due:
            # A state in place of all that led to it: each journal can be verified alone.
            self._snapshot_due = False
            self._entries.append(Entry(self._number - 1, snapshot=msgspec.json.encode(self._delegate.snapshot())))
        try:
            choice = self._delegate.take(op)
        except Exception:
            # Whatever of it was taken in, no journal says: the next one begins with what is known then.
            self._snapshot_due = self._journals
            raise
        if not self._journals:
            return choice
        if len(self._entries) >= ENTRIES_MAX:
            self.entries_dropped += len(self._entries)
            self._entries.clear()
            self._snapshot_due = True
        else:
            self._entries.append(Entry(self._number, op, choice))
        return choice


def _made(engine_id: EngineId, number: int, choice: Choice) -> ChoiceMade:
    return ChoiceMade(
        engine_id=engine_id, number=number, kind=choice.kind, directive_version=choice.directive_version,
        candidates=choice.candidates, candidates_digest=choice.candidates_digest, chosen=choice.chosen,
        for_request=choice.for_request,
    )  # fmt: skip


bridge: Final = Bridge()
"""The one of this process."""
