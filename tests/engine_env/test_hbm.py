"""The contract suite of tiers (tests/kvstore/tiers/test_contract.py) on the HBM tier, by torch on the CPU."""

from collections.abc import Iterator

import pytest

from kvstore.errors import TierUnavailable, UnsupportedSchema
from kvstore.tiers.base import TierStore
from tests.kvstore.tiers.test_contract import *  # noqa: F403
from tests.kvstore.tiers.test_contract import SLICE_BYTES, SLICES, A

pytestmark = pytest.mark.engine
hbm = pytest.importorskip("kvstore.tiers.hbm")


@pytest.fixture
def tier() -> Iterator[TierStore]:
    """A tier with room for four slices."""
    store = hbm.hbm_tier(bytes_max=SLICES * SLICE_BYTES, slice_bytes=SLICE_BYTES, device="cpu")
    yield store
    store.close()


@pytest.mark.parametrize("device", ["cuda:99", "no such device"])
def test_a_device_that_is_not_there_is_said(device: str) -> None:
    with pytest.raises(TierUnavailable) as caught:
        hbm.hbm_tier(bytes_max=1 << 20, slice_bytes=1 << 10, device=device)
    assert caught.value.mend


def test_a_slice_larger_than_a_frame_is_refused(tier: TierStore) -> None:
    with pytest.raises(UnsupportedSchema, match="frames of 1000"):
        tier.put(A, bytes(SLICE_BYTES + 1))
    assert tier.bytes_used == 0
