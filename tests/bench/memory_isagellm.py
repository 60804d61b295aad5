"""The prefix cache of the PyPI package isagellm-kv-cache with a million blocks of 16 tokens, as a peer (see peer.py).

An 8K prompt is 512 blocks there; the hashes that are asked for are made up, since their making is measured apart. It
has no limit here: with one, its order of eviction is a list that is searched, and an insert into 16K blocks takes
180 ms.
"""

import time
from random import Random
from statistics import median
from uuid import uuid4

from sagellm_kv_cache import PrefixCache

from tests.bench.peer_side import answer, resident_bytes, spoken

BLOCKS = 1 << 20
PROMPT_BLOCKS = 512
LOOKUPS = 40
INSERTS = 20
BLOCK_TOKENS = 16


def hashes(prompt: int) -> list[bytes]:
    return [prompt.to_bytes(16, "big") + place.to_bytes(16, "big") for place in range(PROMPT_BLOCKS)]


def insert(cache: PrefixCache, prompt: int) -> float:
    """Microseconds of inserting a new prompt."""
    names, handle = hashes(prompt), uuid4()
    blocks = [{"handle_id": handle, "block": place} for place in range(PROMPT_BLOCKS)]
    start = time.thread_time()
    cache.insert(names, blocks)
    return (time.thread_time() - start) * 1e6


def look_up(cache: PrefixCache, prompt: int) -> float:
    """Microseconds of looking up a cached prompt."""
    names = hashes(prompt)
    start = time.thread_time()
    _, tokens = cache.lookup(names)
    took = time.thread_time() - start
    assert tokens == PROMPT_BLOCKS * BLOCK_TOKENS, "all of it is there"
    return took * 1e6


def name(cache: PrefixCache) -> float:
    """Microseconds of hashing the blocks of a prompt."""
    tokens = list(range(PROMPT_BLOCKS * BLOCK_TOKENS))
    start = time.thread_time()
    found = cache.compute_block_hashes(tokens)
    took = time.thread_time() - start
    assert len(found) == PROMPT_BLOCKS, "every block has one"
    return took * 1e6


def main() -> None:
    answers = spoken()
    before = resident_bytes()
    cache = PrefixCache(block_size=BLOCK_TOKENS, max_cached_blocks=None)
    newest = BLOCKS // PROMPT_BLOCKS
    for prompt in range(newest):
        insert(cache, prompt)
    bytes_per_block = (resident_bytes() - before) / BLOCKS
    random = Random(7)

    def one_round() -> dict[str, float]:
        nonlocal newest
        lookup_us = median(look_up(cache, random.randrange(newest)) for _ in range(LOOKUPS))
        insert_us = median(insert(cache, newest + number) for number in range(INSERTS))
        newest += INSERTS
        names_us = median(name(cache) for _ in range(LOOKUPS))
        return {"names_us": names_us, "lookup_us": lookup_us, "insert_us": insert_us, "bytes": bytes_per_block}

    answer(answers, one_round)


if __name__ == "__main__":
    main()
