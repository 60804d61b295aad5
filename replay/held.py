"""A request at its holder in virtual time: what was decided about it, and the words that its holder has for it."""

from dataclasses import dataclass

from events.base import NS_PER_S, EngineId, RequestKind
from events.decisions import RequestAdmitted
from events.engine import EngineRegistered
from events.request import FinishReason, RequestArrived, RequestFinished
from replay.engines.job import Finished, SimRequest, embedding_window
from replay.workloads.base import Arrival

DEFERRED_GRACE_NS = NS_PER_S
"""How long past its time a deferred request is held for the decision that was announced, as the gateway does."""


@dataclass(slots=True)
class Held:
    """`arrived_ns` is when it first came, whatever the attempt. `answered`: the newest decision about it, `cause`, is
    to admit or to reject it. `gave_way`: it was preempted, and waits for the next word as long as that takes."""

    arrival: Arrival
    arrived: RequestArrived
    arrived_ns: int
    answered: bool = False
    gave_way: bool = False
    cause: str = ""
    engine_id: EngineId | None = None
    first_ns: int = 0
    deferred_until_ns: int = 0

    def held_until_ns(self) -> int:
        """When its holder stops waiting for a decision."""
        if not self.deferred_until_ns:
            return self.arrived.deadline_ns
        return max(self.arrived.deadline_ns, self.deferred_until_ns) + DEFERRED_GRACE_NS

    def as_asked(self, decision: RequestAdmitted) -> SimRequest:
        """What the engine is asked to do, with what it may weigh when it must choose within a step."""
        arrival, arrived = self.arrival, self.arrived
        return SimRequest(
            request_id=arrived.request_id,
            prompt_tokens=arrival.prompt_tokens,
            output_tokens=arrival.output_tokens,
            kind=arrival.kind,
            prefix=arrived.slices,
            unit_tokens=arrived.slice_tokens,
            inputs=arrival.inputs,
            tenant=arrived.tenant,
            priority=arrived.priority,
            deadline_ns=arrived.deadline_ns,
            slo_tpot_ns=arrived.slo_tpot_ns,
            output_expected=decision.output_tokens_predicted,
        )

    def finished(self, outcome: Finished, engine: EngineRegistered) -> RequestFinished:
        """The fact of its end on this engine, with the actual amounts."""
        arrival = self.arrival
        first_ns = self.first_ns or outcome.at_ns
        after_first = outcome.output_tokens - 1
        return RequestFinished(
            request_id=outcome.request_id,
            engine_id=engine.engine_id,
            prompt_tokens=arrival.prompt_tokens,
            output_tokens=outcome.output_tokens,
            cached_tokens=outcome.cached_tokens,
            kv_cache_tokens=arrival.prompt_tokens + outcome.output_tokens,
            ttft_ns=first_ns - self.arrived_ns,
            tpot_ns=(outcome.at_ns - first_ns) // after_first if after_first > 0 else 0,
            e2e_ns=outcome.at_ns - self.arrived_ns,
            preemptions=outcome.preemptions,
            finish_reason=FinishReason.LENGTH if outcome.output_tokens == arrival.tokens_max else FinishReason.STOP,
            slo_slack_ns=self.arrived.deadline_ns - first_ns,
            embedding_workspace_bytes=self._workspace_bytes(engine),
        )

    def _workspace_bytes(self, engine: EngineRegistered) -> int:
        if self.arrival.kind is not RequestKind.EMBEDDING:
            return 0
        window = embedding_window(self.arrival.prompt_tokens, self.arrival.inputs, engine.capability.batch_tokens_max)
        return min(-(-window // engine.block_tokens), engine.kv_blocks) * engine.block_bytes
