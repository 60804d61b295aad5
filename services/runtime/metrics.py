"""What the workers count. Names begin with `tidegate_`; every label is bounded (actors, kinds, reasons, engines)."""

from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from events.base import Event

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


class IngestMetrics:
    """What the ingest kept out of the log."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._refused = Counter(
            "tidegate_ingest_refused", "Messages that were kept out of the log.", ["reason"], registry=registry
        )

    def refused(self, reason: str, count: int) -> None:
        """So many messages were kept out."""
        self._refused.labels(reason).inc(count)


class AuditMetrics:
    """What the auditor found."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._seq = Gauge("tidegate_log_seq", "Last message of the log that was read and digested.", registry=registry)
        self._divergences = Counter(
            "tidegate_divergences", "Causes whose answer does not follow from the log.", ["actor"], registry=registry
        )
        self._unheld = Gauge(
            "tidegate_unverified", "1 where an actor's decisions cannot be held against this code.", ["actor"],
            registry=registry,
        )  # fmt: skip

    def read(self, seq: int) -> None:
        """Everything up to `seq` was read."""
        self._seq.set(seq)

    def diverged(self, actor: str) -> None:
        """One cause was answered otherwise than the log demands."""
        self._divergences.labels(actor).inc()

    def holds(self, actor: str, *, verified: bool) -> None:
        """Whether an actor's decisions are held against its decider."""
        self._unheld.labels(actor).set(not verified)
