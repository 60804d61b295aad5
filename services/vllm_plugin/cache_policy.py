"""What leaves the DRAM tier of a vLLM engine: chosen by Tidegate's delegate, behind vLLM's own interface for that.

It is there where `kv_connector_extra_config` names no `eviction_policy`, or `tidegate`; `lru` and `arc` stay vLLM's.
The value of a slice, pins, hot slices and the needs of waiting requests are weighed in policies/memory/delegate.py,
under the directive that the engine was told last.
"""

from collections.abc import Callable, Iterable, Sequence

from vllm.v1.kv_offload.base import OffloadKey, ReqContext
from vllm.v1.kv_offload.cpu.policies.base import CachePolicy, ChunkStatus

from services.vllm_plugin.choices import TierChoices
from services.vllm_plugin.prompt import Prompt, prompt_of


class TidegateCachePolicy(CachePolicy):
    """The chunks of the DRAM tier. vLLM calls it from the scheduler's thread alone. `parent_of` says which slice comes
    before one that is brought for no request."""

    def __init__(self, cache_capacity: int, choices: TierChoices) -> None:
        super().__init__(cache_capacity)
        self.choices = choices
        self._chunks: dict[OffloadKey, ChunkStatus] = {}
        self._coming: Prompt | None = None
        self.parent_of: Callable[[bytes], bytes | None] = lambda _: None

    def get(self, key: OffloadKey) -> ChunkStatus | None:
        """The chunk of a slice; None if it is not there."""
        return self._chunks.get(key)

    def on_store_miss(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:  # noqa: ARG002
        """Said before `insert`, which does not say for whom."""
        self._coming = prompt_of(req_context)

    def insert(self, key: OffloadKey, chunk: ChunkStatus) -> None:
        """A slice is being written into this chunk."""
        self._chunks[key] = chunk
        self.choices.stored(key, self._coming, self.parent_of(key))
        if chunk.ref_cnt == 0:
            self.choices.let_go([key])

    def remove(self, key: OffloadKey) -> None:
        """It could not be written, or was dropped by order."""
        del self._chunks[key]
        self.choices.removed([key])

    def touch(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:
        """A request used these."""
        self.choices.used(keys, prompt_of(req_context))

    def on_request_finished(
        self,
        key_groups: Sequence[Sequence[OffloadKey]],
        insertion_only_keys: set[OffloadKey],
        reused_keys: set[OffloadKey],
        req_context: ReqContext,
    ) -> None:
        """A request is done: what it found here was used once more. What it put in counted when it came."""
        del insertion_only_keys
        used = [key for group in key_groups for key in group if key in reused_keys]
        self.choices.used(used, prompt_of(req_context))

    def evict(self, n: int, protected: set[OffloadKey]) -> list[tuple[OffloadKey, ChunkStatus]] | None:
        """Exactly `n` chunks leave, or none: None if so many may not."""
        if n == 0:
            return []
        leaving = self.choices.evict(n, protected)
        return None if leaving is None else [(key, self._chunks.pop(key)) for key in leaving]

    def clear(self) -> None:
        """All chunks are gone, whoever reads them."""
        self._chunks.clear()
        self.choices.cleared()

    def mark_evictable(self, key: OffloadKey) -> None:
        """Nobody reads or writes it."""
        self.choices.let_go([key])

    def mark_non_evictable(self, key: OffloadKey) -> None:
        """Somebody reads it."""
        self.choices.held([key])
