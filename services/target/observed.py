"""What a client saw of a target, as facts: so that a live run is scored by the one scorer of all logs.

Nothing of the target's own words is in these facts but token counts and what its metrics say. `merged` puts beside the
scores what only the target's log knows: predictions, deferrals, tiers, orders.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from events import codec, subjects
from events.base import NS_PER_S, PPM, EngineId, Event, HolderId, PoolId, RequestId, RequestKind
from events.decisions import RejectReason, RequestRejected
from events.engine import EngineKind, EngineMeasured, EngineRegistered
from events.log.base import Message
from events.request import AbortReason, FirstTokenSeen, RequestAborted, RequestFinished
from replay.gauges import DEVICE
from replay.score import MILLION, NS_PER_HOUR, Scores
from replay.series import EVERY_S, Series
from replay.workloads.facts import arrived
from services.target.client import Seen
from services.target.telemetry import Told

POOL: Final = PoolId("target")
CLIENT: Final = HolderId("bench")
START_NS: Final = NS_PER_S
"""Time of the facts at which the load begins: no record stands at time 0."""
_ANYWHERE: Final = EngineId("target")
_NO_ENGINE: Final = EngineRegistered(
    engine_id=_ANYWHERE, kind=EngineKind.VLLM, models=(), kv_blocks=0, block_tokens=1, block_bytes=0
)
"""SLOs stand in the arrivals: nothing of an engine is asked."""
FROM_LOG: Final = (
    "deferrals", "would", "cached_token_share", "kv_tokens_error", "ttft_error_ns", "hit_tokens_by_tier",
    "evictions", "migrations", "migrations_failed", "prefetches", "quota_moves", "preemptions",
    "throughput_fluctuation", "output_fluctuation", "output_least", "occupancy_fluctuation", "occupancy_mean_ppm",
    "occupancy_max_ppm", "device_ns",
)  # fmt: skip
"""Fields of Scores that the log of a gateway knows, and its clients do not."""


def facts(seen: Sequence[Seen], told: Sequence[Told] = (), *, begun_ns: int = 0) -> list[Message]:
    """What was seen, in order of time. `told` are by a clock that stood at `begun_ns` when the load began."""
    said: list[tuple[int, Event]] = [
        (START_NS + max(0, one.at_ns - begun_ns), one.event) for one in told
    ]  # fmt: skip
    for one in seen:
        said += _of(one)
    said.sort(key=lambda pair: pair[0])
    return [
        Message(
            seq,
            subjects.fact(POOL, CLIENT, event.event_kind()),
            codec.encode(owner=CLIENT, ts_ns=at_ns, said=[codec.Said(event=event)]),
            {},
        )
        for seq, (at_ns, event) in enumerate(said, start=1)
    ]


def _of(one: Seen) -> list[tuple[int, Event]]:
    due_ns = START_NS + one.due_ns
    said: list[tuple[int, Event]] = [(due_ns, arrived(one.arrival, _NO_ENGINE, holder=CLIENT, now_ns=due_ns))]
    request_id, engine = RequestId(one.arrival.request_id), EngineId(one.engine or _ANYWHERE)
    if one.first_ns and one.arrival.kind is RequestKind.LLM:
        event = FirstTokenSeen(request_id=request_id, engine_id=engine, ttft_ns=one.first_ns - one.due_ns)
        said.append((START_NS + one.first_ns, event))
    if one.answered:
        said.append((START_NS + one.last_ns, _finished(one, request_id, engine)))
    elif one.ended:
        said.append((max(due_ns, START_NS + one.last_ns), _refused(one, request_id)))
    return said


def _finished(one: Seen, request_id: RequestId, engine: EngineId) -> RequestFinished:
    output = one.output_tokens if one.output_tokens >= 0 else one.events
    prompt = one.prompt_tokens if one.prompt_tokens >= 0 else one.arrival.prompt_tokens
    steps = output - 1
    return RequestFinished(
        request_id=request_id, engine_id=engine, prompt_tokens=prompt, output_tokens=output,
        cached_tokens=one.cached_tokens, ttft_ns=one.first_ns - one.due_ns,
        tpot_ns=(one.last_ns - one.first_ns) // steps if steps > 0 else 0, e2e_ns=one.last_ns - one.due_ns,
    )  # fmt: skip


def _refused(one: Seen, request_id: RequestId) -> Event:
    try:
        return RequestRejected(request_id=request_id, reason=RejectReason(one.reason))
    except ValueError:
        reason = AbortReason.ENGINE_LOST if one.status in (0, 200) else AbortReason.ENGINE_REFUSED
        return RequestAborted(request_id=request_id, reason=reason)


def merged(scores: Scores, theirs: Scores) -> Scores:
    """The client's scores, and of the target's own what no client can see."""
    hours = None
    if scores.slo_tokens and theirs.device_ns:
        hours = theirs.device_ns / NS_PER_HOUR * MILLION / scores.slo_tokens
    return msgspec.structs.replace(
        scores, device_hours_per_million=hours, **{field: getattr(theirs, field) for field in FROM_LOG}
    )


def by_metrics(scores: Scores, told: Sequence[Told]) -> Scores:
    """With the share of prompt tokens that engines' /metrics say were cached, where no answer told: nothing said is not
    nothing cached. Probes before the load are not in it."""
    last = {one.event.engine_id: one.event for one in told if isinstance(one.event, EngineMeasured)}
    queries = sum(event.prefix_queries_total for event in last.values())
    if scores.cached_token_share:
        return scores
    if not queries:
        return msgspec.structs.replace(scores, cached_token_share=None, hit_tokens_by_tier={})
    share = sum(event.prefix_hits_total for event in last.values()) / queries
    tiers = {**scores.hit_tokens_by_tier, DEVICE: round(share * scores.prompt_tokens)}
    return msgspec.structs.replace(scores, cached_token_share=share, hit_tokens_by_tier=tiers)


def held(seen: Sequence[Seen], *, every_s: int = EVERY_S) -> tuple[Series, ...]:
    """Tokens of requests in the target's hands by kind, by its client's count: prompts from when they were sent, and
    answers as far as they had come."""
    every_ns = every_s * NS_PER_S
    end_ns = max((max(one.sent_ns, one.last_ns) for one in seen), default=0)
    times = range(every_ns, end_ns + every_ns, every_ns)
    found = []
    for kind in RequestKind:
        of_kind = [one for one in seen if one.arrival.kind is kind and one.sent_ns]
        if of_kind:
            values = tuple(float(sum(_held(one, at_ns) for one in of_kind)) for at_ns in times)
            at_s = tuple(at_ns / NS_PER_S for at_ns in times)
            found.append(Series(name=f"held_{kind.value}", unit="tokens", at_s=at_s, values=values))
    return tuple(found)


def _held(one: Seen, at_ns: int) -> int:
    if not one.sent_ns <= at_ns or (one.ended and at_ns >= one.last_ns):
        return 0
    tokens = one.arrival.prompt_tokens
    if one.first_ns and at_ns > one.first_ns and one.last_ns > one.first_ns:
        made = max(one.output_tokens, one.events)
        tokens += made * min(at_ns - one.first_ns, one.last_ns - one.first_ns) // (one.last_ns - one.first_ns)
    return tokens


def memory(messages: Iterable[Message], *, every_s: int = EVERY_S) -> tuple[Series, ...]:
    """Device memory by kind of request, for engines that tell what embedding jobs hold: means over steps, in bytes."""
    sizes: dict[EngineId, int] = {}
    sums: dict[tuple[str, EngineId], dict[int, list[int]]] = {}
    begun_ns = 0
    for message in messages:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            begun_ns = begun_ns or recorded.ts_ns
            match recorded.event:
                case EngineRegistered() as event:
                    sizes[event.engine_id] = event.kv_blocks * event.block_bytes
                case EngineMeasured() as event if event.embedding_bytes >= 0 and sizes.get(event.engine_id):
                    used = sizes[event.engine_id] * event.kv_used_ppm // PPM
                    step = (recorded.ts_ns - begun_ns) // (every_s * NS_PER_S)
                    embedding = min(event.embedding_bytes, used)
                    for name, value in (("memory_llm", used - embedding), ("memory_embedding", embedding)):
                        sums.setdefault((name, event.engine_id), {}).setdefault(step, []).append(value)
                case _:
                    pass
    return tuple(
        Series(
            name=name, unit="bytes", engine=engine_id,
            at_s=tuple(float((step + 1) * every_s) for step in steps),
            values=tuple(sum(values) / len(values) for values in steps.values()),
        )
        for (name, engine_id), steps in sums.items()
    )  # fmt: skip
