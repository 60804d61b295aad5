"""vLLM's own block pool with a million blocks of 16 tokens, as a peer (see peer.py). Runs in the engine's environment.

Asked is what its scheduler asks for every new request: `get_computed_blocks` of an 8K prompt, whose hashes are there
already (ours are, too), then room for 512 new blocks while all are cached, so that others must give way.
"""

import os
import time
from random import Random
from statistics import median

from tests.bench.peer_side import answer, resident_bytes, spoken

SPOKEN = spoken()
os.environ.update(VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")

import torch  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.utils.hashing import get_hash_fn_by_name  # noqa: E402
from vllm.v1.core.kv_cache_manager import KVCacheManager  # noqa: E402
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec  # noqa: E402
from vllm.v1.request import Request  # noqa: E402

BLOCKS = 1 << 20
BLOCK_TOKENS = 16
PROMPT_TOKENS = 8_192
PROMPTS = BLOCKS * BLOCK_TOKENS // PROMPT_TOKENS
LOOKUPS = 40
INSERTS = 20


class Pool:
    """A manager and the way to make requests of it."""

    def __init__(self) -> None:
        hash_function = get_hash_fn_by_name("sha256")
        init_none_hash(hash_function)
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, hash_function)
        self._sampling = SamplingParams(max_tokens=1)
        self._made = 0
        spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
        config = KVCacheConfig(
            num_blocks=BLOCKS + 1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        )
        self.manager = KVCacheManager(
            config, max_model_len=PROMPT_TOKENS * 2, scheduler_block_size=BLOCK_TOKENS, hash_block_size=BLOCK_TOKENS
        )

    def request(self, prompt: int) -> Request:
        """Prompt number so many, asked anew."""
        self._made += 1
        tokens = [prompt, *range(1, PROMPT_TOKENS)]
        return Request(f"r{self._made}", tokens, self._sampling, None, block_hasher=self._hasher)

    def name(self) -> float:
        """Microseconds of hashing the blocks of a prompt, as its arrival does."""
        unnamed = Request("unnamed", list(range(PROMPT_TOKENS)), self._sampling, None)
        start = time.thread_time()
        hashes = self._hasher(unnamed)
        took = time.thread_time() - start
        assert len(hashes) == PROMPT_TOKENS // BLOCK_TOKENS, "every block has one"
        return took * 1e6

    def compute(self, prompt: int) -> float:
        """Have a new prompt computed and freed; microseconds that finding room for it took."""
        request = self.request(prompt)
        start = time.thread_time()
        blocks = self.manager.allocate_slots(request, PROMPT_TOKENS)
        took = time.thread_time() - start
        assert blocks is not None, "cached blocks give way"
        self.manager.free(request)
        return took * 1e6

    def look_up(self, prompt: int) -> float:
        """Microseconds of looking up a cached prompt."""
        request = self.request(prompt)
        start = time.thread_time()
        found = self.manager.get_computed_blocks(request)
        took = time.thread_time() - start
        assert found[1] == PROMPT_TOKENS - BLOCK_TOKENS, "all but the last block, which is computed again"
        return took * 1e6


def main() -> None:
    before = resident_bytes()
    pool = Pool()
    for prompt in range(PROMPTS):
        pool.compute(prompt)
    bytes_per_block = (resident_bytes() - before) / BLOCKS
    random, oldest, newest = Random(7), 0, PROMPTS

    def one_round() -> dict[str, float]:
        nonlocal oldest, newest
        lookup_us = median(pool.look_up(random.randrange(oldest, newest)) for _ in range(LOOKUPS))
        insert_us = median(pool.compute(newest + number) for number in range(INSERTS))
        oldest, newest = oldest + INSERTS, newest + INSERTS
        names_us = median(pool.name() for _ in range(LOOKUPS))
        return {"names_us": names_us, "lookup_us": lookup_us, "insert_full_us": insert_us, "bytes": bytes_per_block}

    answer(SPOKEN, one_round)


if __name__ == "__main__":
    main()
