"""Quantities over time, from a log: what a report draws.

One point per step of some seconds, at the step's end, counted from the log's first record. Pool quantities: the SLO
attainment of those who arrived in the step, where the prompt tokens of those whose answers began in it came from, what
engines computed, and who waits. Engine quantities: occupancy, and how much of its share of the memory each kind uses.
"""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from events import codec
from events.base import NS_PER_S, PPM, RequestKind
from events.log.base import Message
from replay.gauges import DEVICE, DRAM, PEER, SSD, TIERS, Share, Step
from replay.score import Scorer

EVERY_S = 10
PPM_UNIT, TOKENS_UNIT, REQUESTS_UNIT = "ppm", "tokens/s", "requests"


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity over time: `unit` is ppm, tokens/s, requests..., `engine` "" = the whole pool."""

    name: str
    unit: str
    engine: str = ""
    at_s: tuple[float, ...] = ()
    values: tuple[float, ...] = ()


def series(messages: Iterable[Message], *, every_s: int = EVERY_S) -> tuple[Series, ...]:
    """What a log has of each quantity; one that it knows nothing of is left out, and so are steps without it."""
    scorer = Scorer(step_ns=every_s * NS_PER_S)
    for message in messages:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            scorer.take(recorded)
    return tuple(one for one in _all(scorer) if one.values)


def _all(scorer: Scorer) -> Iterator[Series]:
    every_ns, steps = scorer.gauges.every_ns, scorer.gauges.steps

    def drawn(name: str, unit: str, values: dict[int, float], engine: str = "") -> Series:
        numbers = sorted(values)
        return Series(
            name=name, unit=unit, engine=engine,
            at_s=tuple(((number + 1) * every_ns - scorer.begun_ns) / NS_PER_S for number in numbers),
            values=tuple(values[number] for number in numbers),
        )  # fmt: skip

    yield drawn("slo_attainment", PPM_UNIT, _attainment(scorer))
    tokens = {number: step.tokens * NS_PER_S / every_ns for number, step in steps.items() if step.engines}
    yield drawn("throughput", TOKENS_UNIT, tokens)
    for tier, shares in _hit_shares(scorer).items():
        yield drawn(f"hit_share_{tier}", PPM_UNIT, shares)
    yield drawn("waiting", REQUESTS_UNIT, _waiting(scorer))
    for name, value in _OF_ENGINES.items():
        for engine in dict.fromkeys(engine for step in steps.values() for engine in step.engines):
            of = {number: step.engines[engine] for number, step in steps.items() if engine in step.engines}
            found = {number: value(share) for number, share in of.items()}
            yield drawn(name, PPM_UNIT, {n: v for n, v in found.items() if v is not None}, engine)


_OF_ENGINES: dict[str, Callable[[Share], float | None]] = {
    "occupancy": lambda share: share.used / share.samples,
    "llm_quota_utilisation": lambda share: share.llm_part / share.divided if share.divided else None,
    "embedding_quota_utilisation": lambda share: share.embedding_part / share.divided if share.divided else None,
}


def _attainment(scorer: Scorer) -> dict[int, float]:
    counted: dict[int, tuple[int, int]] = {}
    for one in scorer.lives:
        number = scorer.gauges.number(one.arrived_ns)
        met, of = counted.get(number, (0, 0))
        counted[number] = (met + one.met(), of + 1)
    return {number: met * PPM / of for number, (met, of) in counted.items()}


def _hit_shares(scorer: Scorer) -> dict[str, dict[int, float]]:
    """By tier: the part of the prompt tokens (of answers, not of embeddings) that were served from there."""
    prompts: dict[int, int] = {}
    cached: dict[int, int] = {}
    for one in scorer.lives:
        if one.finished is not None and one.arrived.kind is RequestKind.LLM:
            # An answer in one piece shows its first token to nobody.
            number = scorer.gauges.number(one.first_ns or one.over_ns)
            prompts[number] = prompts.get(number, 0) + one.finished.prompt_tokens
            cached[number] = cached.get(number, 0) + one.finished.cached_tokens
    shares: dict[str, dict[int, float]] = {tier: {} for tier in TIERS}
    for number, tokens in prompts.items():
        step = scorer.gauges.steps.get(number) or Step()
        amounts = {tier: step.hits.get(tier, 0) * scorer.slice_tokens for tier in (DRAM, SSD, PEER)}
        amounts[DEVICE] = max(0, cached[number] - sum(amounts.values()))
        for tier, amount in amounts.items():
            # A slice is reported when it is used, its request's tokens when the answer begins: a step later at times.
            shares[tier][number] = min(1.0, amount / max(1, tokens)) * PPM
    return {tier: found for tier, found in shares.items() if any(found.values())}


def _waiting(scorer: Scorer) -> dict[int, float]:
    """Who waits at the engines, as the step's mean, and who is held before them at its end."""
    steps, number_of = scorer.gauges.steps, scorer.gauges.number
    changes: dict[int, int] = {}
    for one in scorer.lives:
        begun = number_of(one.arrived_ns)
        changes[begun] = changes.get(begun, 0) + 1
        if one.admitted_ns or one.over_ns:
            ended = number_of(one.admitted_ns or one.over_ns)
            changes[ended] = changes.get(ended, 0) - 1
    held, waiting = 0, dict[int, float]()
    for number in sorted({*steps, *changes}):
        held += changes.get(number, 0)
        step = steps.get(number)
        if step is not None and step.engines:
            waiting[number] = held + sum(share.waiting / share.samples for share in step.engines.values())
    return waiting
