"""On a GPU (`make test-gpu`): slices between pinned DRAM and HBM move as fast as a plain copy of the same size."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from events.base import SliceId
from kvstore.schema import KVCacheSchema
from kvstore.tiers.base import TierStore
from tests.kvstore.tiers.kinds import cuda_here, dram_pinned, hbm_cuda

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not cuda_here(), reason="no CUDA device: see make test-gpu")]

SLICE_BYTES = KVCacheSchema(layers=32, kv_heads=8, head_dim=128).token_bytes() * 256
"""A slice of 256 tokens of an 8B model in bf16: 32 MiB."""
SLICES = 4
ROUNDS = 50
SHARE_MIN = 0.9
A = SliceId("a" * 32)


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[tuple[TierStore, TierStore]]:
    """HBM and pinned DRAM, with A in both."""
    hbm, dram = hbm_cuda(SLICES, SLICE_BYTES, tmp_path), dram_pinned(SLICES, SLICE_BYTES, tmp_path)
    for tier in (hbm, dram):
        tier.put(A, bytes(range(256)) * (SLICE_BYTES // 256))
    yield hbm, dram
    hbm.close()
    dram.close()


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def plain(*, to_device: bool) -> Callable[[], None]:
    """torch's own copy between memory that it pinned itself and the device."""
    import torch

    host: Any = torch.empty(SLICE_BYTES, dtype=torch.uint8, pin_memory=True)
    device: Any = torch.empty(SLICE_BYTES, dtype=torch.uint8, device="cuda")

    def copy() -> None:
        if to_device:
            device.copy_(host, non_blocking=True)
        else:
            host.copy_(device, non_blocking=True)
        torch.cuda.synchronize()

    return copy


@pytest.mark.parametrize("to_device", [True, False], ids=["store", "load"])
def test_a_slice_moves_as_fast_as_a_plain_copy(
    tiers: tuple[TierStore, TierStore], capsys: pytest.CaptureFixture[str], to_device: bool
) -> None:
    hbm, dram = tiers
    B = SliceId("b" * 32)  # noqa: N806

    def ours() -> None:
        if to_device:
            with dram.lend(A) as view:
                hbm.put(B, view)
        else:
            dram.fill(B, SLICE_BYTES, lambda memory: hbm.read_into(A, memory))

    other, target = plain(to_device=to_device), hbm if to_device else dram
    mine, theirs = [], []
    for _ in range(ROUNDS):  # In turns: what disturbs one disturbs the other.
        theirs.append(seconds(other))
        mine.append(seconds(ours))
        out = bytearray(SLICE_BYTES)
        assert target.read_into(B, out) == SLICE_BYTES
        target.drop(B)
    share = median(theirs) / median(mine)
    with capsys.disabled():
        rate = SLICE_BYTES / median(mine) / 1e9
        print(
            f"\n{'DRAM to HBM' if to_device else 'HBM to DRAM'}: {rate:.1f} GB/s in slices of {SLICE_BYTES >> 20} MiB, "
            f"{100 * share:.0f} % of a plain copy of the same size ({SLICE_BYTES / median(theirs) / 1e9:.1f} GB/s)"
        )
    assert share >= SHARE_MIN
