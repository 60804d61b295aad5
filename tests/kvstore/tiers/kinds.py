"""Every kind of tier that can be had here, each behind the same three words: slices, slice bytes, folder.

Torch is only in the engine's environment, a GPU only in some machines: `make test` runs memory, DRAM and SSD,
`make test-engine` HBM on the CPU too, `make test-gpu` HBM and pinned DRAM on CUDA.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.tiers.base import TierStore
from kvstore.tiers.dram import dram_tier
from kvstore.tiers.memory import memory_tier
from kvstore.tiers.slicefile import HEADER_BYTES, namespace_digest
from kvstore.tiers.ssd import Sync, ssd_tier

NAMESPACE = namespace_digest(model="m", dtype="float32", layout="nhd", schema={"layers": 2, "kv_heads": 2})
OTHER_NAMESPACE = namespace_digest(model="n", dtype="float32", layout="nhd", schema={"layers": 2, "kv_heads": 2})

Make = Callable[[int, int, Path], TierStore]


def memory(slices: int, slice_bytes: int, folder: Path) -> TierStore:
    return memory_tier(bytes_max=slices * slice_bytes)


def dram(slices: int, slice_bytes: int, folder: Path) -> TierStore:
    return dram_tier(bytes_max=slices * slice_bytes, slice_bytes=slice_bytes)


def ssd(slices: int, slice_bytes: int, folder: Path) -> TierStore:
    return ssd_tier(folder, bytes_max=slices * (slice_bytes + HEADER_BYTES), namespace=NAMESPACE)


def ssd_synced(slices: int, slice_bytes: int, folder: Path) -> TierStore:
    budget = slices * (slice_bytes + HEADER_BYTES)
    return ssd_tier(folder, bytes_max=budget, namespace=NAMESPACE, sync=Sync.POWER)


def hbm_cpu(slices: int, slice_bytes: int, folder: Path) -> TierStore:
    from kvstore.tiers.hbm import hbm_tier

    return hbm_tier(bytes_max=slices * slice_bytes, slice_bytes=slice_bytes, device="cpu")


def hbm_cuda(slices: int, slice_bytes: int, folder: Path) -> TierStore:
    from kvstore.tiers.hbm import hbm_tier

    return hbm_tier(bytes_max=slices * slice_bytes, slice_bytes=slice_bytes)


def dram_pinned(slices: int, slice_bytes: int, folder: Path) -> TierStore:
    from kvstore.tiers.hbm import cuda_pinner

    return dram_tier(bytes_max=slices * slice_bytes, slice_bytes=slice_bytes, pinner=cuda_pinner)


def cuda_here() -> bool:
    """Whether torch sees a CUDA device."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def kinds() -> list[object]:
    """Parameters for a fixture."""
    found: list[object] = [memory, dram, ssd, ssd_synced]
    if importlib.util.find_spec("torch") is not None:
        found.append(hbm_cpu)
    if cuda_here():
        found += [pytest.param(hbm_cuda, marks=pytest.mark.gpu), pytest.param(dram_pinned, marks=pytest.mark.gpu)]
    return found
