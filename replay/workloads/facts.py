"""Arrivals as facts: what a gateway would write into the log for them, and back.

A journal of `request_arrived` and `output_traced` facts is a trace like any other: `arrivals_of` reads it again.
Only full units of a prefix have a fingerprint, so a cut last id is not carried.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from events import codec, subjects
from events.base import (
    NS_PER_S,
    HolderId,
    ModelId,
    PoolId,
    RequestId,
    SessionId,
    SliceId,
    TenantId,
)
from events.engine import EngineRegistered
from events.log.base import Message
from events.request import OutputTraced, RequestArrived
from replay.workloads.base import Arrival
from replay.workloads.slo import SLO_DEFAULT, Slo

SOURCE = "trace"
TRACE_HOLDER = HolderId("trace")
TRACE_START_NS = NS_PER_S
"""Pool time at which a written trace begins: no record stands at time 0."""
STREAM_FROM_TOKENS = 2


def arrived(
    arrival: Arrival, engine: EngineRegistered, *, holder: HolderId, now_ns: int, slo: Slo = SLO_DEFAULT,
    attempt: int = 0,
) -> RequestArrived:  # fmt: skip
    """The fact of an arrival at a holder at pool time `now_ns`; its SLO is its own, else `slo`, on `engine`."""
    if arrival.slo is not None:
        slo = msgspec.structs.replace(arrival.slo, batch_tokens=slo.batch_tokens)
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
            codec.Said(event=_traced(arrival)),
        ]
        body = codec.encode(owner=SOURCE, ts_ns=now_ns, said=said)
        yield Message(seq, subjects.fact(pool, SOURCE, subjects.SEVERAL), body, {})


def arrivals_of(messages: Iterable[Message]) -> list[Arrival]:
    """The arrivals in a log, first attempts only, counted from the first. The true output length is the traced one,
    else the client's cap, else 1."""
    seen: list[tuple[int, RequestArrived]] = []
    traced: dict[RequestId, OutputTraced] = {}
    for message in messages:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            match recorded.event:
                case RequestArrived(attempt=0) as event:
                    seen.append((recorded.ts_ns, event))
                case OutputTraced() as event:
                    traced[event.request_id] = event
                case _:
                    pass
    start_ns = TRACE_START_NS if seen and seen[0][1].holder == TRACE_HOLDER else (seen[0][0] if seen else 0)
    return [_arrival(ts_ns - start_ns, event, traced.get(event.request_id)) for ts_ns, event in seen]


def _traced(arrival: Arrival) -> OutputTraced:
    return OutputTraced(
        request_id=RequestId(arrival.request_id),
        output_tokens=arrival.output_tokens,
        after=RequestId(arrival.after),
        think_ns=arrival.think_ns,
        slo_ttft_min_ns=arrival.slo.ttft_min_ns if arrival.slo is not None else 0,
        slo_ttft_factor=arrival.slo.ttft_factor if arrival.slo is not None else 0,
    )


def _arrival(at_ns: int, event: RequestArrived, traced: OutputTraced | None) -> Arrival:
    return Arrival(
        at_ns=at_ns,
        request_id=event.request_id,
        kind=event.kind,
        tenant=event.tenant,
        model=event.model,
        prompt_tokens=event.prompt_tokens,
        output_tokens=traced.output_tokens if traced is not None else max(1, event.tokens_max),
        tokens_max=event.tokens_max,
        prefix=_units(event.slices),
        prefix_tokens=event.slice_tokens,
        inputs=event.inputs,
        priority=event.priority,
        session=event.session,
        after=traced.after if traced is not None else "",
        think_ns=traced.think_ns if traced is not None else 0,
        slo=_slo(event, traced),
    )


def _slo(event: RequestArrived, traced: OutputTraced | None) -> Slo | None:
    """What was asked of it: by its trace, else where it was recorded; None leaves it to the run."""
    if traced is not None and traced.slo_ttft_min_ns:
        return Slo(ttft_min_ns=traced.slo_ttft_min_ns, ttft_factor=traced.slo_ttft_factor, tpot_ns=event.slo_tpot_ns)
    if event.holder == TRACE_HOLDER:
        return None
    return Slo(ttft_min_ns=event.slo_ttft_ns, ttft_factor=0, tpot_ns=event.slo_tpot_ns)


def _units(slices: Sequence[SliceId]) -> tuple[int, ...]:
    return tuple(int(name, 16) for name in slices)
