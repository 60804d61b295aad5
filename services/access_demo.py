"""A log to try the tools for slices on: one engine with three tiers, asked by sessions that share system prompts.

A few sessions are asked often and most seldom (Zipf), and which are the popular ones changes a few times, so that a
heatmap has something to show. Slices fall from tier to tier, the one used longest ago first. All of it is made up, and
the same for the same seed.
"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

import msgspec

from events import codec, subjects
from events.base import NS_PER_S, EngineId, Event, PoolId, SliceId
from events.control import Ticked
from events.log.base import Message
from events.slice import SlicesHit, SlicesRemoved, SlicesStored, Tier, TierMeasured
from kvstore.fingerprint import fingerprints

POOL: Final = PoolId("demo")
ENGINE: Final = EngineId("e1")
SLICE_BYTES: Final = 32 * 2**20
"""256 tokens of an 8B model: 32 layers, 8 KV heads of 128, 2 bytes."""
SLOTS: Final = {Tier.HBM: 48, Tier.DRAM: 192, Tier.SSD: 768}
SESSIONS: Final = 240
SYSTEM_PROMPTS: Final = 4
SYSTEM_SLICES, TURN_SLICES_MAX = 2, 12
PHASES: Final = 4
"""How often other sessions become the popular ones."""
ACCESSES_PER_S: Final = 50
ACCESSES_MAX: Final = 5_000_000


class _Cache:
    """The tiers of the engine; `facts` are what its agent would say, and are taken away by whoever reads them."""

    def __init__(self) -> None:
        self.tiers: dict[Tier, OrderedDict[SliceId, None]] = {tier: OrderedDict() for tier in Tier}
        self.facts: list[Event] = []
        self.hits = dict.fromkeys(Tier, 0)
        self.evictions = dict.fromkeys(Tier, 0)
        self.misses = 0

    def use(self, slice_id: SliceId) -> None:
        """A request begins with it."""
        found = next((tier for tier in Tier if slice_id in self.tiers[tier]), None)
        if found is None:
            self.misses += 1
        else:
            self.hits[found] += 1
            self.tiers[found].move_to_end(slice_id)
            self.facts.append(SlicesHit(engine_id=ENGINE, tier=found, slices=(slice_id,)))
        self._put(slice_id, Tier.HBM)

    def measured(self) -> list[Event]:
        """Its tiers, as they are now."""
        return [
            TierMeasured(
                engine_id=ENGINE, tier=tier, bytes_max=SLOTS[tier] * SLICE_BYTES, slice_bytes=SLICE_BYTES,
                bytes_used=len(held) * SLICE_BYTES, hits_total=self.hits[tier], misses_total=self.misses,
                evictions_total=self.evictions[tier],
            )
            for tier, held in self.tiers.items()
        ]  # fmt: skip

    def _put(self, slice_id: SliceId, tier: Tier) -> None:
        held = self.tiers[tier]
        if slice_id in held:
            held.move_to_end(slice_id)
            return
        held[slice_id] = None
        self.facts.append(SlicesStored(engine_id=ENGINE, tier=tier, slices=(slice_id,), slice_bytes=SLICE_BYTES))
        if len(held) > SLOTS[tier]:
            victim, _ = held.popitem(last=False)
            self.evictions[tier] += 1
            if tier is not Tier.SSD:
                self._put(victim, Tier.DRAM if tier is Tier.HBM else Tier.SSD)
            self.facts.append(SlicesRemoved(engine_id=ENGINE, tier=tier, slices=(victim,)))


def messages(accesses: int, *, seed: int) -> Iterator[Message]:
    """A log of about so many accesses of slices (the last request is whole)."""
    chance, cache, seq = random.Random(seed), _Cache(), 0  # noqa: S311
    prompts = [_prompt(number) for number in range(SESSIONS)]
    weights = list(accumulate(1 / rank for rank in range(1, SESSIONS + 1)))
    popular = chance.sample(range(SESSIONS), SESSIONS)
    used = second = phase = 0
    while used < accesses:
        if phase < used * PHASES // accesses:
            phase += 1
            popular = chance.sample(range(SESSIONS), SESSIONS)
        prompt = prompts[chance.choices(popular, cum_weights=weights)[0]]
        for slice_id in prompt[: chance.randint(SYSTEM_SLICES, len(prompt))]:
            cache.use(slice_id)
            used += 1
        facts, cache.facts = cache.facts, []
        at_ns = used * NS_PER_S // ACCESSES_PER_S
        if at_ns // NS_PER_S > second:
            second = at_ns // NS_PER_S
            seq += 1
            yield _message(seq, "clock", second * NS_PER_S, [Ticked(n=second)])
            facts += cache.measured()
        seq += 1
        yield _message(seq, "agent", at_ns, facts)


def _prompt(number: int) -> tuple[SliceId, ...]:
    """A session's slices: those of its system prompt, then its own."""
    system = number % SYSTEM_PROMPTS
    slices = SYSTEM_SLICES + 1 + number % (TURN_SLICES_MAX - SYSTEM_SLICES)
    tokens = [system] * SYSTEM_SLICES + [SYSTEM_PROMPTS + number] * (slices - SYSTEM_SLICES)
    return fingerprints(tokens, key=b"demo", slice_tokens=1)


def _message(seq: int, source: str, ts_ns: int, facts: list[Event]) -> Message:
    said = [codec.Said(event=fact) for fact in facts]
    body = codec.encode(owner="demo", ts_ns=ts_ns, said=said)
    return Message(seq, subjects.fact(POOL, source, codec.kind_of(said)), body, {})


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What a demo left: the journal, and the picture of it."""

    journal: str
    picture: str
    messages: int
    seed: int
