"""The tiers of engines as metrics, from what the projector folds for the registry of slices. Labels are bounded: engine
and tier."""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstore.registry.base import TierRow
from services.runtime.registry_book import RegistryBook


class _Family(NamedTuple):
    """One metric by engine and tier. `measured`: only of tiers that were."""

    cls: type[CounterMetricFamily] | type[GaugeMetricFamily]
    name: str
    help: str
    read: Callable[[TierRow], int]
    measured: bool = True


_FAMILIES: Final = (
    _Family(GaugeMetricFamily, "tidegate_tier_slices", "Slices that are known to be there.",
            lambda row: row.slices, measured=False),
    _Family(GaugeMetricFamily, "tidegate_tier_slices_bytes", "What they take, by what was said when they were stored.",
            lambda row: row.slices_bytes, measured=False),
    _Family(CounterMetricFamily, "tidegate_tier_slices_hit", "Slices that requests began with and got from there.",
            lambda row: row.hits_told, measured=False),
    _Family(CounterMetricFamily, "tidegate_tier_slices_stored", "Slices that were stored there.",
            lambda row: row.stored_told, measured=False),
    _Family(CounterMetricFamily, "tidegate_tier_slices_removed", "Slices that left, one by one.",
            lambda row: row.removed_told, measured=False),
    _Family(CounterMetricFamily, "tidegate_tier_slices_cleared", "Slices that were void all at once.",
            lambda row: row.cleared_told, measured=False),
    _Family(GaugeMetricFamily, "tidegate_tier_size_bytes", "Bytes that it can hold.", lambda row: row.bytes_max),
    _Family(GaugeMetricFamily, "tidegate_tier_used_bytes", "Bytes in use, as the engine says.",
            lambda row: row.bytes_used),
    _Family(GaugeMetricFamily, "tidegate_tier_read_bytes_per_second", "Its link to the tier above, as last measured.",
            lambda row: row.read_bytes_per_s),
    _Family(GaugeMetricFamily, "tidegate_tier_write_bytes_per_second", "The same, downwards.",
            lambda row: row.write_bytes_per_s),
    _Family(GaugeMetricFamily, "tidegate_tier_read_queue_bytes", "Bytes that wait to be read.",
            lambda row: row.read_queue_bytes),
    _Family(GaugeMetricFamily, "tidegate_tier_write_queue_bytes", "Bytes that wait to be written.",
            lambda row: row.write_queue_bytes),
    _Family(CounterMetricFamily, "tidegate_tier_hits", "Slices found there, as the engine counts.",
            lambda row: row.hits_total),
    _Family(CounterMetricFamily, "tidegate_tier_misses", "Slices not found there, as the engine counts.",
            lambda row: row.misses_total),
    _Family(CounterMetricFamily, "tidegate_tier_evictions", "Slices that made room, as the engine counts.",
            lambda row: row.evictions_total),
    _Family(CounterMetricFamily, "tidegate_tier_failures", "Reads and writes that failed, as the engine counts.",
            lambda row: row.failures_total),
    _Family(CounterMetricFamily, "tidegate_tier_corrupt", "Slices whose checksum was wrong; none was served.",
            lambda row: row.corrupt_total),
)  # fmt: skip


class TiersCollector(Collector):
    """Read when somebody asks, perhaps in another thread: rows are copied first."""

    def __init__(self, book: RegistryBook) -> None:
        self._book = book

    def collect(self) -> Iterable[Metric]:
        rows = dict(self._book.rows)
        for each in _FAMILIES:
            family = each.cls(each.name, each.help, labels=("engine", "tier"))
            for (engine_id, tier), row in rows.items():
                if row.measured_ns or not each.measured:
                    family.add_metric((engine_id, tier.value), each.read(row))
            yield family
        yield GaugeMetricFamily("tidegate_registry_slices", "Slices that somebody holds.", self._book.slices_known)
        yield GaugeMetricFamily("tidegate_registry_pinned", "Slices that an operator pinned.", self._book.pins_known)
