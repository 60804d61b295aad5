"""Several tiers as one object: copy first, let go afterwards, and serve the fastest copy that is good."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from events.base import SliceId
from events.slice import Tier
from kvstore.errors import BudgetExceeded, ChecksumMismatch, NotResident, Pinned, TierUnavailable
from kvstore.tiers.dram import dram_tier
from kvstore.tiers.memory import memory_tier
from kvstore.tiers.ssd import ssd_tier
from kvstore.tiers.tiered import Fetched, TieredBackend
from tests.kvstore.tiers.kinds import NAMESPACE
from tests.kvstore.tiers.test_contract import SLICE_BYTES, A, B, C, content
from tests.kvstore.tiers.test_ssd import FILE_BYTES, file, flip

HBM, DRAM, SSD = Tier.HBM, Tier.DRAM, Tier.SSD


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[TieredBackend]:
    """One slice fits in HBM, two in DRAM, four on the SSD."""
    backend = TieredBackend([
        memory_tier(bytes_max=SLICE_BYTES, tier=HBM),
        dram_tier(bytes_max=2 * SLICE_BYTES, slice_bytes=SLICE_BYTES),
        ssd_tier(tmp_path, bytes_max=4 * FILE_BYTES, namespace=NAMESPACE),
    ])  # fmt: skip
    yield backend
    backend.close()


def fetch(tiers: TieredBackend, name: SliceId, *, promote_to: Tier | None = None) -> Fetched:
    out = bytearray(SLICE_BYTES)
    fetched = tiers.fetch(name, out, promote_to=promote_to)
    assert out == content(name)
    return fetched


def put(tiers: TieredBackend, name: SliceId, *where: Tier) -> None:
    for tier in where:
        assert tiers.put(name, content(name), tier=tier)


def test_a_slice_goes_to_the_fastest_tier_unless_said_otherwise(tiers: TieredBackend) -> None:
    assert tiers.put(A, content(A))
    put(tiers, B, SSD)
    assert (tiers.where(A), tiers.where(B), tiers.where(C)) == ((HBM,), (SSD,), ())
    assert tiers.inventory() == {HBM: ((A, SLICE_BYTES),), DRAM: (), SSD: ((B, SLICE_BYTES),)}
    assert tiers.stats()[SSD].stored == 1


def test_the_fastest_copy_is_served(tiers: TieredBackend) -> None:
    put(tiers, A, SSD, DRAM)
    assert fetch(tiers, A) == Fetched(tier=DRAM, bytes_=SLICE_BYTES)
    put(tiers, A, HBM)
    assert fetch(tiers, A).tier is HBM


def test_what_is_nowhere_is_not_resident(tiers: TieredBackend) -> None:
    with pytest.raises(NotResident):
        fetch(tiers, A)
    with pytest.raises(NotResident):
        tiers.promote(A, target=HBM)


def test_a_damaged_copy_is_passed_over_for_a_good_one(tmp_path: Path) -> None:
    good = memory_tier(bytes_max=SLICE_BYTES, tier=DRAM)
    tiers = TieredBackend([ssd_tier(tmp_path, bytes_max=4 * FILE_BYTES, namespace=NAMESPACE), good])
    put(tiers, A, SSD, DRAM)
    flip(FILE_BYTES - 1)(file(tmp_path, A))
    assert fetch(tiers, A).tier is DRAM
    assert tiers.where(A) == (DRAM,), "the damaged one is forgotten"
    tiers.close()


def test_a_tier_out_of_reach_is_passed_over_and_named_when_it_was_the_only_one(tiers: TieredBackend) -> None:
    put(tiers, A, HBM, DRAM)
    tiers[HBM].close()
    assert fetch(tiers, A).tier is DRAM
    tiers[DRAM].close()
    with pytest.raises(TierUnavailable):
        fetch(tiers, A)


def test_a_read_promotes_when_asked_and_only_where_there_is_room(tiers: TieredBackend) -> None:
    put(tiers, A, SSD)
    assert fetch(tiers, A, promote_to=HBM) == Fetched(tier=SSD, bytes_=SLICE_BYTES, promoted=True)
    assert tiers.where(A) == (HBM, SSD), "the slower copy stays"
    put(tiers, B, SSD)
    assert fetch(tiers, B, promote_to=HBM) == Fetched(tier=SSD, bytes_=SLICE_BYTES), "no room: read all the same"
    assert tiers.where(B) == (SSD,)


@pytest.mark.parametrize(("source", "target"), [(HBM, DRAM), (DRAM, SSD), (SSD, DRAM), (SSD, HBM), (HBM, SSD)])
def test_a_move_brings_the_whole_slice_and_leaves_none_behind(tiers: TieredBackend, source: Tier, target: Tier) -> None:
    put(tiers, A, source)
    assert tiers.demote(A, source=source, target=target)
    assert tiers.where(A) == (target,)
    assert tiers[source].bytes_used == 0
    assert tiers[target].pins(A) == 0
    assert fetch(tiers, A).tier is target


def test_a_move_to_where_it_already_is_only_lets_go(tiers: TieredBackend) -> None:
    put(tiers, A, DRAM, SSD)
    assert tiers.demote(A, source=DRAM, target=SSD)
    assert tiers.where(A) == (SSD,)
    assert tiers[SSD].stats().stored == 1


def test_a_move_into_a_full_tier_keeps_the_original(tiers: TieredBackend) -> None:
    put(tiers, A, HBM)
    put(tiers, B, DRAM)
    put(tiers, C, DRAM)
    with pytest.raises(BudgetExceeded):
        tiers.demote(A, source=HBM, target=DRAM)
    assert tiers.where(A) == (HBM,)
    assert fetch(tiers, A).tier is HBM


def test_a_pinned_slice_is_not_moved_but_may_be_copied(tiers: TieredBackend) -> None:
    put(tiers, A, HBM)
    tiers.pin(A, tier=HBM)
    with pytest.raises(Pinned):
        tiers.demote(A, source=HBM, target=DRAM)
    with pytest.raises(Pinned):
        tiers.drop(A, tier=HBM)
    assert tiers.where(A) == (HBM,)
    assert tiers.replicate(A, source=HBM, target=SSD)
    tiers.unpin(A, tier=HBM)
    tiers.drop(A, tier=HBM)
    assert tiers.where(A) == (SSD,)


def test_a_damaged_source_is_not_copied(tiers: TieredBackend, tmp_path: Path) -> None:
    put(tiers, A, SSD)
    flip(FILE_BYTES - 1)(file(tmp_path, A))
    with pytest.raises(ChecksumMismatch):
        tiers.promote(A, target=DRAM)
    assert tiers.where(A) == ()
    assert tiers[DRAM].bytes_used == 0


def test_a_promotion_takes_the_next_copy_when_the_first_is_bad(tmp_path: Path) -> None:
    tiers = TieredBackend([
        memory_tier(bytes_max=SLICE_BYTES, tier=HBM),
        ssd_tier(tmp_path, bytes_max=4 * FILE_BYTES, namespace=NAMESPACE),
        memory_tier(bytes_max=SLICE_BYTES, tier=DRAM),
    ])  # fmt: skip
    put(tiers, A, SSD, DRAM)
    flip(FILE_BYTES - 1)(file(tmp_path, A))
    assert tiers.promote(A, target=HBM)
    assert tiers.where(A) == (HBM, DRAM)
    tiers.close()


def test_each_tier_keeps_its_own_form_and_callers_see_that_of_the_fastest() -> None:
    """Stands for another dtype: a slower tier keeps every second byte, as if the others said nothing."""

    def recode(data: memoryview, held: Tier, wanted: Tier) -> bytes:
        return bytes(data[::2]) if wanted is DRAM else bytes(byte for byte in data for _ in range(2))

    tiers = TieredBackend([memory_tier(bytes_max=100, tier=HBM), memory_tier(bytes_max=100, tier=DRAM)], recode=recode)
    wide = bytes(byte for byte in range(10) for _ in range(2))
    tiers.put(A, wide)
    assert tiers.demote(A, source=HBM, target=DRAM)
    assert tiers[DRAM].bytes_of(A) == 10
    out = bytearray(20)
    assert tiers.fetch(A, out, promote_to=HBM) == Fetched(tier=DRAM, bytes_=20, promoted=True)
    assert out == wide
    assert tiers[HBM].bytes_of(A) == 20
    tiers.put(B, wide, tier=DRAM)
    assert tiers[DRAM].bytes_of(B) == 10
    assert tiers.promote(B, target=HBM)
    assert tiers[HBM].bytes_of(B) == 20
