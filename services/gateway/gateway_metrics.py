"""What a gateway counts. Labels are bounded: models come from the configuration, outcomes and kinds are words of
ours. Names as OpenTelemetry has them for GenAI stand beside the house's own."""

from enum import StrEnum
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from events.request import RequestFinished

SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
SECONDS_PER_TOKEN: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3, 1.0)
NS: Final = 1e9


class Preempted(StrEnum):
    """What became of an order to take a request off its engine."""

    CLOSED = "closed"
    PARKED = "parked"
    TOO_LATE = "too_late"


class _OfModel(NamedTuple):
    """What every good end of a model's request counts, looked up once: the look-up costs more than the counting."""

    finished: Counter
    prompt: Counter
    cached: Counter
    output: Counter
    ttft: Histogram
    tpot: Histogram
    duration: Histogram


class GatewayMetrics:
    """Counters of one gateway, in a registry of its own. Times are pool time."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tidegate_gateway_requests", "Requests by how they ended.", ["model", "outcome"], registry=self.registry
        )
        self._passed = Counter(
            "tidegate_gateway_passed", "Requests that went to an engine undecided: the log was down.", ["model"],
            registry=self.registry,
        )  # fmt: skip
        self._retried = Counter(
            "tidegate_gateway_retried", "Requests offered again: their engine was lost.", ["model"],
            registry=self.registry,
        )  # fmt: skip
        self._preempted = Counter(
            "tidegate_gateway_preempted",
            "Orders to take a request off its engine: its call was closed, its stream parked, or it was too late.",
            ["model", "how"], registry=self.registry,
        )  # fmt: skip
        self._late = Counter(
            "tidegate_gateway_late", "Finished requests whose first token came after the deadline.", ["model"],
            registry=self.registry,
        )  # fmt: skip
        self._tokens = Counter(
            "tidegate_gateway_tokens", "Tokens of finished requests.", ["model", "kind"], registry=self.registry
        )
        self._facts_lost = Counter(
            "tidegate_gateway_facts_lost", "Facts that found the queue to the log full.", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        self._turned_away = Counter(
            "tidegate_gateway_turned_away", "Requests that were refused at the door.", ["status"],
            registry=self.registry,
        )  # fmt: skip
        self._ingest_refused = Counter(
            "tidegate_gateway_ingest_refused", "Plain events that were kept out of the log.", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        self._holding = Gauge("tidegate_gateway_holding", "Requests in its hands.", registry=self.registry)
        self._queue = Gauge("tidegate_gateway_facts_waiting", "Facts not stored yet.", registry=self.registry)
        self._ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "Arrival to first token.", ["model"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._tpot = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "Mean time per token after the first.", ["model"],
            buckets=SECONDS_PER_TOKEN, registry=self.registry,
        )  # fmt: skip
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds", "Arrival to last token.", ["model"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip

        self._of_models: dict[str, _OfModel] = {}

    def finished(self, model: str, finished: RequestFinished, *, deadline_ns: int) -> None:
        """A request came to its good end."""
        of_model = self._of_models.get(model) or self._look_up(model)
        of_model.finished.inc()
        of_model.prompt.inc(finished.prompt_tokens)
        of_model.cached.inc(finished.cached_tokens)
        of_model.output.inc(finished.output_tokens)
        of_model.ttft.observe(finished.ttft_ns / NS)
        of_model.duration.observe(finished.e2e_ns / NS)
        if finished.tpot_ns:
            of_model.tpot.observe(finished.tpot_ns / NS)
        if finished.ttft_ns > deadline_ns:
            self._late.labels(model).inc()

    def _look_up(self, model: str) -> _OfModel:
        found = self._of_models[model] = _OfModel(
            finished=self._requests.labels(model, "finished"),
            prompt=self._tokens.labels(model, "prompt"),
            cached=self._tokens.labels(model, "cached"),
            output=self._tokens.labels(model, "output"),
            ttft=self._ttft.labels(model),
            tpot=self._tpot.labels(model),
            duration=self._duration.labels(model),
        )
        return found

    def ended(self, model: str, outcome: str) -> None:
        """A request ended without an answer."""
        self._requests.labels(model, outcome).inc()

    def turned_away(self, status: int) -> None:
        """A request did not come past the door."""
        self._turned_away.labels(str(status)).inc()

    def refused(self, reason: str, count: int) -> None:
        """The ingest kept so many messages out of the log."""
        self._ingest_refused.labels(reason).inc(count)

    def passed(self, model: str) -> None:
        """A request went to an engine undecided."""
        self._passed.labels(model).inc()

    def preempted(self, model: str, how: Preempted) -> None:
        """A request was ordered off its engine."""
        self._preempted.labels(model, how).inc()

    def retried(self, model: str) -> None:
        """A request is offered again."""
        self._retried.labels(model).inc()

    def fact_lost(self, kind: str) -> None:
        """A fact found the queue full."""
        self._facts_lost.labels(kind).inc()

    def beat(self, holding: int, waiting: int) -> None:
        """How much is under way."""
        self._holding.set(holding)
        self._queue.set(waiting)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
