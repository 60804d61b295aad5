"""An engine in virtual time, as its owner sees it: a pure state machine that is told what time it is.

Two kinds stand behind this: the light model (`replay.engines.light`), and vLLM's own scheduler without weights
(`replay.engines.vllm_scheduler`). One contract suite holds both.
"""

from collections.abc import Callable
from typing import Protocol

from events.base import EngineId, Event, RequestId
from events.decisions import EngineDirected, TransferCancelled, TransferOrdered
from events.engine import EngineMeasured, EngineRegistered
from events.slice import Tier
from replay.engines.job import Outcome, SimRequest
from replay.engines.tier_cache import SliceAt, TierCache
from replay.engines.tiers import TierSizes
from replay.faults import TransferFaults


class VirtualEngine(Protocol):
    """Time never goes back: every `now_ns` is at least the one before it."""

    engine_id: EngineId

    def submit(self, request: SimRequest, now_ns: int) -> None:
        """Queue a request; it can enter the step that begins at `now_ns` or later."""
        ...

    def abort(self, request_id: RequestId, now_ns: int) -> bool:
        """End a request without an answer; False if it is not here. Nothing more is said about it."""
        ...

    def preempt(self, request_id: RequestId, now_ns: int) -> bool:
        """Park a request until it is resumed; False if it is not here, is parked, or the kind cannot."""
        ...

    def resume(self, request_id: RequestId, now_ns: int) -> bool:
        """Put a parked request at the end of the queue; False if it is not parked."""
        ...

    def direct(self, directive: EngineDirected) -> None:
        """From the next step on, choose by this; an older one changes nothing."""
        ...

    def order(self, order: TransferOrdered | TransferCancelled, now_ns: int) -> None:
        """Carry out an order about slices; what became of it stands in `slice_facts`."""
        ...

    def accept(self, at: SliceAt, tier: Tier, now_ns: int) -> bool:
        """Take a copy of a slice from a peer."""
        ...

    def slice_facts(self, *, measure: bool) -> list[Event]:
        """What changed in its memory, as of the last `run_until`; with `measure` all of it and what was measured."""
        ...

    def ssd(self) -> TierCache | None:
        """What outlives it."""
        ...

    def next_ns(self) -> int | None:
        """When something can next come out of it, if nothing more goes in; None when there is nothing to do."""
        ...

    def run_until(self, now_ns: int) -> list[Outcome]:
        """Do all that is done by `now_ns`; what came out, in order of time."""
        ...

    def progress(self) -> list[tuple[RequestId, int]]:
        """Output tokens so far of every request that is in the engine."""
        ...

    def measured(self) -> EngineMeasured:
        """What the engine says of itself, as of the last `run_until`."""
        ...


class EngineBuilder(Protocol):
    """Makes engines of one kind. `ssd` is what the SSD of its forerunner held; `peer` finds another engine by id."""

    def __call__(
        self, registered: EngineRegistered, *, now_ns: int, tiers: TierSizes | None, faults: TransferFaults | None,
        ssd: TierCache | None, peer: Callable[[EngineId], VirtualEngine | None],
    ) -> VirtualEngine:  # fmt: skip
        """A fresh engine at that time."""
        ...
