"""Arrivals as facts: what a gateway would write into the log for them, and back.

A journal of `request_arrived` and `output_traced` facts is a trace like any other: `arrivals_of` reads it again, and
so it does a recorded log.
Only full units of a prefix have a fingerprint, so a cut last id is not carried.
"""

from collections.abc import Iterable, Iterator

import msgspec

from events import codec, subjects
from events.base import (
    NS_PER_S,
    HolderId,
    ModelId,
    PoolId,
    RequestId,
    RequestKind,
    SessionId,
    SliceId,
    TenantId,
)
from events.engine import EngineRegistered
from events.log.base import Message
from events.request import OutputTraced, RequestArrived, RequestFinished
from replay.engines.job import embedding_window
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
        estimated=arrival.estimated,
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


class TraceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a trace as two facts, `at_ns` after the trace's begin."""

    at_ns: int
    arrived: RequestArrived
    traced: OutputTraced


def row_of(arrival: Arrival, engine: EngineRegistered, *, slo: Slo = SLO_DEFAULT) -> TraceRow:
    """An arrival as a row of a trace; what memory it is expected to hold, and its SLO, are those on `engine`."""
    fact = arrived(arrival, engine, holder=TRACE_HOLDER, now_ns=TRACE_START_NS + arrival.at_ns, slo=slo)
    return TraceRow(at_ns=arrival.at_ns, arrived=fact, traced=_traced(arrival, engine))


def rows_of(messages: Iterable[Message]) -> list[TraceRow]:
    """The requests in a log, first attempts only, in order of arrival and counted from the first. The output length is
    the traced one, else that of its answer, else the client's cap, else 1."""
    seen: list[tuple[int, RequestArrived]] = []
    traced: dict[RequestId, OutputTraced] = {}
    answered: dict[RequestId, RequestFinished] = {}
    names: dict[SliceId, SliceId] = {}
    for message in messages:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            match recorded.event:
                case RequestArrived(attempt=0) as event:
                    # One object per name: prompts of a session repeat all names of the prompts before.
                    slices = tuple(names.setdefault(name, name) for name in event.slices)
                    seen.append((recorded.ts_ns, msgspec.structs.replace(event, slices=slices)))
                case OutputTraced() as event:
                    traced[event.request_id] = event
                case RequestFinished() as event:
                    answered[event.request_id] = event
                case _:
                    pass
    start_ns = TRACE_START_NS if seen and seen[0][1].holder == TRACE_HOLDER else (seen[0][0] if seen else 0)
    return [
        TraceRow(at_ns=ts_ns - start_ns, arrived=event, traced=traced.get(event.request_id) or _known(event, answered))
        for ts_ns, event in seen
    ]


def rows_to_messages(rows: Iterable[TraceRow], *, pool: PoolId) -> Iterator[Message]:
    """Rows as a journal of facts, one message each, whatever log they are from."""
    for seq, row in enumerate(rows, start=1):
        now_ns = TRACE_START_NS + row.at_ns
        arrived = msgspec.structs.replace(
            row.arrived, holder=TRACE_HOLDER, deadline_ns=now_ns + row.arrived.slo_ttft_ns
        )
        said = [codec.Said(event=arrived), codec.Said(event=row.traced)]
        body = codec.encode(owner=SOURCE, ts_ns=now_ns, said=said)
        yield Message(seq, subjects.fact(pool, SOURCE, subjects.SEVERAL), body, {})


def arrivals_to_messages(
    arrivals: Iterable[Arrival], engine: EngineRegistered, *, pool: PoolId, slo: Slo = SLO_DEFAULT,
) -> Iterator[Message]:  # fmt: skip
    """Arrivals as a journal of facts: one message each, with the output length that it had."""
    return rows_to_messages((row_of(arrival, engine, slo=slo) for arrival in arrivals), pool=pool)


def arrivals_of(messages: Iterable[Message]) -> list[Arrival]:
    """The arrivals in a log, as `rows_of` finds them."""
    units: dict[SliceId, int] = {}
    return [arrival_of(row, units) for row in rows_of(messages)]


def arrival_of(row: TraceRow, units: dict[SliceId, int]) -> Arrival:
    """The arrival of a row; `units` keeps the ids that were met before, so that each is one object."""
    event, traced = row.arrived, row.traced
    return Arrival(
        at_ns=row.at_ns,
        request_id=event.request_id,
        kind=event.kind,
        tenant=event.tenant,
        model=event.model,
        prompt_tokens=event.prompt_tokens,
        output_tokens=traced.output_tokens,
        tokens_max=event.tokens_max,
        prefix=tuple(_unit(name, units) for name in event.slices),
        prefix_tokens=event.slice_tokens,
        inputs=event.inputs,
        priority=event.priority,
        session=event.session,
        after=traced.after,
        think_ns=traced.think_ns,
        slo=_slo(event, traced),
        estimated=event.estimated,
    )


def _traced(arrival: Arrival, engine: EngineRegistered) -> OutputTraced:
    """With the memory that it is expected to hold: an LLM request KV at its end, an embedding job a step's worth."""
    embedding = arrival.kind is RequestKind.EMBEDDING
    held = arrival.prompt_tokens + arrival.output_tokens
    if embedding:
        held = embedding_window(arrival.prompt_tokens, arrival.inputs, engine.capability.batch_tokens_max)
    held_bytes = -(-held // engine.block_tokens) * engine.block_bytes
    return OutputTraced(
        request_id=RequestId(arrival.request_id),
        output_tokens=arrival.output_tokens,
        after=RequestId(arrival.after),
        think_ns=arrival.think_ns,
        kv_cache_tokens=0 if embedding else held,
        kv_cache_bytes=0 if embedding else held_bytes,
        embedding_workspace_bytes=held_bytes if embedding else 0,
        slo_ttft_min_ns=arrival.slo.ttft_min_ns if arrival.slo is not None else 0,
        slo_ttft_factor=arrival.slo.ttft_factor if arrival.slo is not None else 0,
    )


def _known(event: RequestArrived, answered: dict[RequestId, RequestFinished]) -> OutputTraced:
    """What a recorded log knows of a request; what was asked of it there is asked of it again."""
    answer = answered.get(event.request_id)
    return OutputTraced(
        request_id=event.request_id,
        output_tokens=answer.output_tokens if answer is not None else max(1, event.tokens_max),
        kv_cache_tokens=answer.kv_cache_tokens if answer is not None else 0,
        embedding_workspace_bytes=answer.embedding_workspace_bytes if answer is not None else 0,
        slo_ttft_min_ns=event.slo_ttft_ns if event.holder != TRACE_HOLDER else 0,
    )


def _slo(event: RequestArrived, traced: OutputTraced) -> Slo | None:
    """What is asked of it by its trace; None leaves it to the run."""
    if not traced.slo_ttft_min_ns:
        return None
    return Slo(ttft_min_ns=traced.slo_ttft_min_ns, ttft_factor=traced.slo_ttft_factor, tpot_ns=event.slo_tpot_ns)


def _unit(name: SliceId, units: dict[SliceId, int]) -> int:
    unit = units.get(name)
    return units.setdefault(name, int(name, 16)) if unit is None else unit
