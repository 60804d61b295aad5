"""The DRAM tier: frames of one size in one mapping, pinned and unpinned once, and never more than the machine has."""

import mmap
from pathlib import Path

import pytest

from kvstore.errors import BudgetExceeded, TierUnavailable, UnsupportedSchema
from kvstore.tiers import dram
from kvstore.tiers.dram import dram_tier
from tests.kvstore.tiers.test_contract import SLICE_BYTES, A, B, C, content, put, read


def test_a_slice_takes_a_frame_whatever_its_length() -> None:
    tier = dram_tier(bytes_max=2 * SLICE_BYTES + 999, slice_bytes=SLICE_BYTES)
    assert tier.bytes_max == 2 * SLICE_BYTES, "whole frames"
    tier.put(A, b"1")
    tier.put(B, b"22")
    assert (tier.bytes_used, tier.inventory()) == (2 * SLICE_BYTES, ((A, 1), (B, 2)))
    with pytest.raises(BudgetExceeded):
        tier.put(C, b"3")
    tier.close()


def test_a_slice_larger_than_a_frame_is_refused() -> None:
    tier = dram_tier(bytes_max=SLICE_BYTES, slice_bytes=SLICE_BYTES)
    with pytest.raises(UnsupportedSchema, match="frames of 1000"):
        tier.put(A, bytes(SLICE_BYTES + 1))
    assert tier.bytes_used == 0
    tier.close()


def test_a_budget_without_room_for_one_slice_is_refused() -> None:
    with pytest.raises(UnsupportedSchema, match="no room for one slice"):
        dram_tier(bytes_max=SLICE_BYTES - 1, slice_bytes=SLICE_BYTES)


def test_frames_are_used_again_and_keep_apart() -> None:
    tier = dram_tier(bytes_max=3 * SLICE_BYTES, slice_bytes=SLICE_BYTES)
    for _ in range(5):
        put(tier, A, B, C)
        assert [read(tier, name) for name in (A, B, C)] == [content(name) for name in (A, B, C)]
        for name in (B, A, C):
            tier.drop(name)
    tier.close()


class Pins:
    """Stands for the driver."""

    def __init__(self) -> None:
        self.pinned: list[tuple[int, int]] = []

    def __call__(self, address: int, bytes_: int) -> "Pins.Undo":
        self.pinned.append((address, bytes_))
        return Pins.Undo(self, (address, bytes_))

    class Undo:
        def __init__(self, pins: "Pins", what: tuple[int, int]) -> None:
            self._pins, self._what = pins, what

        def __call__(self) -> None:
            self._pins.pinned.remove(self._what)


def test_the_memory_is_pinned_whole_until_nobody_uses_it() -> None:
    pins = Pins()
    tier = dram_tier(bytes_max=4 * SLICE_BYTES, slice_bytes=SLICE_BYTES, pinner=pins)
    [(address, bytes_)] = pins.pinned
    assert (address % mmap.PAGESIZE, bytes_) == (0, 4 * SLICE_BYTES)
    put(tier, A)
    with tier.lend(A) as view:
        tier.close()
        assert len(pins.pinned) == 1, "a transfer may be under way"
        assert view == content(A)
    assert pins.pinned == []
    tier.close()


def test_more_than_the_machine_has_left_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8 kB\nMemAvailable: 3 kB\n")
    monkeypatch.setattr(dram, "_MEMINFO", meminfo)
    with pytest.raises(TierUnavailable, match=r"4000 bytes asked, the machine has 3072 left.*lower dram_bytes"):
        dram_tier(bytes_max=4 * SLICE_BYTES, slice_bytes=SLICE_BYTES)
    dram_tier(bytes_max=3 * SLICE_BYTES, slice_bytes=SLICE_BYTES).close()


def test_a_machine_that_does_not_say_what_it_has_left_is_asked_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dram, "_MEMINFO", tmp_path / "none")
    dram_tier(bytes_max=SLICE_BYTES, slice_bytes=SLICE_BYTES).close()
    with pytest.raises(TierUnavailable, match="lower dram_bytes"):
        dram_tier(bytes_max=1 << 60, slice_bytes=1 << 59)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_closing_gives_the_memory_back() -> None:
    def mapped() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    tier = dram_tier(bytes_max=64 << 20, slice_bytes=1 << 20)
    put(tier, A)
    before = mapped()
    tier.close()
    assert mapped() <= before
