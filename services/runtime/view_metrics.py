"""The projector's views as metrics. Every label is bounded: kinds, reasons, engines, predictors, devices, and as many
tenants as TENANTS_MAX (the others are one)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from events.base import PPM
from services.runtime.view_rows import DeviceRow, EngineRow, PredictorRow, ShadowRow, ShareRow, TenantRow, View
from services.runtime.views import OTHERS, SLACK_BUCKETS_S, Views

OUTCOMES: Final = ("finished", "rejected", "aborted")
VERDICTS: Final = ("same", "amounts", "outcomes", "standing", "wakes")
TENANTS_MAX: Final = 64
"""Tenants that metrics tell apart: those that hold or may hold memory, first come first."""

Labelled = Iterable[tuple[tuple[str, ...], float]]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


class ViewsCollector(Collector):
    """Read when somebody asks, perhaps in another thread: tables are copied first."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def collect(self) -> Iterable[Metric]:
        tables = {view: dict(rows) for view, rows in self._views.tables.items()}
        yield _family(
            CounterMetricFamily, "tidegate_events", "Events in the log.", ("kind", "reason"),
            ((_kind_and_reason(name), count) for name, count in tables[View.COUNTERS].items()),
        )  # fmt: skip
        tenants: list[TenantRow] = list(tables[View.TENANTS].values())
        outcomes = [((name,), sum(getattr(row, name) for row in tenants)) for name in OUTCOMES]
        yield _family(CounterMetricFamily, "tidegate_requests", "Requests by how they ended.", ("outcome",), outcomes)
        tables[View.TENANTS] = _told_apart(tables[View.TENANTS])
        for each in _FAMILIES:
            yield _family(each.cls, each.name, each.help, (_LABEL[each.view],), _read(each, tables[each.view]))
        yield _family(
            GaugeMetricFamily, "tidegate_share_ratio",
            "Share of the KV memory that requests of a kind may hold, and how that is enforced.",
            ("engine", "kind", "enforced"), _shares(tables[View.SHARES]),
        )  # fmt: skip
        yield _family(
            GaugeMetricFamily, "tidegate_device_memory_bytes", "Memory of a device, and whose it is.",
            ("device", "whose"), _device_memory(tables[View.DEVICES]),
        )  # fmt: skip
        yield _family(
            GaugeMetricFamily, "tidegate_shadow_words", "What the newest shadow said, by how it compares.",
            ("actor", "verdict"), _shadows(tables[View.SHADOWS]),
        )  # fmt: skip
        yield _slack(self._views.slack)


class _Family(NamedTuple):
    """One metric with the key of a view as its label; `read` gives None where there is nothing to tell."""

    view: View
    cls: type[CounterMetricFamily] | type[GaugeMetricFamily]
    name: str
    help: str
    read: Callable[[Any], float | None]


_LABEL: Final = {
    View.ENGINES: "engine", View.TENANTS: "tenant", View.PREDICTORS: "predictor", View.DEVICES: "device",
}  # fmt: skip


def _engine(
    cls: type[CounterMetricFamily] | type[GaugeMetricFamily], name: str, text: str,
    read: Callable[[EngineRow], float | None],
) -> _Family:  # fmt: skip
    return _Family(View.ENGINES, cls, name, text, read)


def _predictor(
    cls: type[CounterMetricFamily] | type[GaugeMetricFamily], name: str, text: str,
    read: Callable[[PredictorRow], float | None],
) -> _Family:  # fmt: skip
    return _Family(View.PREDICTORS, cls, name, text, read)


_FAMILIES: Final[tuple[_Family, ...]] = (
    _engine(GaugeMetricFamily, "tidegate_engine_kv_used_ratio", "KV blocks in use, as the engine says.",
            lambda row: row.kv_used_ppm / PPM),
    _engine(GaugeMetricFamily, "tidegate_engine_kv_cache_usage_bytes", "KV bytes in use, as the engine says.",
            lambda row: row.kv_cache_usage_bytes),
    _engine(GaugeMetricFamily, "tidegate_engine_kv_cache_size_bytes", "KV bytes that there are.",
            lambda row: row.kv_bytes),
    _engine(GaugeMetricFamily, "tidegate_engine_kv_reserved_bytes", "KV bytes promised to requests.",
            lambda row: row.kv_bytes_reserved),
    _engine(GaugeMetricFamily, "tidegate_engine_kv_reserved_ratio", "KV bytes promised to requests, of all.",
            lambda row: row.kv_bytes_reserved / row.kv_bytes if row.kv_bytes else 0.0),
    _engine(GaugeMetricFamily, "tidegate_engine_running", "Requests being served, as the engine says.",
            lambda row: row.running),
    _engine(GaugeMetricFamily, "tidegate_engine_waiting", "Requests waiting inside, as the engine says.",
            lambda row: row.waiting),
    _engine(GaugeMetricFamily, "tidegate_engine_admitted", "Requests admitted to it that have not ended.",
            lambda row: row.admitted),
    _engine(CounterMetricFamily, "tidegate_engine_evictions",
            "Cached slices or blocks that the engine dropped, as it counts.", lambda row: row.eviction_count),
    _engine(CounterMetricFamily, "tidegate_engine_preemptions", "Requests preempted in the engine, as it counts.",
            lambda row: row.preemptions),
    _engine(CounterMetricFamily, "tidegate_preempted", "Requests that admission ordered off the engine.",
            lambda row: row.preempted),
    _engine(CounterMetricFamily, "tidegate_engine_prefix_queries", "Prompt tokens looked up in the prefix cache.",
            lambda row: row.prefix_queries),
    _engine(CounterMetricFamily, "tidegate_engine_prefix_hits", "Prompt tokens found in the prefix cache.",
            lambda row: row.prefix_hits),
    _engine(GaugeMetricFamily, "tidegate_engine_embedding_workspace_bytes",
            "KV bytes that embedding jobs hold, where the engine tells.",
            lambda row: row.embedding_bytes if row.embedding_bytes >= 0 else None),
    _engine(GaugeMetricFamily, "tidegate_engine_embedding_reserved_bytes", "KV bytes promised to embedding jobs.",
            lambda row: row.embedding_bytes_reserved),
    _engine(GaugeMetricFamily, "tidegate_engine_directive_version", "Newest directive that the engine goes by.",
            lambda row: row.directive_version),
    _engine(CounterMetricFamily, "tidegate_predicted_output_tokens", "Output tokens predicted for finished requests.",
            lambda row: row.output_tokens_predicted),
    _engine(CounterMetricFamily, "tidegate_actual_output_tokens", "Output tokens of finished requests.",
            lambda row: row.output_tokens_actual),
    _engine(CounterMetricFamily, "tidegate_predicted_kv_cache_tokens", "KV tokens predicted for finished requests.",
            lambda row: row.kv_cache_tokens_predicted),
    _engine(CounterMetricFamily, "tidegate_actual_kv_cache_tokens", "KV tokens of finished requests at their end.",
            lambda row: row.kv_cache_tokens_actual),
    _engine(CounterMetricFamily, "tidegate_predicted_embedding_workspace_bytes",
            "Workspace predicted for finished embedding jobs.", lambda row: row.embedding_workspace_bytes_predicted),
    _engine(CounterMetricFamily, "tidegate_actual_embedding_workspace_bytes",
            "Workspace of finished embedding jobs, where the engine tells.",
            lambda row: row.embedding_workspace_bytes_actual),
    _Family(View.TENANTS, GaugeMetricFamily, "tidegate_tenant_kv_bytes", "KV bytes promised to a tenant's requests.",
            lambda row: row.kv_bytes),
    _Family(View.TENANTS, GaugeMetricFamily, "tidegate_tenant_kv_max_bytes", "A tenant's quota, where it has one.",
            lambda row: row.kv_bytes_max or None),
    _predictor(CounterMetricFamily, "tidegate_predictor_answers", "Requests that were sent on its word.",
               lambda row: row.asked),
    _predictor(CounterMetricFamily, "tidegate_predictor_fallbacks",
               "Of them, those where the configured predictor failed or knew nothing yet.", lambda row: row.stood_in),
    _predictor(GaugeMetricFamily, "tidegate_predictor_coverage_ratio",
               "Finished answers that ended within its upper bound.",
               lambda row: _ratio(row.covered, row.finished)),
    _predictor(GaugeMetricFamily, "tidegate_predictor_bound_ratio",
               "Its upper bounds, by the output tokens that came.",
               lambda row: _ratio(row.output_tokens_predicted, row.output_tokens_actual)),
    _predictor(GaugeMetricFamily, "tidegate_predictor_miscovers", "1 while it misses its target, as admission noticed.",
               lambda row: row.alarm),
    _predictor(CounterMetricFamily, "tidegate_miscoverage", "How often admission noticed that it misses its target.",
               lambda row: row.alarms),
    _Family(View.DEVICES, GaugeMetricFamily, "tidegate_device_busy_ratio", "Time in which the device did something.",
            lambda row: None if row.unseen else row.busy_ppm / PPM),
)  # fmt: skip


def _read(family: _Family, rows: dict[str, Any]) -> Labelled:
    for name, row in rows.items():
        value = family.read(row)
        if value is not None:
            yield (name,), value


def _told_apart(tenants: dict[str, TenantRow]) -> dict[str, TenantRow]:
    told = {name: row for name, row in tenants.items() if row.kv_bytes or row.kv_bytes_max}
    beyond = list(told)[TENANTS_MAX:]
    if beyond:
        told[OTHERS] = TenantRow(kv_bytes=sum(told.pop(name).kv_bytes for name in beyond))
    return told


def _shares(shares: dict[str, ShareRow]) -> Labelled:
    for name, row in shares.items():
        yield (name, "llm", row.enforced), row.llm_ppm / PPM
        yield (name, "embedding", row.enforced), row.embedding_ppm / PPM


def _device_memory(devices: dict[str, DeviceRow]) -> Labelled:
    for name, row in devices.items():
        for whose in () if row.unseen else ("total", "used", "llm", "embedding", "shared"):
            yield (name, whose), getattr(row, f"bytes_{whose}" if whose in ("total", "used") else f"{whose}_bytes")


def _shadows(shadows: dict[str, ShadowRow]) -> Labelled:
    for actor, row in shadows.items():
        for verdict in VERDICTS:
            yield (actor, verdict), getattr(row, verdict)


def _slack(slack: dict[str, list[int]]) -> Metric:
    """Slack may be negative, so the histogram has no sum."""
    text = "What was left to the deadline at the first token, of finished requests."
    family = HistogramMetricFamily("tidegate_slo_slack_seconds", text, labels=("said",))
    for said, counts in slack.items():
        total, buckets = 0, []
        for bound, count in zip((*map(str, SLACK_BUCKETS_S), "+Inf"), counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric((said,), buckets=buckets, sum_value=None)
    return family


def _kind_and_reason(name: str) -> tuple[str, str]:
    kind, _, reason = name.partition(".")
    return kind, reason


def _family(
    cls: type[CounterMetricFamily] | type[GaugeMetricFamily], name: str, text: str, labels: Sequence[str],
    values: Labelled,
) -> Metric:  # fmt: skip
    family = cls(name, text, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family
