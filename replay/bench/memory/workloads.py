"""What the memory benchmark offers: workloads by name, each for any seed, scale, window and number of engines.

- `conversation`: the Mooncake conversation trace. Its times come in batches of three seconds, and so they arrive here.
- `conversation_embedding`: the same, with waves of embedding jobs as in `mixed`.
- `synthetic`: the Mooncake synthetic trace: families of prompts with long common beginnings.
- `coding`: coding-agent sessions recorded at WEKA, in a closed loop: a turn comes its think time after the answer
  before it. Prompts of 100K tokens and more are the rule.
- `coding_small`: the shorter ones of them.
- `coding_steady`: turns of `coding` with prompts of 32K tokens and more, in so many sessions that are open all the
  time (`replay.workloads.slots`).
- `mixed`: sessions of three tenants and waves of embedding jobs (`replay.workloads.mixed`).
- `mixed_steady`: the same sessions and jobs at a constant rate, begun before the window: no bursts, no waves.

A scale is density per engine, so that a knee means the same for two engines and for eight: of traces it is the pace,
counted from the trace's own on `BASE_ENGINES` engines; of `coding` and `mixed` it is the number of sessions (and waves)
at their own pace, of `coding_steady` that of open sessions.

A seed draws where a trace's window begins and the order within a batch, or which sessions come and when they begin, or
everything. A window that is longer than what is left of its trace goes on with the trace's begin, with prefix ids that
are new in each lap: nothing is found in a cache that the trace would not have had there. `WorkloadInfo.drawn` says so.
Without the trace's file its lengths are drawn by the generator of `mixed`, and a report says so.

Tiers are parts of one amount per workload, engines and window, `unique_kv_bytes`, whatever the load: that of the
workload at scale 1, with nothing of its trace counted twice.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from events.base import NS_PER_S, EngineId, RequestKind
from events.engine import EngineRegistered
from replay.belady import unique_bytes
from replay.bench.offered import BATCH_NS, DRAWN_CONVERSATION, grown
from replay.costmodel import PROFILES, registered
from replay.traces.mooncake import read_mooncake
from replay.traces.weka import weka_trace
from replay.workloads.base import Arrival
from replay.workloads.mixed import EMBEDDING_MODEL, LLM_MODEL, Mixed, mixed, waves
from replay.workloads.mixed import ENGINES as MIXED_ENGINES
from replay.workloads.sessions import Session, started
from replay.workloads.slots import in_slots, steady

PROFILE: Final = "llama-3-8b_h100"
EMBEDDING_PARAMS: Final = 7_110_000_000
BF16_BYTES: Final = 2
"""E5-Mistral-7B in bf16: an engine that serves it too has so much less left for KV."""
BASE_ENGINES: Final = 4
"""A trace's own pace is meant for so many engines."""
CODING_SESSIONS_PER_S: Final = 1 / 75
"""Sessions begun per engine and second at scale 1."""
CODING_UNIT_TOKENS: Final = 512
"""Prefix units of coding prompts, as of the other traces (their blocks are of 64 tokens)."""
STEADY_SESSIONS: Final = 4
"""Sessions of `coding_steady` open at any time, per engine at scale 1."""
STEADY_PROMPT_TOKENS_MIN: Final = 32_768
STEADY_BEFORE_S: Final = 300
"""So long before its window `mixed_steady` begins: longer than nearly every session lasts."""
RATIOS: Final = (0.0, 0.5, 2.0, 4.0)
"""How many times the embedding waves of `mixed` its variants have: the sweep over the workload's ratio."""
LAP_IDS: Final = 1 << 40
"""Prefix ids of one lap of a trace; traces and generators number theirs far below."""
DRAWN_TRACE: Final = "lengths and times drawn (no trace file)"


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What is offered. `file` is looked for below the folder of traces; `guess` is a scale near the knee, where the
    search for it begins; `embedding` times as many waves as there are; `drawn` is what no trace has and is always
    drawn."""

    name: str
    title: str
    guess: float
    file: str = ""
    models: tuple[str, ...] = (LLM_MODEL,)
    closed_loop: bool = False
    embedding: float = 1.0
    drawn: str = ""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One workload at one scale for one seed, for so many engines and seconds. `trace` is its file, "" = drawn."""

    workload: str
    seed: int
    scale: float
    seconds: int
    engines: int
    trace: str = ""


_BOTH: Final = (LLM_MODEL, EMBEDDING_MODEL)
_CONVERSATION: Final = "mooncake/conversation_trace*.jsonl.gz"
_SESSIONS: Final = "weka_agentic/sessions_main*.jsonl.gz"
_WAVES_DRAWN: Final = "embedding jobs (no public trace has any)"
_BEGINS_DRAWN: Final = "when sessions begin (the trace has no absolute times)"

_WINDOWED: Final = ("conversation", "conversation_embedding", "synthetic")
_CODING: Final = ("coding", "coding_small")
_STEADY_CODING: Final = "coding_steady"
_STEADY_MIXED: Final = "mixed_steady"

_EVERY: Final = (
    Workload(name="conversation", title="Mooncake conversation", file=_CONVERSATION, guess=1.0),
    Workload(
        name="synthetic", title="Mooncake synthetic", file="mooncake/synthetic_trace*.jsonl.gz", guess=3.0,
    ),
    Workload(
        name="coding", title="coding-agent sessions", file=_SESSIONS, guess=1.0,
        closed_loop=True, drawn=_BEGINS_DRAWN,
    ),
    Workload(
        name="coding_small", title="shorter coding-agent sessions", file="weka_agentic/sessions_small*.jsonl.gz",
        guess=1.0, closed_loop=True, drawn=_BEGINS_DRAWN,
    ),
    Workload(
        name=_STEADY_CODING, title="coding-agent sessions, contexts of 32K and more, so many always open", guess=1.0,
        file=_SESSIONS, closed_loop=True, drawn="who is where when it begins (the trace has no absolute times)",
    ),
    Workload(
        name=_STEADY_MIXED, title="mixed LLM and embedding at a constant rate", models=_BOTH, guess=0.9,
        drawn="everything",
    ),
    Workload(name="mixed", title="mixed LLM and embedding", models=_BOTH, guess=0.9, drawn="everything"),
    Workload(
        name="conversation_embedding", title="Mooncake conversation with embedding waves", models=_BOTH,
        file=_CONVERSATION, guess=0.9, drawn=_WAVES_DRAWN,
    ),
    *(
        Workload(
            name=f"mixed_embedding_x{times:g}", title=f"mixed, {times:g} times the embedding waves", models=_BOTH,
            guess=0.9, drawn="everything", embedding=times,
        )
        for times in RATIOS
    ),
)  # fmt: skip

WORKLOADS: dict[str, Workload] = {one.name: one for one in _EVERY}
"""By name."""

DRAWN_SYNTHETIC: Final = msgspec.structs.replace(
    DRAWN_CONVERSATION, seconds=1_022, sessions=700, tenants=tuple(f"family{n}" for n in range(24)),
    tenant_weights=(1,) * 24, system_units=(40,) * 24, turns=((3, 1, 4), (1, 4, 10)),
)  # fmt: skip
DRAWN_CODING: Final = msgspec.structs.replace(
    DRAWN_CONVERSATION, tenants=("agents",), system_units=(60,), turns=((1, 8, 24), (1, 24, 60)),
    document_tokens=((1, 1_000, 20_000), (2, 20_000, 60_000)), message_tokens=((8, 50, 1_500), (2, 1_500, 8_000)),
    answer_tokens=((3, 30, 300), (1, 300, 1_500)), think_ms=((4, 500, 4_000), (1, 4_000, 60_000)),
)  # fmt: skip
"""Stand-ins for traces that are not there: about their lengths and how much of a prompt was seen before."""
CONTEXT_TOKENS_MAX: Final = 131_072


def trace_of(workload: Workload, traces: Path | None) -> str:
    """The file of a workload below a folder of traces: the first by name that fits. "" where there is none."""
    if traces is None or not workload.file:
        return ""
    found = sorted(traces.glob(workload.file))
    return str(found[0].absolute()) if found else ""


def drawn_of(offer: Offer) -> str:
    """What of an offer was drawn ("" = nothing but the seed's choice of a window)."""
    workload = WORKLOADS[offer.workload]
    said = [workload.drawn] if workload.drawn else []
    if workload.file and not offer.trace:
        said.append(DRAWN_TRACE)
    laps = _laps(offer)
    if laps > 1:
        said.append(f"the trace is laid end to end {laps} times, with fresh prefix ids")
    return "; ".join(said)


def arrivals(offer: Offer) -> list[Arrival]:
    """What arrives, in order of time, all of it within the window."""
    made = _made(offer)
    made.sort(key=lambda one: one.at_ns)
    return [one for one in made if one.at_ns < offer.seconds * NS_PER_S]


def unique_kv_bytes(offer: Offer) -> int:
    """What tiers are parts of: the KV that prompts of this workload have, each once, at scale 1 for these engines and
    this window. A trace that is shorter than its window, or has fewer sessions than are begun, counts once as a whole:
    its own unique KV, without laps. It does not depend on the offer's scale."""
    return _unique_kv_bytes(msgspec.structs.replace(offer, scale=1.0))


@cache
def _unique_kv_bytes(own: Offer) -> int:
    described = registered("", WORKLOADS[own.workload].models, profile=PROFILE)
    return unique_bytes(_once(own), token_bytes=described.block_bytes // described.block_tokens)


def _once(own: Offer) -> list[Arrival]:
    """What arrives, without what is in it a second time under fresh ids."""
    if own.workload in _WINDOWED and int(own.seconds * _pace(own) * NS_PER_S) >= _lap_ns(_trace_of(own)):
        return _trace_of(own)
    if own.workload in _CODING and _sessions_begun(own) > len(_sessions(own.trace)):
        return [turn for session in _sessions(own.trace) for turn in session]
    return arrivals(own)


def kv_tokens_of(workload: Workload) -> int:
    """What one H100 with 80 GB has left for KV after the weights of all that it serves."""
    profile = PROFILES[PROFILE]
    other = EMBEDDING_PARAMS * BF16_BYTES if EMBEDDING_MODEL in workload.models else 0
    return profile.kv_tokens() - -(-other // profile.kv.token_bytes())


def engines(workload: Workload, count: int, *, batch_tokens: int, seqs_max: int) -> list[EngineRegistered]:
    """That many engines as the workload needs them, that can do what stock vLLM can: nobody orders a preemption, and
    device memory evicts by its own rule."""
    described = registered("", workload.models, profile=PROFILE, kv_tokens=kv_tokens_of(workload))
    capability = msgspec.structs.replace(
        described.capability, batch_tokens_max=batch_tokens, seqs_max=seqs_max,
        embedding=EMBEDDING_MODEL in workload.models, can_preempt=False, device_lru=True,
    )  # fmt: skip
    return [
        msgspec.structs.replace(described, engine_id=EngineId(f"e{number}"), capability=capability)
        for number in range(1, count + 1)
    ]


def _made(offer: Offer) -> list[Arrival]:
    if offer.workload in _WINDOWED:
        return _windowed(offer)
    if offer.workload == _STEADY_CODING:
        return _steady_coding(offer)
    if offer.workload == _STEADY_MIXED:
        return _steady_mixed(offer)
    return _coding(offer) if offer.workload in _CODING else _mixed(offer)


# Traces: a window at a pace.


def _windowed(offer: Offer) -> list[Arrival]:
    rng = Random(offer.seed)  # noqa: S311
    pace = _pace(offer)
    taken = _lapped(rng, offer, int(offer.seconds * pace * NS_PER_S))
    if EMBEDDING_MODEL in WORKLOADS[offer.workload].models:
        taken += _embeddings(rng, offer, pace)
    return [msgspec.structs.replace(one, at_ns=int(one.at_ns / pace)) for one in taken]


def _pace(offer: Offer) -> float:
    return offer.scale * offer.engines / BASE_ENGINES


def _lapped(rng: Random, offer: Offer, window_ns: int) -> list[Arrival]:
    """So much of the trace from a drawn batch on, as often round as it takes; times count from that batch."""
    whole = _trace_of(offer)
    lap_ns = _lap_ns(whole)
    room = lap_ns - window_ns if window_ns < lap_ns else lap_ns - BATCH_NS
    begin_ns = rng.randint(0, max(0, room) // BATCH_NS) * BATCH_NS - BATCH_NS // 2  # Between batches.
    first = bisect_left(whole, begin_ns, key=_at_ns)
    taken: list[Arrival] = []
    for turn in range(window_ns // lap_ns + 2):
        for one in _shuffled(rng, whole[first:] if turn == 0 else whole):
            at_ns = one.at_ns + turn * lap_ns - max(0, begin_ns)
            if at_ns < window_ns:
                taken.append(_of_lap(one, turn, at_ns))
    return taken


def _shuffled(rng: Random, batch: Sequence[Arrival]) -> list[Arrival]:
    """In a drawn order within each moment."""
    return sorted(batch, key=lambda one: (one.at_ns, rng.random()))


def _of_lap(one: Arrival, turn: int, at_ns: int) -> Arrival:
    if not turn:
        return msgspec.structs.replace(one, at_ns=at_ns)
    prefix = tuple(key + turn * LAP_IDS for key in one.prefix)
    return msgspec.structs.replace(one, at_ns=at_ns, prefix=prefix, request_id=f"{one.request_id}.{turn}")


def _lap_ns(whole: Sequence[Arrival]) -> int:
    """From one begin of the trace to the next: its length, up to the batch that would come then."""
    return (whole[-1].at_ns // BATCH_NS + 1) * BATCH_NS


def _laps(offer: Offer) -> int:
    """How often a trace is gone through in part; 1 for what is no window of a trace."""
    if offer.workload not in _WINDOWED:
        return 1
    lap_ns = _lap_ns(_trace_of(offer))
    return -(-int(offer.seconds * _pace(offer) * NS_PER_S) // lap_ns)


def _embeddings(rng: Random, offer: Offer, pace: float) -> list[Arrival]:
    """Waves of embedding jobs, as many a second and engine as in `mixed` at scale 1, in the trace's own time."""
    seconds = int(offer.seconds * pace)
    shape = grown(Mixed(), seconds, BASE_ENGINES / MIXED_ENGINES)
    return [
        msgspec.structs.replace(one, request_id=f"v{number}")
        for number, one in enumerate(waves(rng, shape, seconds * 1_000))
    ]


def _trace_of(offer: Offer) -> list[Arrival]:
    return _trace(offer.workload, offer.trace)


@cache
def _trace(workload: str, trace: str) -> list[Arrival]:
    if trace:
        return read_mooncake(Path(trace))
    return mixed(0, DRAWN_SYNTHETIC if workload == "synthetic" else DRAWN_CONVERSATION)


# Sessions.


def _mixed(offer: Offer) -> list[Arrival]:
    shape = grown(Mixed(), offer.seconds, offer.scale * offer.engines / MIXED_ENGINES)
    waves_drawn = round(shape.waves * WORKLOADS[offer.workload].embedding)
    return mixed(offer.seed, msgspec.structs.replace(shape, waves=waves_drawn))


def _steady_mixed(offer: Offer) -> list[Arrival]:
    """As many sessions and jobs a second as `mixed` has; what came before the window was served then."""
    before_ns, per_wave = STEADY_BEFORE_S * NS_PER_S, Mixed().wave_requests
    shape = grown(Mixed(), offer.seconds + STEADY_BEFORE_S, offer.scale * offer.engines / MIXED_ENGINES)
    even = msgspec.structs.replace(
        shape, is_even=True, bursts=0, waves=shape.waves * per_wave, wave_requests=1, wave_ms=1
    )
    made = [one for one in mixed(offer.seed, even) if one.at_ns >= before_ns]
    return [msgspec.structs.replace(one, at_ns=one.at_ns - before_ns) for one in made]


def _steady_coding(offer: Offer) -> list[Arrival]:
    slots = max(1, round(offer.scale * offer.engines * STEADY_SESSIONS))
    return in_slots(_long_sessions(offer.trace), seed=offer.seed, seconds=offer.seconds, slots=slots)


@cache
def _long_sessions(trace: str) -> list[Session]:
    long = (steady(one, prompt_tokens_min=STEADY_PROMPT_TOKENS_MIN) for one in _sessions(trace))
    return [session for session in long if session]


def _coding(offer: Offer) -> list[Arrival]:
    return started(_sessions(offer.trace), seed=offer.seed, seconds=offer.seconds, count=_sessions_begun(offer))


def _sessions_begun(offer: Offer) -> int:
    return max(1, round(offer.scale * offer.engines * offer.seconds * CODING_SESSIONS_PER_S))


@cache
def _sessions(trace: str) -> list[Session]:
    if not trace:
        return _chained(mixed(0, DRAWN_CODING))
    return weka_trace(Path(trace), context_tokens_max=CONTEXT_TOKENS_MAX, unit_tokens=CODING_UNIT_TOKENS).sessions


def _chained(arrived: Sequence[Arrival]) -> list[Session]:
    """Generated sessions as turns that wait for each other, thinking for what lay between them less the answer."""
    by_session: dict[str, list[Arrival]] = {}
    for one in arrived:
        if one.kind is RequestKind.LLM and one.prompt_tokens + one.output_tokens <= CONTEXT_TOKENS_MAX:
            by_session.setdefault(one.session, []).append(one)
    return [_turns(turns) for turns in by_session.values()]


def _turns(turns: Sequence[Arrival]) -> Session:
    answer_ns = Mixed().answer_ms_per_token * (NS_PER_S // 1_000)
    begin_ns, made = turns[0].at_ns, list[Arrival]()
    for number, one in enumerate(turns):
        before = turns[number - 1] if number else None
        think_ns = one.at_ns - before.at_ns - before.output_tokens * answer_ns if before is not None else 0
        made.append(
            msgspec.structs.replace(
                one, at_ns=one.at_ns - begin_ns, after=before.request_id if before is not None else "",
                think_ns=max(0, think_ns),
            )
        )  # fmt: skip
    return tuple(made)


def _at_ns(arrival: Arrival) -> int:
    return arrival.at_ns
