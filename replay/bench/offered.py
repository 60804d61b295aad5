"""What the comparison of policies offers: workloads by name, each at any scale and for any seed, and their engines.

- `conversation`: a window of the Mooncake conversation trace on four engines. The trace gives its times in batches of
  three seconds, and so they arrive here. A seed draws where the window begins (on a batch) and the order within each
  batch. The scale is the speed: 2.0 offers the same requests in half the time.
- `conversation_embedding`: the windows of `conversation` with waves of embedding jobs, as those of `mixed`, on the same
  four engines: what a fleet sees that serves both. The waves are drawn by the seed; their pace goes with the speed.
- `conversation_spread`: the same windows, each arrival at a drawn moment of its three seconds. Less bursty than the
  trace says, and nearer to what people do.
- `mixed`: sessions of three tenants and waves of embedding jobs (`replay.workloads.mixed`) on two engines with little
  KV. A seed draws everything. The scale is the number of sessions and waves, not their pace.

Windows of different seeds overlap, since the trace is only 1,800 s long: the spread over seeds is less than that over
days. Without the trace, `conversation` is drawn by the generator of `mixed` with lengths of the same quantiles, without
embedding; a report says which of the two it was.

Arrivals are an open loop: a turn comes at its time, whether the one before it was answered or not.
"""

from bisect import bisect_left
from enum import StrEnum
from functools import cache
from pathlib import Path
from random import Random

import msgspec

from events.base import NS_PER_S, EngineId
from events.engine import EngineRegistered
from replay.costmodel import registered
from replay.traces.mooncake import read_mooncake
from replay.workloads.base import Arrival
from replay.workloads.mixed import EMBEDDING_MODEL, ENGINE_KV_TOKENS, LLM_MODEL, Mixed, mixed, waves
from replay.workloads.mixed import ENGINES as MIXED_ENGINES
from replay.workloads.slo import Slo

CONVERSATION_ENGINES = 4
BATCH_TOKENS_SHIPPED = 2_048
"""The chunk budget of an engine as it is shipped; SLO limits are counted with it, whatever the engine runs with."""
SLO = Slo(batch_tokens=BATCH_TOKENS_SHIPPED)
BATCH_NS = 3 * NS_PER_S
"""The trace's times are multiples of this, give or take a few milliseconds."""


class Workload(StrEnum):
    """What is offered."""

    CONVERSATION = "conversation"
    SPREAD = "conversation_spread"
    EMBEDDING = "conversation_embedding"
    MIXED = "mixed"


SWEEPS: dict[Workload, tuple[float, ...]] = {
    Workload.CONVERSATION: (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6),
    Workload.SPREAD: (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7),
    Workload.EMBEDDING: (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6),
    Workload.MIXED: (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8),
}
"""Scales among which the knee is looked for."""

DRAWN_CONVERSATION = Mixed(
    seconds=1_800,
    tenants=("default",),
    tenant_weights=(1,),
    system_units=(0,),
    sessions=3_990,
    bursts=0,
    turns=((70, 1, 1), (20, 2, 3), (10, 3, 6)),
    document_tokens=(
        (12, 100, 1_000), (28, 1_000, 6_000), (35, 6_000, 16_000), (19, 16_000, 32_000), (6, 32_000, 90_000),
    ),
    message_tokens=((5, 5, 30), (3, 30, 500), (2, 500, 10_000)),
    answer_tokens=((10, 5, 25), (20, 25, 200), (40, 200, 450), (25, 450, 650), (5, 650, 1_500)),
    think_ms=((2, 25_000, 120_000), (1, 120_000, 420_000)),
    tokens_max=0,
    waves=0,
)  # fmt: skip
"""Lengths by the quantiles of the trace (prompts: half below 7.6K, a tenth above 28K; answers: half below 356)."""


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a workload a run takes: the window of the trace, and the seconds of `mixed`."""

    window_s: int = 600
    mixed_s: int = 240


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One workload at one scale for one seed. `trace` "" = drawn."""

    workload: Workload
    seed: int
    scale: float
    extent: Extent
    trace: str = ""


def arrivals(offer: Offer) -> list[Arrival]:
    """What arrives, in order of time."""
    if offer.workload is Workload.MIXED:
        return mixed(offer.seed, grown(Mixed(), offer.extent.mixed_s, offer.scale))
    return _window(offer)


def engines(workload: Workload, batch_tokens: int) -> list[EngineRegistered]:
    """The engines that a workload is meant for, with that chunk budget."""
    small, both = workload is Workload.MIXED, workload in (Workload.MIXED, Workload.EMBEDDING)
    count, kv_tokens = (MIXED_ENGINES, ENGINE_KV_TOKENS) if small else (CONVERSATION_ENGINES, 0)
    models = (LLM_MODEL, EMBEDDING_MODEL) if both else (LLM_MODEL,)
    described = registered("", models, kv_tokens=kv_tokens)
    capability = msgspec.structs.replace(described.capability, batch_tokens_max=batch_tokens)
    return [
        msgspec.structs.replace(described, engine_id=EngineId(f"e{number}"), capability=capability)
        for number in range(1, count + 1)
    ]


def grown(shape: Mixed, seconds: int, scale: float) -> Mixed:
    """The same density of sessions, bursts and waves over `seconds`, times `scale`."""
    factor = scale * seconds / shape.seconds
    return msgspec.structs.replace(
        shape, seconds=seconds, sessions=round(shape.sessions * factor), bursts=round(shape.bursts * factor),
        waves=round(shape.waves * factor),
    )  # fmt: skip


def _window(offer: Offer) -> list[Arrival]:
    """A window of the trace, counted from its begin, at the offered speed."""
    whole, window_ns = _conversation(offer.trace), offer.extent.window_s * NS_PER_S
    rng = Random(offer.seed)  # noqa: S311
    room = max(0, whole[-1].at_ns - window_ns) // BATCH_NS
    begin_ns = rng.randint(0, room) * BATCH_NS - BATCH_NS // 2  # Between batches, so that none is cut.
    first = bisect_left(whole, begin_ns, key=_at_ns)
    last = bisect_left(whole, begin_ns + window_ns, key=_at_ns)
    spread_ns = BATCH_NS if offer.workload is Workload.SPREAD else 1
    drawn = [(one.at_ns + rng.randrange(spread_ns), rng.random(), one) for one in whole[first:last]]
    drawn.sort(key=lambda each: each[:2])
    start_ns = drawn[0][0]
    if offer.workload is Workload.EMBEDDING:
        drawn += _embeddings(rng, offer.extent.window_s, start_ns)
        drawn.sort(key=lambda each: each[:2])
    return [msgspec.structs.replace(one, at_ns=int((at_ns - start_ns) / offer.scale)) for at_ns, _, one in drawn]


def _embeddings(rng: Random, seconds: int, start_ns: int) -> list[tuple[int, float, Arrival]]:
    """Waves over so many seconds of the trace, as many a second as in `mixed`."""
    shape = grown(Mixed(), seconds, 1.0)
    return [
        (start_ns + one.at_ns, rng.random(), msgspec.structs.replace(one, request_id=f"v{number}"))
        for number, one in enumerate(waves(rng, shape, seconds * 1_000))
    ]


@cache
def _conversation(trace: str) -> list[Arrival]:
    return read_mooncake(Path(trace)) if trace else mixed(0, DRAWN_CONVERSATION)


def _at_ns(arrival: Arrival) -> int:
    return arrival.at_ns
