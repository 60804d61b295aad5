"""A mixed LLM and embedding workload under memory pressure: what the demo and the comparisons run on.

Three tenants with a system prompt each. A session opens with a document and grows: every turn's prompt is the one
before, its answer, and something new, so turns share prefixes with each other and sessions with their tenant. Answers
have a long tail. Some sessions come in bursts, and embedding requests in waves. Everything is drawn from integers by
one seed, so a workload is the same on every machine.

No public trace holds embedding requests: their part is generated from nothing but these parameters.
"""

from collections.abc import Iterator
from random import Random

import msgspec

from events.base import NS_PER_MS, RequestKind
from events.engine import EngineRegistered
from replay.costmodel import PROFILE_DEFAULT, registered
from replay.workloads.base import Arrival

LLM_MODEL = "llama-3-8b"
EMBEDDING_MODEL = "e5-mistral-7b"
UNIT_TOKENS = 256
IDS_PER_CHAIN = 10_000
ENGINES = 2
ENGINE_KV_TOKENS = 98_304
"""What the defaults are meant for: two engines of this size each run out of KV now and then (12 GiB of Llama-3-8B's,
less than a quarter of what an H100 has left)."""

Spread = tuple[tuple[int, int, int], ...]
"""Weighted ranges: (weight, least, most). A draw picks a range by weight, then evenly from it."""


class Mixed(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters. Times of day are drawn evenly over `seconds`; `bursts` x `burst_sessions` of the sessions begin
    within `burst_ms` of each other instead. With `is_even` one session and one wave begins in each of as many equal
    parts of the time, `bursts` apart: nothing but that makes the rate constant."""

    seconds: int = 120
    is_even: bool = False
    tenants: tuple[str, ...] = ("chat", "search", "agents")
    tenant_weights: tuple[int, ...] = (5, 3, 2)
    system_units: tuple[int, ...] = (4, 8, 24)
    sessions: int = 220
    bursts: int = 4
    burst_sessions: int = 14
    burst_ms: int = 1_500
    turns: Spread = ((4, 1, 2), (4, 2, 4), (2, 4, 7))
    document_tokens: Spread = ((6, 200, 1_500), (3, 1_500, 6_000), (1, 6_000, 16_000))
    message_tokens: Spread = ((8, 20, 300), (2, 300, 2_500))
    answer_tokens: Spread = ((9, 40, 300), (8, 300, 900), (3, 1_200, 3_500))
    think_ms: Spread = ((1, 2_000, 6_000), (1, 6_000, 20_000))
    answer_ms_per_token: int = 25
    tokens_max: int = 4_096
    waves: int = 5
    wave_requests: int = 16
    wave_ms: int = 1_200
    wave_inputs: Spread = ((1, 8, 32),)
    input_tokens: Spread = ((1, 64, 512),)


MIXED_DEFAULT = Mixed()


def mixed(seed: int, shape: Mixed = MIXED_DEFAULT) -> list[Arrival]:
    """The workload of a seed, in order of time, numbered in that order."""
    rng = Random(seed)  # noqa: S311
    span_ms = shape.seconds * 1_000
    starts_ms = _session_starts(rng, shape, span_ms)
    drawn: list[Arrival] = []
    for number, start_ms in enumerate(starts_ms):
        drawn += _session(rng, shape, number, start_ms, span_ms)
    drawn += waves(rng, shape, span_ms)
    drawn.sort(key=lambda arrival: (arrival.at_ns, arrival.session, arrival.prompt_tokens))
    return [msgspec.structs.replace(arrival, request_id=f"m{number}") for number, arrival in enumerate(drawn)]


def _session_starts(rng: Random, shape: Mixed, span_ms: int) -> list[int]:
    bursting = shape.bursts * shape.burst_sessions
    starts = list(_moments(rng, shape, span_ms, max(0, shape.sessions - bursting)))
    for _ in range(shape.bursts):
        burst_ms = rng.randrange(span_ms)
        starts += [burst_ms + rng.randrange(shape.burst_ms) for _ in range(shape.burst_sessions)]
    return starts


def _session(rng: Random, shape: Mixed, number: int, start_ms: int, span_ms: int) -> list[Arrival]:
    """The turns of one session that begin within the span."""
    tenant = rng.choices(range(len(shape.tenants)), shape.tenant_weights)[0]
    system_units = shape.system_units[tenant]
    prompt = system_units * UNIT_TOKENS + _draw(rng, shape.document_tokens)
    at_ms, turns = start_ms, list[Arrival]()
    for _ in range(_draw(rng, shape.turns)):
        prompt += _draw(rng, shape.message_tokens)
        answer = _draw(rng, shape.answer_tokens)
        if at_ms >= span_ms:
            break
        turns.append(
            Arrival(
                at_ns=at_ms * NS_PER_MS,
                request_id="",
                tenant=shape.tenants[tenant],
                model=LLM_MODEL,
                prompt_tokens=prompt,
                output_tokens=answer,
                tokens_max=shape.tokens_max,
                prefix=_chain(tenant, system_units, len(shape.tenants) + number, prompt // UNIT_TOKENS),
                prefix_tokens=UNIT_TOKENS,
                session=f"s{number}",
            )
        )
        prompt += answer
        at_ms += answer * shape.answer_ms_per_token + _draw(rng, shape.think_ms)
    return turns


def waves(rng: Random, shape: Mixed, span_ms: int) -> list[Arrival]:
    """The embedding waves alone, in no order and without names."""
    out: list[Arrival] = []
    for wave, wave_ms in enumerate(_moments(rng, shape, span_ms, shape.waves)):
        tenant = shape.tenants[wave % len(shape.tenants)]
        for _ in range(shape.wave_requests):
            inputs = _draw(rng, shape.wave_inputs)
            out.append(
                Arrival(
                    at_ns=(wave_ms + rng.randrange(shape.wave_ms)) * NS_PER_MS,
                    request_id="",
                    kind=RequestKind.EMBEDDING,
                    tenant=tenant,
                    model=EMBEDDING_MODEL,
                    prompt_tokens=inputs * _draw(rng, shape.input_tokens),
                    output_tokens=0,
                    prefix_tokens=UNIT_TOKENS,
                    inputs=inputs,
                )
            )
    return out


def _moments(rng: Random, shape: Mixed, span_ms: int, count: int) -> Iterator[int]:
    """Each is drawn when it is asked for."""
    for number in range(count):
        moment_ms = rng.randrange(span_ms)
        yield (number * span_ms + moment_ms) // count if shape.is_even else moment_ms


def _chain(tenant: int, system_units: int, own: int, units: int) -> tuple[int, ...]:
    """Ids of a prompt's full units: the tenant's system prompt, then the session's own."""
    return tuple((tenant if index < system_units else own) * IDS_PER_CHAIN + index for index in range(units))


def _draw(rng: Random, spread: Spread) -> int:
    _, least, most = rng.choices(spread, [weight for weight, _, _ in spread])[0]
    return rng.randint(least, most)


def engines(profile: str = PROFILE_DEFAULT) -> tuple[EngineRegistered, ...]:
    """The engines that the defaults are meant for; each serves both models."""
    return tuple(
        registered(f"e{number}", (LLM_MODEL, EMBEDDING_MODEL), profile=profile, kv_tokens=ENGINE_KV_TOKENS)
        for number in range(1, ENGINES + 1)
    )
