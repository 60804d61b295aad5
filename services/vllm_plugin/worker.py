"""Moves slices between an engine's KV cache and the DRAM tier where the device is the CPU: plain copies in a thread.

vLLM's own worker copies by streams and wants a GPU; on CUDA it is used as it stands (`spec.py`). This one does the same
for the CPU platform, so that the whole path runs, and is tested, without a GPU.

One thread, first come first served: a chunk that is stored and then loaded is loaded as it was stored. Copies may lag
behind the step that asked for them, as vLLM allows: it neither reuses a block before `wait` returned for the job that
reads it, nor computes with one before its job is among the finished.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec

WORD_BYTES = 8
"""Copied in words of this size where a page allows it: several times as fast as by single bytes."""


class Side(NamedTuple):
    """One tensor of the KV cache, and where its pages lie in the chunks: [chunk, page within it, bytes]."""

    device: Any
    host: Any


class MemcpyWorker(OffloadingWorker):
    """Copies between the tensors of `kv_caches` and `region`, the memory of the DRAM tier (one row per chunk, one page
    per block and tensor in it). It owns the region from then on."""

    def __init__(self, kv_caches: CanonicalKVCaches, region: Any, *, blocks_per_chunk: int) -> None:
        assert len(kv_caches.group_data_refs) == 1, "one KV cache group: support.py has refused others"
        self._region = region
        self._blocks_per_chunk = blocks_per_chunk
        self._sides = [_side(tensor, region, blocks_per_chunk) for tensor in kv_caches.tensors]
        self._block_bytes = sum(tensor.page_size_bytes for tensor in kv_caches.tensors)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tidegate-copy")
        self._jobs: dict[int, Future[TransferResult]] = {}

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: CPULoadStoreSpec) -> bool:
        """From the device into chunks."""
        self._jobs[job_id] = self._thread.submit(self._copy, job_id, src_spec, dst_spec.chunk_ids, store=True)
        return True

    def submit_load(self, job_id: int, src_spec: CPULoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        """From chunks into the device."""
        self._jobs[job_id] = self._thread.submit(self._copy, job_id, dst_spec, src_spec.chunk_ids, store=False)
        return True

    def get_finished(self) -> list[TransferResult]:
        """What was done since the last call, in order. A copy that failed is our own mistake, and is raised here."""
        done = [job_id for job_id, job in self._jobs.items() if job.done()]
        return [self._jobs.pop(job_id).result() for job_id in done]

    def wait(self, job_ids: set[int]) -> None:
        """Until these are done; unknown ones were."""
        for job_id in job_ids:
            if job_id in self._jobs:
                self._jobs[job_id].result()

    def shutdown(self) -> None:
        """Finish what was begun and let go of the memory."""
        self._thread.shutdown(wait=True)
        self._sides.clear()
        self._region.cleanup()

    def _copy(self, job_id: int, device: GPULoadStoreSpec, chunks: Sequence[int], *, store: bool) -> TransferResult:
        began = time.perf_counter()
        blocks = device.block_ids
        # The first chunk may be met in its middle: its blocks before that are on the device already.
        places = np.arange(len(blocks)) + device.block_indices[0] % self._blocks_per_chunk
        at = np.asarray(chunks)[places // self._blocks_per_chunk], places % self._blocks_per_chunk
        for side in self._sides:
            if store:
                side.host[at] = side.device[blocks]
            else:
                side.device[blocks] = side.host[at]
        took = time.perf_counter() - began
        size = self._block_bytes * len(blocks)
        return TransferResult(job_id=job_id, success=True, transfer_size=size, transfer_time=took)


def _side(tensor: Any, region: Any, blocks_per_chunk: int) -> Side:
    page = tensor.page_size_bytes
    host = region.create_next_worker_view(page * blocks_per_chunk).numpy()
    device = tensor.tensor.numpy().view(np.uint8)
    rows, stride = host.shape[0], host.strides[0]
    pages = np.lib.stride_tricks.as_strided(
        host.view(np.uint8), (rows, blocks_per_chunk, page), (stride, page, 1), writeable=True
    )
    if page % WORD_BYTES == 0 and device.strides[0] % WORD_BYTES == 0 and stride % WORD_BYTES == 0:
        return Side(device.view(np.uint64), pages.view(np.uint64))
    return Side(device, pages)
