"""What an engine with vLLM's own CPU offload says about slices: those that its caches hold, by the ids of the prompts.

vLLM knows blocks. A slice (a unit of a prompt) counts as there when its last block is: blocks of a prompt are cached
from its begin and evicted from its end, in device memory and in DRAM (`free_blocks` and `touch` of vLLM 0.32). The
block pool and the offloading manager are made to tell what comes and goes, as for vLLM's KV events; nothing is decided
here.
"""

from collections.abc import Callable, Hashable
from typing import Any, Final

from vllm.v1.core.kv_cache_utils import get_block_hash, make_block_hash_with_group_id
from vllm.v1.kv_offload.base import OffloadingEvent, get_offload_block_hash, make_offload_key

from events.base import Event
from events.engine import EngineRegistered
from events.slice import SlicesCleared, SlicesHit, Tier, TierMeasured
from replay.engines.changes import Changes, named
from replay.engines.job import SimRequest
from replay.engines.loads import HITS_MAX
from replay.engines.tiers import TierSizes
from replay.engines.vllm_offload import VirtualWorker

GROUP = 0
"""The only group of a model with full attention everywhere."""
TIERS: Final[tuple[Tier, ...]] = (Tier.HBM, Tier.DRAM)


class _Told(list[OffloadingEvent]):
    """Where vLLM's manager puts what changed: it is told on, and not kept."""

    def __init__(self, tell: Callable[[OffloadingEvent], None]) -> None:
        super().__init__()
        self._tell = tell

    def append(self, event: OffloadingEvent) -> None:
        self._tell(event)


class VllmSlices:
    """See the module. `request_of` finds what a request of vLLM's was made from, by its name; None = it has no
    slices. Classes that are plugged in tell of hits and of DRAM themselves (not `tells_dram`)."""

    def __init__(
        self, registered: EngineRegistered, tiers: TierSizes, scheduler: Any, worker: VirtualWorker,
        request_of: Callable[[str], SimRequest | None], *, tells_dram: bool,
    ) -> None:  # fmt: skip
        self._engine_id, self._sizes, self._worker, self._request_of = (
            registered.engine_id, tiers, worker, request_of
        )  # fmt: skip
        self._block_tokens, self._block_bytes = registered.block_tokens, registered.block_bytes
        self._blocks = registered.kv_blocks
        self._pool = scheduler.kv_cache_manager.block_pool
        self._manager: Any = scheduler.connector.connector_scheduler.manager if tells_dram else None
        self._changes: dict[Tier, Changes] = {tier: Changes() for tier in TIERS}
        self._hits: dict[Tier, list[Hashable]] = {tier: [] for tier in TIERS}
        self._hits_total: dict[Tier, int] = dict.fromkeys(TIERS, 0)
        self._evictions: dict[Tier, int] = dict.fromkeys(TIERS, 0)
        self._misses = self._slice_bytes = 0
        self._names: dict[bytes, Hashable] = {}  # By the hash of its last block, while a cache has it.
        self._is_new = True
        self._cache_full_blocks = self._pool.cache_full_blocks
        self._pool.cache_full_blocks = self._cached
        if self._manager is not None:
            self._manager.events = _Told(self._offloaded)

    def entered(self, request: SimRequest, stats: Any) -> None:
        """A request begins with what vLLM found for it (`PrefillStats`)."""
        if not self._unit_blocks(request) or self._manager is None:
            return
        keys = request.prefix[: (request.prompt_tokens - 1) // request.unit_tokens]
        held = stats.num_local_cached_tokens // request.unit_tokens
        loaded = stats.num_cached_tokens // request.unit_tokens
        self._misses += max(0, len(keys) - loaded)
        if sum(len(hits) for hits in self._hits.values()) < HITS_MAX:
            self._hits[Tier.HBM] += keys[:held]
            self._hits[Tier.DRAM] += keys[held:loaded]

    def evicted(self, hashes: list[bytes]) -> None:
        """These blocks (named with their group) are not cached in device memory any more."""
        for one in hashes:
            block = get_block_hash(one)
            key = self._names.get(block)
            if key is None or self._pool.cached_block_hash_to_block.get_one_block(one) is not None:
                continue
            self._removed(Tier.HBM, key)
            if self._manager is None or self._manager._policy.get(make_offload_key(block, GROUP)) is None:  # noqa: SLF001
                del self._names[block]

    def facts(self, now_fs: int, *, measure: bool) -> list[Event]:
        """What changed since that was last said, and what was measured; the first facts void what was known of an
        engine before it started."""
        said: list[Event] = []
        if self._is_new:
            self._is_new = False
            said += [SlicesCleared(engine_id=self._engine_id, tier=tier, reason="started") for tier in TIERS]
        if not (measure or said):
            return []
        for tier in TIERS:
            said += self._changes[tier].take(self._engine_id, tier)
        for tier, keys in self._hits.items():
            said += [SlicesHit(engine_id=self._engine_id, tier=tier, slices=slices) for slices in named(keys)]
            self._hits_total[tier] += len(keys)
            keys.clear()
        said.append(self._device_measured())
        return [*said, self._dram_measured(now_fs)] if self._manager is not None else said

    # What vLLM tells.

    def _cached(self, request: Any, *args: Any, **kwargs: Any) -> None:
        """Blocks of a request are in device memory."""
        self._cache_full_blocks(request, *args, **kwargs)
        asked = self._request_of(request.request_id)
        unit_blocks = self._unit_blocks(asked) if asked is not None else 0
        if asked is None or not unit_blocks:
            return
        first, last = kwargs["num_cached_blocks"] // unit_blocks, kwargs["num_full_blocks"] // unit_blocks
        for place in range(first, min(last, len(asked.prefix))):
            block = request.block_hashes[(place + 1) * unit_blocks - 1]
            self._names[block] = asked.prefix[place]
            self._slice_bytes = unit_blocks * self._block_bytes
            self._changes[Tier.HBM].stored(asked.prefix[place], self._slice_bytes)

    def _offloaded(self, event: OffloadingEvent) -> None:
        for one in event.keys:
            block = get_offload_block_hash(one)
            key = self._names.get(block)
            if key is None:
                continue
            if not event.removed:
                self._changes[Tier.DRAM].stored(key, self._slice_bytes)
                continue
            self._removed(Tier.DRAM, key)
            if self._pool.cached_block_hash_to_block.get_one_block(make_block_hash_with_group_id(block, GROUP)) is None:
                del self._names[block]

    def _removed(self, tier: Tier, key: Hashable) -> None:
        self._changes[tier].removed(key)
        self._evictions[tier] += 1

    def _unit_blocks(self, request: SimRequest) -> int:
        """Blocks of one of its units; 0 where it has none that can be cached."""
        blocks, odd = divmod(request.unit_tokens, self._block_tokens)
        return 0 if odd or not request.prefix else blocks

    # Amounts.

    def _device_measured(self) -> TierMeasured:
        """Held by requests, or cached, whichever is more: nearly all of the one is in the other."""
        used = max(self._blocks - self._pool.get_num_free_blocks(), len(self._pool.cached_block_hash_to_block))
        return TierMeasured(
            engine_id=self._engine_id, tier=Tier.HBM, bytes_max=self._blocks * self._block_bytes,
            bytes_used=used * self._block_bytes, slice_bytes=self._slice_bytes,
            hits_total=self._hits_total[Tier.HBM], evictions_total=self._evictions[Tier.HBM],
        )  # fmt: skip

    def _dram_measured(self, now_fs: int) -> TierMeasured:
        manager, speed = self._manager, self._sizes.dram_bytes_per_s
        chunks = manager._num_chunks - manager._get_num_free_chunks()  # noqa: SLF001
        reading, writing = self._worker.waiting_bytes(now_fs)
        return TierMeasured(
            engine_id=self._engine_id, tier=Tier.DRAM, bytes_max=self._sizes.dram_bytes,
            bytes_used=chunks * self._block_bytes, slice_bytes=self._slice_bytes, read_bytes_per_s=speed,
            write_bytes_per_s=speed, read_queue_bytes=reading, write_queue_bytes=writing,
            hits_total=self._hits_total[Tier.DRAM], misses_total=self._misses,
            evictions_total=self._evictions[Tier.DRAM],
        )  # fmt: skip
