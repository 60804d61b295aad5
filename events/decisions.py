"""What actors say: decisions, with the reason as an enum (bounded, so that it can label a metric)."""

from enum import StrEnum

from events.base import EngineId, Event, HolderId, RequestId, SliceId, TenantId
from events.slice import Tier


class RejectReason(StrEnum):
    """`rejected_*`: no GPU work was done; `evicted_*`: it was preempted, and that work is lost. Each is a reason to
    answer 429, except `rejected_no_engine` (503) and `rejected_too_long` (400)."""

    NO_ENGINE = "rejected_no_engine"
    TOO_LONG = "rejected_too_long"
    QUEUE_FULL = "rejected_queue_full"
    SLO_INFEASIBLE = "rejected_slo_infeasible"
    KV_BUDGET = "rejected_kv_budget"
    DEADLINE_PASSED = "rejected_deadline_passed"
    TENANT_QUOTA = "rejected_tenant_quota"
    EVICTED_DEADLINE_PASSED = "evicted_deadline_passed"


class DeferReason(StrEnum):
    """What a deferred request waits for."""

    KV_BUDGET = "kv_budget"
    SEQS_MAX = "seqs_max"
    PREFILL_BACKLOG = "prefill_backlog"
    TPOT_GUARD = "tpot_guard"
    BEHIND_OTHERS = "behind_others"
    SHARE = "share"
    TENANT_QUOTA = "tenant_quota"
    SESSION_SLOT = "session_slot"
    SET_ASIDE = "set_aside"
    KEPT_FOR_OTHERS = "kept_for_others"
    LATE = "late"


class PreemptReason(StrEnum):
    """Why a running request has to make room."""

    MORE_URGENT = "more_urgent"


class ShareReason(StrEnum):
    """Why shares were set: facts are fresh for the first time, load moved, an operator changed the bounds; or the
    engine is not divided any more (`lifted`): from then on no cap holds there."""

    ARMED = "armed"
    LOAD_MOVED = "load_moved"
    BOUNDS_ASKED = "bounds_asked"
    LIFTED = "lifted"


class Move(StrEnum):
    """What becomes of slices: up to a faster tier, down to a slower one, gone from a tier, or copied to another
    engine's."""

    PROMOTE = "promote"
    DEMOTE = "demote"
    DROP = "drop"
    REPLICATE = "replicate"


class MoveReason(StrEnum):
    """Why slices are moved. Migration: its tier is nearly full (`pressure`), what is worth nothing there (`worthless`),
    what is used often (`hot`), what other engines are asked for (`spread`). Prefetch: a waiting request begins with
    them (`waiting_request`), a session's next turn will (`next_turn`), many requests do (`hot_prefix`)."""

    PRESSURE = "pressure"
    WORTHLESS = "worthless"
    HOT = "hot"
    SPREAD = "spread"
    WAITING_REQUEST = "waiting_request"
    NEXT_TURN = "next_turn"
    HOT_PREFIX = "hot_prefix"


class CancelReason(StrEnum):
    """Why an order is taken back."""

    NOT_NEEDED = "not_needed"
    TOO_LATE = "too_late"
    LINK_SUSPENDED = "link_suspended"
    ENGINE_GONE = "engine_gone"


class Would(StrEnum):
    """In `observe` mode everything is admitted; this is what would have been decided."""

    ADMIT = "admit"
    DEFER = "defer"
    REJECT = "reject"


class RequestAdmitted(Event, frozen=True, kw_only=True, tag="request_admitted.v1"):
    """Send it to this engine. Predicted amounts, to be held against the actual ones.

    `kv_cache_tokens` = prompt (cached part included) + predicted output; `kv_bytes_reserved` the bytes of whole blocks
    that it will hold at its end, shared ones included (its tenant is charged as many); of an embedding job, the
    workspace. `slo_slack_ns` is what is left to the deadline after the predicted TTFT (below 0: it is served late).
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
    output_tokens_low: int = 0
    predictor: str = ""
    embedding_workspace_bytes: int = 0
    resumed: bool = False


class RequestDeferred(Event, frozen=True, kw_only=True, tag="request_deferred.v1"):
    """Hold it: it may fit before `until_ns` (pool time), its latest start; for `late` that is how long it may wait, for
    its deadline cannot be met. The next word is admit, reject, or that it is `late` by now. `work_ns` is the prefill
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


class RequestPreempted(Event, frozen=True, kw_only=True, tag="request_preempted.v1"):
    """Take it off this engine: what it holds there (`kv_bytes_freed`) is for `for_request`. It waits again.

    Without a first token its holder closes the call, and it can be admitted anywhere. With one (only on an engine
    that `can_preempt`) the engine keeps the request without its KV, the stream stays open, and it is admitted again
    there (`resumed`), with `output_tokens` and its prompt to be computed anew. An order that comes too late (the first
    token was sent meanwhile by an engine that cannot preempt) is not carried out: `first_token_seen` says so.
    """

    request_id: RequestId
    engine_id: EngineId
    for_request: RequestId
    reason: PreemptReason
    output_tokens: int = 0
    kv_bytes_freed: int = 0
    attempt: int = 0


class MiscoverageNoticed(Event, frozen=True, kw_only=True, tag="miscoverage_noticed.v1"):
    """Of the last `requests` answers only (or as many as) `coverage_ppm` ended within what `predictor` said, where
    `target_ppm` was wanted. Said once when it goes out of bounds; `cleared` when it is back."""

    predictor: str
    coverage_ppm: int
    target_ppm: int
    requests: int
    cleared: bool = False


class SharesSet(Event, frozen=True, kw_only=True, tag="shares_set.v1"):
    """How an engine's KV memory is divided from now on ("" = the pool as a whole); together 1,000,000.

    On a stock engine memory is preallocated, so a share is a cap: on blocks in use for LLM requests, on the workspace
    of embedding jobs in flight. `urgency_*` are what the division was computed from.
    """

    engine_id: EngineId
    llm_ppm: int
    embedding_ppm: int
    reason: ShareReason
    llm_urgency: int = 0
    embedding_urgency: int = 0


class TenantQuotaSet(Event, frozen=True, kw_only=True, tag="tenant_quota_set.v1"):
    """A tenant's requests hold at most this many bytes of KV in the pool from now on (0 = no limit)."""

    tenant: TenantId
    kv_bytes_max: int


class EngineDirected(Event, frozen=True, kw_only=True, tag="engine_directed.v1"):
    """What an engine goes by when it must choose within a step (a delegated choice): the newest `version` counts.

    `eviction` is the kind of slice eviction ("" = from now on it chooses as it likes); `protect_ppm` of an answer's
    expected length protects it from being preempted; `pinned` and `needed` slices (those that waiting requests begin
    with) are not evicted, `hot` ones last. A reuse counts within `horizon_ns` (0 = as the engine likes).
    """

    engine_id: EngineId
    version: int
    eviction: str
    protect_ppm: int
    pinned: tuple[SliceId, ...] = ()
    needed: tuple[SliceId, ...] = ()
    hot: tuple[SliceId, ...] = ()
    horizon_ns: int = 0


class TransferOrdered(Event, frozen=True, kw_only=True, tag="transfer_ordered.v1"):
    """Move these slices on this engine, first to last. Said by migration and by prefetch, each with `order` ids of its
    own (`m1`, `p1`, ...); carried out once, by the engine's agent, which answers `transfer_finished`.

    A drop has no `to_tier`. A replicate goes to the same tier of `to_engine`. `bytes_planned` go over the link;
    `expected_ns` is what that should take with the queue as it is now, `recompute_ns` what computing them again would
    (0 = no matter). After `until_ns` of pool time it is worth nothing (0 = always worth it). `tries` counts this one.
    """

    order: str
    engine_id: EngineId
    move: Move
    reason: MoveReason
    slices: tuple[SliceId, ...]
    from_tier: Tier
    to_tier: Tier | None = None
    to_engine: EngineId = EngineId("")
    for_request: RequestId = RequestId("")
    bytes_planned: int = 0
    expected_ns: int = 0
    recompute_ns: int = 0
    until_ns: int = 0
    tries: int = 1


class TransferCancelled(Event, frozen=True, kw_only=True, tag="transfer_cancelled.v1"):
    """Do not begin this order any more; what of it has been moved stays. It is answered `transfer_finished` all the
    same (`cancelled`, or what it came to)."""

    order: str
    engine_id: EngineId
    reason: CancelReason


class LinkSuspended(Event, frozen=True, kw_only=True, tag="link_suspended.v1"):
    """Too many transfers out of `from_tier` of this engine failed (`failed` of the last `of`): none is ordered until
    `until_ns`; then one is tried first. `until_ns` 0: the link is in use again."""

    engine_id: EngineId
    from_tier: Tier
    until_ns: int
    failed: int = 0
    of: int = 0


class HolderLost(Event, frozen=True, kw_only=True, tag="holder_lost.v1"):
    """A holder was silent too long, or started anew: these requests of it end (`aborted_holder_lost`), what they
    reserved is free. Client and payload are gone with it, so nothing is admitted again. What it says later, and more
    requests than one message names, are not among them."""

    holder: HolderId
    requests: tuple[RequestId, ...] = ()


class WakeAsked(Event, frozen=True, kw_only=True, tag="wake_asked.v1"):
    """The actor wants a tick at this pool time, not only at the next full second."""

    at_ns: int
