"""What actors say: decisions, with the reason as an enum (bounded, so that it can label a metric)."""

from enum import StrEnum

from events.base import EngineId, Event, HolderId, RequestId


class RejectReason(StrEnum):
    """No GPU work was done. Each is a reason to answer 429, except `rejected_no_engine` (503) and
    `rejected_too_long` (400)."""

    NO_ENGINE = "rejected_no_engine"
    TOO_LONG = "rejected_too_long"
    QUEUE_FULL = "rejected_queue_full"
    SLO_INFEASIBLE = "rejected_slo_infeasible"
    KV_BUDGET = "rejected_kv_budget"
    DEADLINE_PASSED = "rejected_deadline_passed"


class DeferReason(StrEnum):
    """What a deferred request waits for."""

    KV_BUDGET = "kv_budget"
    SEQS_MAX = "seqs_max"
    PREFILL_BACKLOG = "prefill_backlog"
    TPOT_GUARD = "tpot_guard"
    BEHIND_OTHERS = "behind_others"


class Would(StrEnum):
    """In `observe` mode everything is admitted; this is what would have been decided."""

    ADMIT = "admit"
    DEFER = "defer"
    REJECT = "reject"


class RequestAdmitted(Event, frozen=True, kw_only=True, tag="request_admitted.v1"):
    """Send it to this engine. Predicted amounts, to be held against the actual ones.

    `kv_cache_tokens` = prompt (cached part included) + predicted output; `kv_bytes_reserved` the new bytes
    it will hold at its end; `slo_slack_ns` what is left to the deadline after the predicted TTFT.
    `would` is set in observe mode only, with the `reason` that would have been given.
    """

    request_id: RequestId
    engine_id: EngineId
    output_tokens_predicted: int
    cached_tokens_predicted: int = 0
    kv_cache_tokens: int
    kv_bytes_reserved: int
    ttft_predicted_ns: int
    slo_slack_ns: int
    attempt: int = 0
    would: Would | None = None
    reason: str = ""


class RequestDeferred(Event, frozen=True, kw_only=True, tag="request_deferred.v1"):
    """Hold it: it may fit before `until_ns` (pool time). The next word is admit or reject. `work_ns` is the prefill
    work that it brings, as predicted: what those behind it have to wait for."""

    request_id: RequestId
    until_ns: int
    reason: DeferReason
    work_ns: int = 0
    attempt: int = 0


class RequestRejected(Event, frozen=True, kw_only=True, tag="request_rejected.v1"):
    """Do not serve it. `retry_after_ns` is advice for the client (0 = retrying will not help)."""

    request_id: RequestId
    reason: RejectReason
    retry_after_ns: int = 0
    attempt: int = 0


class HolderLost(Event, frozen=True, kw_only=True, tag="holder_lost.v1"):
    """A holder was silent too long, or started anew: these requests of it end (`aborted_holder_lost`), what they
    reserved is free. Client and payload are gone with it, so nothing is admitted again. What it says later, and more
    requests than one message names, are not among them."""

    holder: HolderId
    requests: tuple[RequestId, ...] = ()


class WakeAsked(Event, frozen=True, kw_only=True, tag="wake_asked.v1"):
    """The actor wants a tick at this pool time, not only at the next full second."""

    at_ns: int
