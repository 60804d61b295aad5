"""Arrivals as facts: what a gateway would write into the log for them, and back.

A journal of `request_arrived` and `output_traced` facts is a trace like any other: `arrivals_of` reads it again.
Only full units of a prefix have a fingerprint, so a cut last id is not carried.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from events import codec, subjects
from events.base import (
    NS_PER_MS,
    NS_PER_S,
    HolderId,
    ModelId,
    PoolId,
    RequestId,
    SessionId,
    SliceId,
    TenantId,
)
from events.engine import EngineRegistered, StepModel
from events.log.base import Message
from events.request import OutputTraced, RequestArrived
from policies.predictors.step_time import unloaded_ttft_ns
from replay.workloads.base import Arrival

SOURCE = "trace"
TRACE_HOLDER = HolderId("trace")
TRACE_START_NS = NS_PER_S
"""Pool time at which a written trace begins: no record stands at time 0."""
STREAM_FROM_TOKENS = 2


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """SLO met = TTFT <= max(`ttft_min_ns`, `ttft_factor` x the unloaded, uncached TTFT of that prompt) and mean
    TPOT <= `tpot_ns`. For an embedding the vector counts as first token. The unloaded TTFT is that of an engine with a
    chunk budget of `batch_tokens` (0 = its own), so that a limit need not move with how the engine is run."""

    ttft_min_ns: int = NS_PER_S
    ttft_factor: int = 2
    tpot_ns: int = 50 * NS_PER_MS
    batch_tokens: int = 0

    def ttft_ns(self, prompt_tokens: int, engine: EngineRegistered) -> int:
        """The TTFT limit of a prompt on an engine."""
        model: StepModel | None = engine.step
        if model is None:
            return self.ttft_min_ns
        batch_tokens = self.batch_tokens or engine.capability.batch_tokens_max
        unloaded = unloaded_ttft_ns(model, prompt=prompt_tokens, batch_tokens=batch_tokens)
        return max(self.ttft_min_ns, self.ttft_factor * unloaded)


SLO_DEFAULT = Slo()


def arrived(
    arrival: Arrival, engine: EngineRegistered, *, holder: HolderId, now_ns: int, slo: Slo = SLO_DEFAULT,
    attempt: int = 0,
) -> RequestArrived:  # fmt: skip
    """The fact of an arrival at a holder at pool time `now_ns`; the SLO is that of `engine`."""
    ttft_ns = slo.ttft_ns(arrival.prompt_tokens, engine)
    full = arrival.prompt_tokens // arrival.prefix_tokens
    return RequestArrived(
        request_id=RequestId(arrival.request_id),
        tenant=TenantId(arrival.tenant),
        model=ModelId(arrival.model),
        kind=arrival.kind,
        holder=holder,
        prompt_tokens=arrival.prompt_tokens,
        tokens_max=arrival.tokens_max,
        inputs=arrival.inputs,
        stream=arrival.output_tokens >= STREAM_FROM_TOKENS,
        priority=arrival.priority,
        session=SessionId(arrival.session),
        slo_ttft_ns=ttft_ns,
        slo_tpot_ns=slo.tpot_ns,
        deadline_ns=now_ns + ttft_ns,
        slices=tuple(SliceId(f"{unit:032x}") for unit in arrival.prefix[:full]),
        slice_tokens=arrival.prefix_tokens,
        attempt=attempt,
    )


def arrivals_to_messages(
    arrivals: Iterable[Arrival], engine: EngineRegistered, *, pool: PoolId, slo: Slo = SLO_DEFAULT,
) -> Iterator[Message]:  # fmt: skip
    """A trace as a journal of facts: one message per arrival, with the output length that it had."""
    for seq, arrival in enumerate(arrivals, start=1):
        now_ns = TRACE_START_NS + arrival.at_ns
        said = [
            codec.Said(event=arrived(arrival, engine, holder=TRACE_HOLDER, now_ns=now_ns, slo=slo)),
            codec.Said(
                event=OutputTraced(request_id=RequestId(arrival.request_id), output_tokens=arrival.output_tokens)
            ),
        ]
        body = codec.encode(owner=SOURCE, ts_ns=now_ns, said=said)
        yield Message(seq, subjects.fact(pool, SOURCE, subjects.SEVERAL), body, {})


def arrivals_of(messages: Iterable[Message]) -> list[Arrival]:
    """The arrivals in a log, first attempts only, counted from the first. The true output length is the traced one,
    else the client's cap, else 1."""
    seen: list[tuple[int, RequestArrived]] = []
    outputs: dict[RequestId, int] = {}
    for message in messages:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            match recorded.event:
                case RequestArrived(attempt=0) as event:
                    seen.append((recorded.ts_ns, event))
                case OutputTraced(request_id=request_id, output_tokens=output_tokens):
                    outputs[request_id] = output_tokens
                case _:
                    pass
    start_ns = TRACE_START_NS if seen and seen[0][1].holder == TRACE_HOLDER else (seen[0][0] if seen else 0)
    return [_arrival(ts_ns - start_ns, event, outputs) for ts_ns, event in seen]


def _arrival(at_ns: int, event: RequestArrived, outputs: dict[RequestId, int]) -> Arrival:
    return Arrival(
        at_ns=at_ns,
        request_id=event.request_id,
        kind=event.kind,
        tenant=event.tenant,
        model=event.model,
        prompt_tokens=event.prompt_tokens,
        output_tokens=outputs.get(event.request_id, max(1, event.tokens_max)),
        tokens_max=event.tokens_max,
        prefix=_units(event.slices),
        prefix_tokens=event.slice_tokens,
        inputs=event.inputs,
        priority=event.priority,
        session=event.session,
    )


def _units(slices: Sequence[SliceId]) -> tuple[int, ...]:
    return tuple(int(name, 16) for name in slices)
