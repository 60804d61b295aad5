"""A bound, not an engine: what any engine of a run has computed is in all caches at once and at no cost, with vLLM's
scheduler as with the light model (`replay.engines.commons`). Blocks are put into vLLM's own prefix cache."""

from collections.abc import Sequence
from typing import Any

from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

GROUP = 0
"""The only group of a model with full attention everywhere."""


class VllmCommons:
    """One for all engines of a run: hashes of blocks that somebody has computed."""

    def __init__(self) -> None:
        self._there: dict[bytes, None] = {}

    def computed(self, hashes: Sequence[bytes]) -> None:
        """Somebody has these now."""
        self._there.update(dict.fromkeys(hashes))

    def put_into(self, pool: Any, hashes: Sequence[bytes]) -> None:
        """Put what a prompt begins with into a block pool, as far as it is there and the pool has room."""
        leading = next((place for place, one in enumerate(hashes) if one not in self._there), len(hashes))
        keys = [make_block_hash_with_group_id(one, GROUP) for one in hashes[:leading]]
        missing = [
            place for place, key in enumerate(keys) if pool.cached_block_hash_to_block.get_one_block(key) is None
        ]
        missing = missing[: pool.get_num_free_blocks()]
        blocks = pool.get_new_blocks(len(missing))
        for place, block in zip(missing, blocks, strict=True):
            pool._insert_block_hash(keys[place], block, num_tokens=(place + 1) * pool.hash_block_size)  # noqa: SLF001
        pool.free_blocks(reversed(blocks))
