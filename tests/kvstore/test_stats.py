"""Every access is counted once, in the window and tier where it belongs, and nothing grows without a limit."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import NS_PER_S, SliceId
from events.slice import Tier
from kvstore.stats import AccessStats, Heatmap, heatmap, read_export, top

S, T = SliceId("5" * 32), SliceId("7" * 32)


def counted(*accesses: tuple[SliceId, Tier, bool, float], **limits: int) -> AccessStats:
    stats = AccessStats(**({"window_ns": NS_PER_S} | limits))
    for slice_id, tier, is_hit, at_s in accesses:
        stats.record_access(slice_id, tier=tier, is_hit=is_hit, now_ns=int(at_s * NS_PER_S))
    return stats


def test_the_example_of_the_module_holds() -> None:
    stats = counted((S, Tier.DRAM, True, 1.2), (S, Tier.DRAM, True, 1.9), (S, Tier.DRAM, False, 3.0))
    summary = stats.summary()
    assert (summary.total_accesses, summary.hits, summary.misses, summary.hit_rate_ppm) == (3, 2, 1, 666_666)
    assert heatmap(stats.export_stats(), Tier.DRAM, rows_max=9) == Heatmap(
        tier=Tier.DRAM, slices=(S,), starts_ns=(NS_PER_S, 2 * NS_PER_S, 3 * NS_PER_S), rows=((2, 0, 1),)
    )


def test_nothing_counted_is_nothing_divided() -> None:
    stats = counted()
    assert stats.summary().hit_rate_ppm == 0
    assert heatmap(stats.export_stats(), Tier.SSD, rows_max=9).rows == ()


def test_tiers_are_apart() -> None:
    stats = counted((S, Tier.HBM, False, 0), (S, Tier.DRAM, True, 0), (T, Tier.DRAM, True, 0))
    tiers = stats.summary().tiers
    assert {tier: (counts.hits, counts.misses) for tier, counts in tiers.items()} == {
        Tier.DRAM: (2, 0), Tier.HBM: (0, 1)
    }  # fmt: skip
    assert heatmap(stats.export_stats(), Tier.HBM, rows_max=9).slices == (S,)


def test_one_record_can_stand_for_many_accesses() -> None:
    stats = AccessStats()
    stats.record_access(S, tier=Tier.SSD, is_hit=True, now_ns=5, times=40)
    assert stats.summary().hits == 40
    assert top(stats.export_stats().windows, Tier.SSD, most=1) == [(S, 40)]


def test_the_slices_used_most_come_first_and_equals_by_name() -> None:
    accesses = [
        (T, Tier.HBM, True, 0),
        (S, Tier.HBM, True, 1),
        (T, Tier.HBM, True, 2),
        (SliceId("6"), Tier.HBM, True, 2),
    ]
    export = counted(*accesses).export_stats()
    assert top(export.windows, Tier.HBM, most=9) == [(T, 2), (S, 1), (SliceId("6"), 1)]
    assert heatmap(export, Tier.HBM, rows_max=1).rows == ((1, 0, 1),)


def test_a_late_access_is_counted_where_it_belongs_or_in_the_totals_alone() -> None:
    stats = counted(
        (S, Tier.HBM, True, 10),
        (S, Tier.HBM, True, 8.5),
        (S, Tier.HBM, True, 10.5),
        (S, Tier.HBM, True, 7),
        windows_max=3,
    )
    assert [(window.number, window.slices[Tier.HBM][S]) for window in stats.export_stats().windows] == [(8, 1), (10, 2)]
    assert (stats.summary().late, stats.summary().hits) == (1, 4)


def test_slices_beyond_the_limit_are_counted_together() -> None:
    stats = counted(*((SliceId(f"{number:032x}"), Tier.HBM, True, 0) for number in range(10)), slices_max=4)
    (window,) = stats.export_stats().windows
    assert (len(window.slices[Tier.HBM]), window.tiers[Tier.HBM].hits, window.tiers[Tier.HBM].others) == (4, 10, 6)


def test_what_was_exported_does_not_change_and_is_read_back() -> None:
    stats = counted((S, Tier.DRAM, True, 1.2))
    export = stats.export_stats()
    stats.record_access(S, tier=Tier.DRAM, is_hit=True, now_ns=NS_PER_S)
    assert export.windows[0].tiers[Tier.DRAM].hits == 1
    assert read_export(msgspec.json.encode(export)) == export


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"window_ns": "x"}'])
def test_another_file_is_not_taken_for_an_export(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        read_export(data)


def test_an_export_of_a_later_version_is_refused() -> None:
    export = msgspec.structs.replace(counted().export_stats(), version=2)
    with pytest.raises(msgspec.ValidationError, match="version 2"):
        read_export(msgspec.json.encode(export))


ACCESSES = st.lists(
    st.tuples(st.sampled_from([S, T, SliceId("6")]), st.sampled_from(Tier), st.booleans(), st.integers(0, 12)),
    max_size=60,
)


@settings(deadline=None)
@given(ACCESSES)
def test_windows_and_totals_add_up_whatever_the_order(accesses: list[tuple[SliceId, Tier, bool, float]]) -> None:
    """Against a plain count; the newest 4 windows as of each access."""
    stats = counted(*accesses, windows_max=4, slices_max=2)
    newest, late = -1, 0
    kept: Counter[tuple[int, Tier, bool]] = Counter()
    for _, tier, is_hit, at in accesses:
        newest = max(newest, int(at))
        if at <= newest - 4:
            late += 1
        else:
            kept[int(at), tier, is_hit] += 1
    summary, windows = stats.summary(), stats.export_stats().windows
    assert (summary.total_accesses, summary.late) == (len(accesses), late)
    assert [window.number for window in windows] == sorted({number for number, _, _ in kept if number > newest - 4})
    for window in windows:
        assert sum(map(len, window.slices.values())) <= 2
        for tier, counts in window.tiers.items():
            assert (counts.hits, counts.misses) == (kept[window.number, tier, True], kept[window.number, tier, False])
            assert sum(window.slices[tier].values()) + counts.others == counts.hits + counts.misses
