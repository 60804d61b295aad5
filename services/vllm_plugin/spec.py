"""Tidegate's memory as vLLM's offloading spec: the DRAM tier, the SSD tier, and who copies.

    --kv-transfer-config '{"kv_connector": "TidegateConnector", "kv_role": "kv_both",
        "kv_connector_module_path": "services.vllm_plugin.connector",
        "kv_connector_extra_config": {"cpu_bytes_to_use": 8589934592,
            "tidegate": {"engine_id": "e1", "ssd_folder": "/var/lib/tidegate/e1", "ssd_bytes": 107374182400}}}'

Keys of `kv_connector_extra_config` beside vLLM's own (`cpu_bytes_to_use`, `secondary_tiers`, `offload_prompt_only`):
`tidegate` is settings.py; `eviction_policy` is `tidegate` where nothing is said, and vLLM's `lru` or `arc` otherwise;
`block_size` is the slice, `slice_tokens` where nothing is said. With TIDEGATE_MEMORY=off in the environment vLLM's own
manager and policy run, without the SSD tier.

On CUDA vLLM's own worker copies, with its streams and pinned memory; on the CPU platform, where vLLM has none,
worker.py does.
"""

import os
from pathlib import Path
from typing import Any, Final

import vllm
from vllm.platforms import current_platform
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingManager, OffloadingMetricMetadata, OffloadingWorker
from vllm.v1.kv_offload.config import OffloadingConfig
from vllm.v1.kv_offload.cpu.gpu_worker import CPUOffloadingWorker
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.base import SecondaryTierManager
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from services.vllm_plugin import settings
from services.vllm_plugin.bridge import bridge
from services.vllm_plugin.manager import LAZY_METRICS, TidegateManager
from services.vllm_plugin.memory import memory_of
from services.vllm_plugin.primary_tier import POLICY, VLLM_POLICY, PrimaryTier
from services.vllm_plugin.ssd_tier import METRICS, open_ssd
from services.vllm_plugin.support import UnsupportedEngine, check_version
from services.vllm_plugin.worker import MemcpyWorker

SPEC: Final = "TidegateOffloadingSpec"
NAMESPACE: Final = "tidegate_namespace"
"""Where the connector, which sees vLLM's whole configuration, says whose KV this is (identity.py)."""
SWITCH: Final = "TIDEGATE_MEMORY"


class Region(SharedOffloadRegion):
    """vLLM's shared memory, whose name is taken away as soon as everybody has it: so it leaves with its last process,
    however that ends."""

    def unname(self) -> None:
        """Take its name away; what is mapped stays."""
        Path(self.mmap_path).unlink(missing_ok=True)

    def cleanup(self) -> None:
        """Let go of it."""
        if not Path(self.mmap_path).exists():
            self._creator = False
        super().cleanup()


class TidegateOffloadingSpec(TieringOffloadingSpec):
    """Made twice: where vLLM schedules (`get_manager`), and where it computes (`get_worker`)."""

    def __init__(self, config: OffloadingConfig) -> None:
        check_version(vllm.__version__)
        if len(config.groups) != 1:
            raise UnsupportedEngine(f"the model has {len(config.groups)} KV cache groups (a hybrid model)")
        super().__init__(config)
        self._made_manager: TidegateManager | None = None
        self._made_worker: OffloadingWorker | None = None
        self.plain = os.environ.get(SWITCH) == "off"
        self.settings = settings.of(config.extra_config)
        self.eviction_policy = config.extra_config.get("eviction_policy", VLLM_POLICY if self.plain else POLICY)
        tokens = config.groups[0].tokens_per_block * config.cache.blocks_per_chunk
        if tokens != self.settings.slice_tokens:
            raise ValueError(
                f"kv_connector_extra_config: block_size is {tokens} tokens, and a slice has "
                f"{self.settings.slice_tokens} (tidegate.slice_tokens)"
            )
        if not self.num_chunks:
            raise ValueError("kv_connector_extra_config: cpu_bytes_to_use is less than one slice")

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """vLLM's, and those of the SSD tier and of lazy DRAM."""
        definitions: dict[str, OffloadingMetricMetadata] = super().build_metric_definitions(extra_config)
        return definitions | METRICS | LAZY_METRICS

    def get_manager(self) -> OffloadingManager:
        """The tiers, in the scheduler's process."""
        if self.plain:
            return super().get_manager()
        if self._made_manager is None:
            self._made_manager = self._make_manager()
        return self._made_manager

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """Who copies, in the worker's process."""
        if self._made_worker is None:
            self._made_worker = self._make_worker(kv_caches)
        return self._made_worker

    def _make_manager(self) -> TidegateManager:
        region = self._region(None)
        if not region._creator:  # noqa: SLF001 - the worker, which made it, has it mapped by now
            region.unname()
        try:
            return self._over(region)
        except BaseException:
            region.cleanup()
            raise

    def _over(self, region: Region) -> TidegateManager:
        memory = memory_of(self.settings, bridge, slice_bytes=self.kv_bytes_per_chunk)
        primary = PrimaryTier(
            memory, policy=self.eviction_policy, num_chunks=self.num_chunks, mmap_region=region,
            cache_policy_module_path=self.cache_policy_module_path,
            enable_events=self.kv_events_config.enable_kv_cache_events,
        )  # fmt: skip
        view = primary.get_kv_memoryview()
        ssd = open_ssd(self, view, memory, namespace=self._namespace()) if self.settings.ssd_folder else None
        tiers: list[SecondaryTierManager] = [] if ssd is None else [ssd]
        tiers += [SecondaryTierFactory.create_secondary_tier(tier, view, self) for tier in self.secondary_tier_configs]
        return TidegateManager(memory, primary, tiers, ssd=ssd)

    def _make_worker(self, kv_caches: CanonicalKVCaches) -> Any:
        region = self._region(self.config.parallel.rank)
        try:
            if current_platform.is_cpu():
                return MemcpyWorker(kv_caches, region, blocks_per_chunk=self.blocks_per_chunk)
            return CPUOffloadingWorker(
                kv_caches=kv_caches, blocks_per_chunk=self.blocks_per_chunk, num_cpu_chunks=self.num_chunks,
                mmap_region=region,
            )  # fmt: skip
        except BaseException:
            region.cleanup()
            raise

    def _region(self, rank: int | None) -> Region:
        return Region(
            engine_id=self.config.engine_id, num_chunks=self.num_chunks, rank=rank,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk, cpu_page_size=self.cpu_page_size_per_worker,
        )  # fmt: skip

    def _namespace(self) -> bytes:
        said = self.extra_config.get(NAMESPACE)
        if not said:
            raise ValueError("an SSD tier needs kv_connector TidegateConnector, which knows whose KV it is")
        return bytes.fromhex(said)
