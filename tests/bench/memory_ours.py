"""The prefix cache with a million slices, as a peer of others (peer.py): what a look-up, an insert and a slice take.

Prompts of 8K tokens are 32 slices of 256; names that are asked for are strings of their own, as they come from a
request, not those that the cache keeps, and prompts are asked for in no order. Times are CPU time: nothing waits here.
"""

import time
from collections.abc import Callable
from random import Random
from statistics import median

from events.base import SliceId
from kvstore.fingerprint import fingerprints
from kvstore.prefix_cache import PrefixCache
from tests.bench.peer_side import answer, resident_bytes, spoken

SLICES = 1 << 20
PROMPT_SLICES = 32
PROMPTS = range(SLICES // PROMPT_SLICES)
INSERT_SLICES = 512
LOOKUPS = 4_000
INSERTS = 40
NAMINGS = 100
TOKENS = [number * 7_919 % 128_000 for number in range(8_192)]


def names(prompt: int, count: int = PROMPT_SLICES) -> list[SliceId]:
    return [SliceId(f"{prompt:016x}{place:016x}") for place in range(count)]


def filled(room: int) -> PrefixCache[int]:
    cache: PrefixCache[int] = PrefixCache(max_cached_blocks=room)
    for prompt in PROMPTS:
        first = prompt * PROMPT_SLICES
        cache.insert(names(prompt), lambda start, stop, first=first: range(first + start, first + stop))
    return cache


def timed(ask: Callable[[list[SliceId]], object], asked: list[list[SliceId]]) -> float:
    """Microseconds each."""
    start = time.thread_time()
    for slices in asked:
        ask(slices)
    return (time.thread_time() - start) / len(asked) * 1e6


def main() -> None:
    answers = spoken()
    before = resident_bytes()
    cache = filled(SLICES + INSERT_SLICES)
    bytes_per_slice = (resident_bytes() - before) / SLICES
    full = filled(SLICES)
    random, fresh = Random(7), len(PROMPTS)

    def prompts() -> list[list[SliceId]]:
        return [names(random.choice(PROMPTS)) for _ in range(LOOKUPS)]

    def one_round() -> dict[str, float]:
        nonlocal fresh
        named_us = timed(lambda _: fingerprints(TOKENS, key=b"bench"), [[]] * NAMINGS)
        looked = {
            "names_us": named_us,
            "lookup_us": timed(cache.longest_prefix, prompts()),
            "used_us": timed(cache.lookup, prompts()),
        }
        waits: dict[str, list[float]] = {"insert_us": [], "insert_prompt_us": [], "insert_full_us": []}
        for _ in range(INSERTS):
            fresh += 1
            for figure, count in (("insert_prompt_us", PROMPT_SLICES), ("insert_us", INSERT_SLICES)):
                waits[figure].append(timed(lambda slices: cache.insert(slices, range), [names(fresh, count)]))
                cache.invalidate(names(fresh, 1)[0])
            waits["insert_full_us"].append(
                timed(lambda slices: full.insert(slices, range), [names(fresh, INSERT_SLICES)])
            )
        return looked | {figure: median(values) for figure, values in waits.items()} | {"bytes": bytes_per_slice}

    answer(answers, one_round)


if __name__ == "__main__":
    main()
