"""Copies between the device and the DRAM tier on the CPU platform: every byte where it belongs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec

from services.vllm_plugin.worker import MemcpyWorker

BLOCKS, CHUNKS, BLOCKS_PER_CHUNK = 24, 8, 4


class Memory:
    """What the worker asks of the region: one row per chunk, each tensor's pages side by side in it."""

    def __init__(self, pages: tuple[int, ...]) -> None:
        self.rows = torch.zeros((CHUNKS, sum(pages) * BLOCKS_PER_CHUNK), dtype=torch.int8)
        self._at = 0
        self.cleaned = False

    def create_next_worker_view(self, size: int) -> torch.Tensor:
        view = self.rows[:, self._at : self._at + size]
        self._at += size
        return view

    def cleanup(self) -> None:
        self.cleaned = True


def made(pages: tuple[int, ...]) -> tuple[MemcpyWorker, Memory, list[torch.Tensor]]:
    region = Memory(pages)
    device = [torch.randint(-128, 128, (BLOCKS, page), dtype=torch.int8) for page in pages]
    caches = CanonicalKVCaches(
        tensors=[CanonicalKVCacheTensor(tensor, page) for tensor, page in zip(device, pages, strict=True)],
        group_data_refs=[[CanonicalKVCacheRef(number, page) for number, page in enumerate(pages)]],
    )
    return MemcpyWorker(caches, region, blocks_per_chunk=BLOCKS_PER_CHUNK), region, device


def on_device(blocks: list[int], first: int) -> GPULoadStoreSpec:
    return GPULoadStoreSpec(blocks, group_sizes=[len(blocks)], block_indices=[first])


@settings(max_examples=60, deadline=None)
@given(
    pages=st.sampled_from([(64,), (64, 128), (24, 7)]),
    blocks=st.permutations(range(BLOCKS)),
    chunks=st.permutations(range(CHUNKS)),
    first=st.integers(0, BLOCKS_PER_CHUNK - 1),
    count=st.integers(1, BLOCKS_PER_CHUNK * 3),
)
def test_what_is_stored_is_loaded_wherever_it_lies(
    pages: tuple[int, ...], blocks: list[int], chunks: list[int], first: int, count: int
) -> None:
    worker, region, device = made(pages)
    before = [tensor.clone() for tensor in device]
    stored, loaded = blocks[:count], blocks[count : 2 * count]
    loaded = loaded if len(loaded) == count else stored[::-1]
    used = chunks[: -(-(first + count) // BLOCKS_PER_CHUNK)]
    here = CPULoadStoreSpec(used)

    worker.submit_store(1, on_device(stored, first), here)
    worker.submit_load(2, here, on_device(loaded, first))
    worker.wait({1, 2, 99})
    results = worker.get_finished()

    assert [result.job_id for result in results] == [1, 2]
    assert {result.transfer_size for result in results} == {count * sum(pages)}
    for tensor, old in zip(device, before, strict=True):
        assert torch.equal(tensor[loaded], old[stored])
        untouched = [block for block in range(BLOCKS) if block not in loaded]
        assert torch.equal(tensor[untouched], old[untouched])
    others = [chunk for chunk in range(CHUNKS) if chunk not in used]
    assert not np.any(region.rows.numpy()[others])
    worker.shutdown()
    assert region.cleaned


def test_finished_jobs_are_said_once() -> None:
    worker, _, _ = made((64,))
    worker.submit_store(5, on_device([0, 1, 2, 3], 0), CPULoadStoreSpec([0]))
    worker.wait({5})
    assert [result.job_id for result in worker.get_finished()] == [5]
    assert worker.get_finished() == []
    worker.shutdown()


def test_copy_that_fails_is_not_passed_over() -> None:
    worker, _, _ = made((64,))
    worker.submit_store(1, on_device([0, BLOCKS + 5], 0), CPULoadStoreSpec([0]))
    with pytest.raises(IndexError):
        worker.wait({1})
    worker.shutdown()
