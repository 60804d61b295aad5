"""The DRAM tier of a vLLM engine: vLLM's own, with Tidegate's choice of what leaves, and a word on what comes."""

from collections.abc import Callable, Collection
from typing import Any, Final

from vllm.v1.kv_offload.base import OffloadingEvent, OffloadKey, PrepareStoreOutput, ReqContext
from vllm.v1.kv_offload.tiering.manager import CPUPrimaryTierOffloadingManager

from events.slice import Tier
from services.vllm_plugin.cache_policy import TidegateCachePolicy
from services.vllm_plugin.memory import Memory
from services.vllm_plugin.prompt import prompt_of

POLICY: Final = "tidegate"
"""What `eviction_policy` says for ours; `lru` and `arc` are vLLM's."""
VLLM_POLICY: Final = "lru"


class PrimaryTier(CPUPrimaryTierOffloadingManager):
    """Chunks in shared memory. Everything comes from the scheduler's thread."""

    def __init__(self, memory: Memory, *, policy: str, num_chunks: int, **vllm: Any) -> None:
        ours = policy == POLICY
        super().__init__(num_chunks=num_chunks, cache_policy=VLLM_POLICY if ours else policy, **vllm)
        self._memory = memory
        self.evictions = 0
        if ours:
            self._policy = TidegateCachePolicy(num_chunks, memory.choices(Tier.DRAM))

    @property
    def chunks_used(self) -> int:
        """Chunks that hold a slice, or are about to."""
        return int(self._num_chunks - self._get_num_free_chunks())

    @property
    def chunks(self) -> int:
        """The budget."""
        return int(self._num_chunks)

    def prepare_store(self, keys: Collection[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        """vLLM's; what had to leave is told."""
        output = super().prepare_store(keys, req_context)
        if output is not None and output.evicted_keys:
            self.evictions += len(output.evicted_keys)
            self._memory.residency.removed(Tier.DRAM, output.evicted_keys)
        return output

    def complete_store(self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True) -> None:
        """vLLM's; what is whole now is told."""
        ordered = prompt_of(req_context).in_order(keys)
        super().complete_store(ordered, req_context, success)
        if success:
            self._memory.residency.stored(Tier.DRAM, [key for key in ordered if self.ready(key)])

    def reset_cache(self) -> None:
        """vLLM's; everything is gone."""
        super().reset_cache()
        self._memory.residency.cleared(Tier.DRAM, "reset")

    def has(self, key: bytes) -> bool:
        """Whether it is there, or being written."""
        return self._policy.get(key) is not None

    def ready(self, key: bytes) -> bool:
        """Whether it is there, whole."""
        chunk = self._policy.get(key)
        return chunk is not None and bool(chunk.is_ready)

    def busy(self, key: bytes) -> bool:
        """Whether somebody reads or writes it."""
        chunk = self._policy.get(key)
        return chunk is not None and chunk.ref_cnt != 0

    def pin(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """Keep them here for this request until `unpin`."""
        self.prepare_read(keys, req_context)

    def unpin(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """As often as they were pinned."""
        self.complete_read(keys, req_context)

    def drop(self, keys: Collection[OffloadKey]) -> list[OffloadKey]:
        """Those of these that nobody reads or writes are gone from now on."""
        gone = [key for key in keys if self.ready(key) and not self.busy(key)]
        for key in gone:
            chunk = self._policy.get(key)
            self._policy.mark_non_evictable(key)
            self._num_evictable_cache_chunks -= 1
            self._policy.remove(key)
            self._free_chunk(chunk)
        if gone and self.events is not None:
            self.events.append(OffloadingEvent(keys=gone, medium=self.medium, removed=True))
        self._memory.residency.removed(Tier.DRAM, gone)
        return gone

    def learn_parents(self, parent_of: Callable[[bytes], bytes | None]) -> None:
        """Who knows which slice comes before one that is brought for no request."""
        if isinstance(self._policy, TidegateCachePolicy):
            self._policy.parent_of = parent_of

    def renamed(self, key: bytes) -> None:
        """It has its true name now."""
        if isinstance(self._policy, TidegateCachePolicy):
            self._policy.choices.renamed(key, held=self.busy(key))
