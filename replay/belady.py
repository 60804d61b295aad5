"""How much of a workload's prompts a prefix cache of a given size could have had at best, and how much each kind has.

The bound is Belady's (1966): of all cached slices the one that is needed again furthest in the future is evicted. A
slice is never needed later than those under it, so that takes children before their parents by itself; of equals the
one furthest from the beginning goes. It sees the future, need not keep what is never needed again, and holds nothing
for requests that run: no engine reaches it, whatever it evicts. Where slices differ in size it is no exact bound.

An id in `Arrival.prefix` stands for all that comes before it too, as fingerprints and the traces' ids do.
Requests are taken one by one, in order of arrival, each done before the next: engines, steps and queues play no part.
For a log: `ideal_hits(arrivals_of(messages), ...)`, with `replay.workloads.facts.arrivals_of`.
"""

from collections.abc import Hashable, Sequence
from heapq import heappop, heappush

import msgspec

from events.base import PPM, EngineId, RequestKind
from events.decisions import EngineDirected
from policies.memory.kinds import EvictionKind
from replay.engines.prefix_cache import HORIZON_NS, PrefixCache
from replay.workloads.base import Arrival

COST_NS_PER_TOKEN = 20_000
PAIRS_PER_NS = 1_024
"""What a slice costs to compute where no engine says it: about what Llama 8B on an H100 takes."""


UNLIMITED_BYTES = 1 << 62
"""More than any workload has."""


class Hits(msgspec.Struct, frozen=True, kw_only=True):
    """Of `prompt_tokens` tokens in all, `hit_tokens` were cached when they were asked for."""

    prompt_tokens: int
    hit_tokens: int

    @property
    def share_ppm(self) -> int:
        """The hit rate, in parts per million."""
        return self.hit_tokens * PPM // self.prompt_tokens if self.prompt_tokens else 0


def ideal_hits(arrivals: Sequence[Arrival], *, capacity_bytes: int, token_bytes: int) -> Hits:
    """The most that a prefix cache of `capacity_bytes` could have had of these LLM prompts."""
    asked = _llm(arrivals)
    next_use = _next_uses(asked)
    cached: dict[Hashable, tuple[int, int]] = {}
    furthest: list[tuple[int, int, int, Hashable]] = []
    held = hit_tokens = serial = 0
    for turn, arrival in enumerate(asked):
        size, chain = arrival.prefix_tokens * token_bytes, _chain(arrival)
        hit_tokens += _hit_tokens(arrival, _leading(chain, cached))
        for depth, key in enumerate(chain):
            again = next_use[turn][depth]
            before = cached.pop(key, None)
            held -= before[1] if before is not None else 0
            if again < len(asked):
                serial += 1
                cached[key] = (serial, size)
                held += size
                heappush(furthest, (-again, -depth, serial, key))
        while held > capacity_bytes:
            _, _, number, gone = heappop(furthest)
            if cached.get(gone, (0, 0))[0] == number:
                held -= cached.pop(gone)[1]
    return Hits(prompt_tokens=sum(arrival.prompt_tokens for arrival in asked), hit_tokens=hit_tokens)


def ideal_share(arrivals: Sequence[Arrival]) -> float:
    """Which share of all LLM prompt tokens an unlimited cache, shared by all engines, would have had."""
    hits = ideal_hits(arrivals, capacity_bytes=UNLIMITED_BYTES, token_bytes=1)
    return hits.hit_tokens / max(1, hits.prompt_tokens)


def kind_hits(
    arrivals: Sequence[Arrival], kind: EvictionKind, *, capacity_bytes: int, token_bytes: int,
    horizon_ns: int = HORIZON_NS,
) -> Hits:  # fmt: skip
    """What a prefix cache of `capacity_bytes` that evicts by this kind has of these LLM prompts. A prompt is held while
    it is taken in; what does not fit then is not cached."""
    asked = _llm(arrivals)
    cache = PrefixCache(_cost_ns)
    cache.direct(
        EngineDirected(engine_id=EngineId("cache"), version=1, eviction=kind, protect_ppm=0, horizon_ns=horizon_ns)
    )
    tokens_max = capacity_bytes // token_bytes
    hit_tokens = 0
    for arrival in asked:
        cache.now_ns = arrival.at_ns
        size, chain = arrival.prefix_tokens, _chain(arrival)
        units = cache.match(size, chain)
        hit_tokens += _hit_tokens(arrival, len(units))
        cache.hold(units)
        for key in chain[len(units) :]:
            short = cache.blocks + size - tokens_max
            if short > cache.evictable:
                break
            if short > 0:
                cache.evict(short)
            unit, _ = cache.add(units[-1] if units else cache.root(size), key)
            units.append(unit)
        cache.release(units)
    return Hits(prompt_tokens=sum(arrival.prompt_tokens for arrival in asked), hit_tokens=hit_tokens)


def unique_bytes(arrivals: Sequence[Arrival], *, token_bytes: int) -> int:
    """What all full slices of these LLM prompts would take, each once: a cache of this size evicts nothing."""
    sizes = {(arrival.prefix_tokens, key): None for arrival in _llm(arrivals) for key in _chain(arrival)}
    return sum(size for size, _ in sizes) * token_bytes


def _llm(arrivals: Sequence[Arrival]) -> list[Arrival]:
    return sorted((one for one in arrivals if one.kind is RequestKind.LLM), key=lambda one: one.at_ns)


def _chain(arrival: Arrival) -> tuple[int, ...]:
    """Its full slices."""
    return arrival.prefix[: arrival.prompt_tokens // arrival.prefix_tokens]


def _leading(chain: Sequence[Hashable], cached: dict[Hashable, tuple[int, int]]) -> int:
    return next((depth for depth, key in enumerate(chain) if key not in cached), len(chain))


def _hit_tokens(arrival: Arrival, units: int) -> int:
    """Tokens that need not be computed; at least the last one is."""
    return min(units, (arrival.prompt_tokens - 1) // arrival.prefix_tokens) * arrival.prefix_tokens


def _next_uses(asked: Sequence[Arrival]) -> list[list[int]]:
    """For every slice of every prompt the turn that needs it next; as many as there are turns if none does."""
    seen: dict[Hashable, int] = {}
    found: list[list[int]] = []
    for turn in range(len(asked) - 1, -1, -1):
        chain = _chain(asked[turn])
        found.append([seen.get(key, len(asked)) for key in chain])
        seen.update(dict.fromkeys(chain, turn))
    found.reverse()
    return found


def _cost_ns(tokens: int, depth: int) -> int:
    pairs = tokens * tokens * (2 * depth + 1) // 2
    return tokens * COST_NS_PER_TOKEN + pairs // PAIRS_PER_NS
