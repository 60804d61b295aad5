"""What the workers count. Names begin with `tidegate_`; every label is bounded (actors, kinds, reasons, engines)."""

import contextlib
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from events.base import PPM, Event
from events.engine import EngineMeasured

LATENCY_BUCKETS_S: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0)


class ActorMetrics:
    """One actor in this process. Lag is `tidegate_log_seq - tidegate_actor_seq`."""

    def __init__(self, actor: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._actor = actor
        self._decisions = Counter(
            "tidegate_decisions", "Decisions stored, by kind and reason.", ["actor", "kind", "reason"],
            registry=registry,
        )  # fmt: skip
        self._publish = Histogram(
            "tidegate_publish_seconds", "From handing decisions to the log to its acknowledgement.", ["actor"],
            buckets=LATENCY_BUCKETS_S, registry=registry,
        ).labels(actor)  # fmt: skip
        self._seq = Gauge("tidegate_actor_seq", "Last message taken in.", ["actor"], registry=registry).labels(actor)
        self._waiting = Gauge(
            "tidegate_actor_waiting", "Causes whose decisions are not stored yet.", ["actor"], registry=registry
        ).labels(actor)
        self._unknown = Counter(
            "tidegate_unknown_events", "Records of a kind that this version does not know.", ["actor"],
            registry=registry,
        ).labels(actor)  # fmt: skip
        self._quarantined = Gauge(
            "tidegate_quarantined", "Records that this actor skips.", ["actor"], registry=registry
        ).labels(actor)

    def stored(self, decisions: list[Event], seconds: float) -> None:
        """One message with these decisions was acknowledged."""
        self._publish.observe(seconds)
        for event in decisions:
            self._decisions.labels(self._actor, event.event_kind(), str(getattr(event, "reason", ""))).inc()

    def took(self, seq: int, waiting: int) -> None:
        """The actor has taken in everything up to `seq`."""
        self._seq.set(seq)
        self._waiting.set(waiting)

    def unknown(self) -> None:
        """A record was passed over because its kind is unknown."""
        self._unknown.inc()

    def quarantined(self, positions: int) -> None:
        """So many records are skipped."""
        self._quarantined.set(positions)


class LogMetrics:
    """What the auditor and the projector see of the log."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._seq = Gauge("tidegate_log_seq", "Last message read, by reader.", ["reader"], registry=registry)
        self._divergences = Counter(
            "tidegate_divergences", "Decisions that do not follow from the log.", ["actor"], registry=registry
        )
        self._refused = Counter(
            "tidegate_ingest_refused", "Messages that the ingest kept out of the log.", ["reason"], registry=registry
        )
        self._requests = Counter("tidegate_requests", "Requests by how they ended.", ["outcome"], registry=registry)

    def read(self, reader: str, seq: int) -> None:
        """A reader has taken in everything up to `seq`."""
        self._seq.labels(reader).set(seq)

    def diverged(self, actor: str) -> None:
        """One cause was answered differently than the log demands."""
        self._divergences.labels(actor).inc()

    def refused(self, reason: str, count: int) -> None:
        """The ingest refused so many messages."""
        self._refused.labels(reason).inc(count)

    def ended(self, outcome: str, count: int = 1) -> None:
        """Requests ended: `finished`, a reject reason or an abort reason."""
        self._requests.labels(outcome).inc(count)


class EngineMetrics:
    """Engines as the pool sees them: what they say of themselves, and what admission predicted."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._kv = Gauge("tidegate_engine_kv_used_ratio", "KV blocks in use.", ["engine"], registry=registry)
        self._running = Gauge("tidegate_engine_running", "Requests being served.", ["engine"], registry=registry)
        self._waiting = Gauge("tidegate_engine_waiting", "Requests waiting inside.", ["engine"], registry=registry)
        self._predicted = Counter(
            "tidegate_predicted_output_tokens", "Output tokens predicted at admission.", ["engine"], registry=registry
        )
        self._actual = Counter(
            "tidegate_actual_output_tokens", "Output tokens of the same requests.", ["engine"], registry=registry
        )

    def measured(self, event: EngineMeasured) -> None:
        """An engine spoke of itself."""
        self._kv.labels(event.engine_id).set(event.kv_used_ppm / PPM)
        self._running.labels(event.engine_id).set(event.running)
        self._waiting.labels(event.engine_id).set(event.waiting)

    def finished(self, engine_id: str, *, predicted: int, actual: int) -> None:
        """A request whose length was predicted has ended."""
        self._predicted.labels(engine_id).inc(predicted)
        self._actual.labels(engine_id).inc(actual)

    def removed(self, engine_id: str) -> None:
        """An engine left: its gauges go with it."""
        for gauge in (self._kv, self._running, self._waiting):
            with contextlib.suppress(KeyError):  # It was never measured.
                gauge.remove(engine_id)
