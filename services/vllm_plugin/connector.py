"""vLLM's offloading connector, with what only it can know: the whole configuration, the requests, and the steps.

It checks that everything is as it was tested, fills in what vLLM needs to find the spec (spec.py says how it is named
in vLLM's settings), says whose KV this is, names the slices of requests that came without hints, and measures prefill.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.platforms import current_platform

from kvstore.fingerprint import fingerprints, salted_key
from services.vllm_plugin import settings
from services.vllm_plugin.identity import namespace
from services.vllm_plugin.lazy import LazyStores, ahead_of
from services.vllm_plugin.manager import TidegateManager
from services.vllm_plugin.pace import pace
from services.vllm_plugin.spec import NAMESPACE, SPEC
from services.vllm_plugin.support import check_engine, check_version


class TidegateConnector(OffloadingConnector):
    """`kv_connector: "TidegateConnector"`, `kv_connector_module_path: "services.vllm_plugin.connector"`."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        check_version(vllm.__version__)
        extra = _filled_in(vllm_config)
        told = settings.of(extra)
        check_engine(vllm_config, kv_cache_config, ssd=bool(told.ssd_folder))
        if told.ssd_folder and role == KVConnectorRole.SCHEDULER:
            whose = namespace(
                vllm_config, kv_cache_config, slice_tokens=told.slice_tokens, kernels=_kernels(vllm_config),
                known_in=Path(told.ssd_folder),
            )  # fmt: skip
            extra[NAMESPACE] = whose.hex()
        super().__init__(vllm_config, role, kv_cache_config)
        self._told, self._slice_tokens = told, told.slice_tokens
        # Tiers of vLLM's own may want all of a request when it is computed.
        self._is_lazy = told.lazy and not extra.get("secondary_tiers")
        scheduler = self.connector_scheduler
        manager = scheduler.manager if scheduler is not None else None
        self._memory = manager if isinstance(manager, TidegateManager) else None

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """vLLM says whose blocks these are, before the first request."""
        super().bind_gpu_block_pool(gpu_block_pool)
        if self._is_lazy and self._memory is not None:
            config = self._vllm_config
            ahead = ahead_of(
                self._told.lazy_ahead, block_tokens=config.cache_config.block_size,
                batch_tokens=config.scheduler_config.max_num_batched_tokens,
            )  # fmt: skip
            LazyStores(self.connector_scheduler, self._memory, gpu_block_pool, ahead=ahead)

    def on_new_request(self, request: Any) -> None:
        """A request came. Its slices are named as the gateway would: by its tokens and its salt. Where tokens do not
        say all (images, adapters) they get no such names."""
        super().on_new_request(request)
        tokens: Sequence[int] | None = request.prompt_token_ids
        plain = not request.mm_features and request.lora_request is None
        if self._memory is not None and tokens is not None and plain:
            key = salted_key(request.cache_salt or "")
            self._memory.name_prompt(
                request.request_id, lambda: fingerprints(tokens, key=key, slice_tokens=self._slice_tokens)
            )

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        """A step begins."""
        pace.scheduled(scheduler_output.total_num_scheduled_tokens)
        if self._memory is not None:
            # vLLM tells its manager of new ones alone; those that were preempted are among them with its second model
            # runner (`use_v2_model_runner`), and apart with the first.
            cached = scheduler_output.scheduled_cached_reqs
            self._memory.entered([name for name in cached.req_ids if name in cached.resumed_req_ids])
        return super().build_connector_meta(self._without_loading(scheduler_output))

    def _without_loading(self, output: Any) -> Any:
        """A reset of the device's cache preempts all that runs. Who comes again in the very next step may be loading by
        then, and vLLM takes it for an error that one who was preempted does: it asks for the stores that such a one has
        left, and who loads has none."""
        scheduler = self.connector_scheduler
        loads = [job.req_id for job in scheduler._current_batch_load_jobs.values()]  # noqa: SLF001
        loading = (output.preempted_req_ids or set()).intersection(loads)
        return replace(output, preempted_req_ids=output.preempted_req_ids - loading) if loading else output

    def update_connector_output(self, connector_output: Any) -> None:
        """A step is done."""
        pace.ended()
        said = connector_output.kv_connector_worker_meta
        if self._memory is not None and isinstance(said, OffloadingWorkerMetadata):
            self._memory.moved(said.transfer_stats)
        super().update_connector_output(connector_output)

    @classmethod
    def build_prom_metrics(cls, vllm_config: Any, *rest: Any) -> Any:
        """vLLM's; it asks the spec, in a process where no connector was made."""
        _filled_in(vllm_config)
        return super().build_prom_metrics(vllm_config, *rest)


def _kernels(vllm_config: Any) -> str:
    """vLLM's version, the device, and the way of attention where one was asked for: it chooses its kernels by these."""
    backend = vllm_config.attention_config.backend
    return f"vLLM {vllm.__version__}, {current_platform.get_device_name()}, {backend.name if backend else 'chosen'}"


def _filled_in(vllm_config: Any) -> dict[str, Any]:
    """The extra configuration, with what follows from our being there."""
    extra: dict[str, Any] = vllm_config.kv_transfer_config.kv_connector_extra_config
    extra.setdefault("spec_name", SPEC)
    extra.setdefault("spec_module_path", "services.vllm_plugin.spec")
    if "blocks_per_chunk" not in extra:
        extra.setdefault("block_size", settings.of(extra).slice_tokens)
    return extra
