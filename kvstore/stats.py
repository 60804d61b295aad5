"""How slices are used: hits and misses per tier in windows of time, for summaries and heatmaps.

Amounts are counts, times are pool time. Everything has a limit: the newest `windows_max` windows are kept, in each the
`slices_max` (tier, slice) pairs that were used first in it; the rest counts in its tier alone (`others`).

Example: windows of a second; slice s is hit in DRAM at 1.2 s and 1.9 s and missed at 3.0 s. Three windows, 1 to 3: hits
2, 0, 0 and misses 0, 0, 1; `summary()` says 3 accesses, 666,666 ppm hit.
"""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

import msgspec

from events.base import NS_PER_S, PPM, SliceId
from events.slice import Tier

WINDOW_NS: Final = 10 * NS_PER_S
WINDOWS_MAX: Final = 360
SLICES_MAX: Final = 1_024
EXPORT_VERSION: Final = 1


class TierCounts(msgspec.Struct):
    """What was asked of one tier; `others` of the hits and misses are of slices that are not told apart."""

    hits: int = 0
    misses: int = 0
    others: int = 0


class Window(msgspec.Struct):
    """One window of time: `number` x `window_ns` is its beginning. `slices` counts accesses by tier and slice."""

    number: int
    tiers: dict[Tier, TierCounts] = msgspec.field(default_factory=dict)
    slices: dict[Tier, dict[SliceId, int]] = msgspec.field(default_factory=dict)


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Accesses since the beginning, all tiers together and each by itself; `late` came after their window was gone, and
    stand in the totals only."""

    total_accesses: int
    hits: int
    misses: int
    hit_rate_ppm: int
    late: int
    tiers: dict[Tier, TierCounts]


class AccessExport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that is known, as it is written into a file (JSON): what pictures are made of."""

    version: int = EXPORT_VERSION
    window_ns: int
    windows: tuple[Window, ...]
    summary: Summary


class Heatmap(msgspec.Struct, frozen=True, kw_only=True):
    """Accesses of one tier: `rows[i][j]` of `slices[i]` in the window that begins at `starts_ns[j]`, the slices used
    most first; windows in which nothing was used stand there, too."""

    tier: Tier
    slices: tuple[SliceId, ...]
    starts_ns: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]


class AccessStats:
    """Counts accesses. Not thread-safe; every amount is bounded by the limits given."""

    def __init__(
        self, *, window_ns: int = WINDOW_NS, windows_max: int = WINDOWS_MAX, slices_max: int = SLICES_MAX
    ) -> None:
        assert min(window_ns, windows_max, slices_max) > 0, "limits are positive"
        self._window_ns, self._windows_max, self._slices_max = window_ns, windows_max, slices_max
        self._windows: deque[Window] = deque()
        self._totals: dict[Tier, TierCounts] = {}
        self._late = 0

    def record_access(self, slice_id: SliceId, *, tier: Tier, is_hit: bool, now_ns: int, times: int = 1) -> None:
        """The slice was looked for in that tier at that time, and was there, or not; O(1)."""
        _count(self._totals.setdefault(tier, TierCounts()), is_hit, times)
        window = self._window_at(now_ns)
        if window is None:
            self._late += times
            return
        counts = window.tiers.setdefault(tier, TierCounts())
        _count(counts, is_hit, times)
        slices = window.slices.setdefault(tier, {})
        if slice_id in slices:
            slices[slice_id] += times
        elif sum(map(len, window.slices.values())) < self._slices_max:
            slices[slice_id] = times
        else:
            counts.others += times

    def export_stats(self) -> AccessExport:
        """All of it, for a file: `msgspec.json.encode` writes it, `read_export` reads it."""
        # A copy by way of its own format: what is counted later does not change what was given away.
        windows = msgspec.convert(msgspec.to_builtins(list(self._windows)), tuple[Window, ...])
        return AccessExport(window_ns=self._window_ns, windows=windows, summary=self.summary())

    def summary(self) -> Summary:
        """Totals since the beginning."""
        hits = sum(counts.hits for counts in self._totals.values())
        misses = sum(counts.misses for counts in self._totals.values())
        return Summary(
            total_accesses=hits + misses,
            hits=hits,
            misses=misses,
            hit_rate_ppm=PPM * hits // max(1, hits + misses),
            late=self._late,
            tiers={tier: TierCounts(counts.hits, counts.misses) for tier, counts in sorted(self._totals.items())},
        )

    def _window_at(self, now_ns: int) -> Window | None:
        """The window of that time, made where it is new; None where it is gone."""
        number = now_ns // self._window_ns
        windows = self._windows
        if not windows or number > windows[-1].number:
            windows.append(Window(number))
            while windows[0].number <= number - self._windows_max:
                windows.popleft()
            return windows[-1]
        if number <= windows[-1].number - self._windows_max:
            return None
        # Nearly always the newest; a late one is found, or put in its place, from the newest on.
        place = len(windows)
        while place and windows[place - 1].number > number:
            place -= 1
        if not place or windows[place - 1].number < number:
            windows.insert(place, Window(number))
            return windows[place]
        return windows[place - 1]


def read_export(data: bytes) -> AccessExport:
    """What was exported. Raises msgspec.ValidationError for anything else, a later version too."""
    export = msgspec.json.decode(data, type=AccessExport)
    if export.version != EXPORT_VERSION:
        raise msgspec.ValidationError(f"version {export.version} of an export is not known here, {EXPORT_VERSION} is")
    return export


def top(windows: Iterable[Window], tier: Tier, *, most: int) -> list[tuple[SliceId, int]]:
    """The slices used most in these windows, with their accesses; equals by name."""
    counted: Counter[SliceId] = Counter()
    for window in windows:
        counted.update(window.slices.get(tier, {}))
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:most]


def heatmap(export: AccessExport, tier: Tier, *, rows_max: int) -> Heatmap:
    """What one tier was asked for over time, slice by slice."""
    slices = tuple(slice_id for slice_id, _ in top(export.windows, tier, most=rows_max))
    by_number = {window.number: window.slices.get(tier, {}) for window in export.windows}
    numbers = range(min(by_number), max(by_number) + 1) if by_number else range(0)
    return Heatmap(
        tier=tier,
        slices=slices,
        starts_ns=tuple(number * export.window_ns for number in numbers),
        rows=tuple(tuple(by_number.get(number, {}).get(slice_id, 0) for number in numbers) for slice_id in slices),
    )


def _count(counts: TierCounts, is_hit: bool, times: int) -> None:
    if is_hit:
        counts.hits += times
    else:
        counts.misses += times
