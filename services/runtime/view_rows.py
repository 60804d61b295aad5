"""What stands in the views: one small JSON value per engine, request, tenant, predictor, device.

Predicted stands beside actual: what admission said when it sent a request, and what its holder said when it ended.
"""

from enum import StrEnum

import msgspec


class View(StrEnum):
    """The tables. In Redis: `tg:{<pool>}:<view>`."""

    ENGINES = "engines"
    REQUESTS = "requests"
    FINISHED = "finished"
    TENANTS = "tenants"
    SHARES = "shares"
    PREDICTORS = "predictors"
    DEVICES = "devices"
    SHADOWS = "shadows"
    COUNTERS = "counters"


class Stage(StrEnum):
    """How far a request is."""

    ARRIVED = "arrived"
    DEFERRED = "deferred"
    ADMITTED = "admitted"
    DISPATCHED = "dispatched"
    STREAMING = "streaming"
    PREEMPTED = "preempted"


class Promise(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was predicted of a request when it was sent: see `RequestAdmitted`."""

    output_tokens_low: int = 0
    output_tokens: int = 0
    kv_cache_tokens: int = 0
    kv_bytes: int = 0
    embedding_workspace_bytes: int = 0
    cached_tokens: int = 0
    ttft_ns: int = 0
    slo_slack_ns: int = 0
    predictor: str = ""


class RequestRow(msgspec.Struct, kw_only=True):
    """A request that has not ended. `kv_bytes_reserved` is what it holds of its engine's promises now; `evictions`
    counts how often it was preempted."""

    tenant: str
    model: str
    kind: str
    holder: str
    stage: Stage
    arrived_ns: int
    engine: str = ""
    kv_bytes_reserved: int = 0
    predicted: Promise = Promise()
    evictions: int = 0


class FinishedRow(msgspec.Struct, kw_only=True):
    """One of the newest requests that were answered, predicted beside actual. `evictions` are the orders to make room,
    `preemptions` what the engine did of its own accord or on such an order."""

    tenant: str
    model: str
    kind: str
    engine: str
    predicted: Promise
    output_tokens: int
    kv_cache_tokens: int
    kv_bytes: int
    embedding_workspace_bytes: int
    cached_tokens: int
    ttft_ns: int
    slo_slack_ns: int
    evictions: int
    preemptions: int


class EngineRow(msgspec.Struct, kw_only=True):
    """An engine: what it is, what it says of itself, and what admission has promised away of it.

    `kv_cache_usage_bytes` is what is used, `kv_bytes_reserved` what is promised. `eviction_count` is the engine's own
    count of cached slices or blocks that it dropped; `preemptions` its count of requests; `preempted` counts orders of
    admission. `embedding_bytes` is -1 where the engine does not tell. The sums of predicted and actual amounts are over
    finished requests.
    """

    kind: str = ""
    models: tuple[str, ...] = ()
    kv_bytes: int = 0
    block_tokens: int = 0
    block_bytes: int = 0
    can_preempt: bool = False
    health: str = ""
    running: int = 0
    waiting: int = 0
    kv_used_ppm: int = 0
    kv_cache_usage_bytes: int = 0
    eviction_count: int = 0
    preemptions: int = 0
    directive_version: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    embedding_bytes: int = -1
    embedding_bytes_reserved: int = 0
    admitted: int = 0
    preempted: int = 0
    kv_bytes_reserved: int = 0
    output_tokens_predicted: int = 0
    output_tokens_actual: int = 0
    kv_cache_tokens_predicted: int = 0
    kv_cache_tokens_actual: int = 0
    embedding_workspace_bytes_predicted: int = 0
    embedding_workspace_bytes_actual: int = 0


class TenantRow(msgspec.Struct, kw_only=True):
    """A tenant's requests in all. `kv_bytes` is promised to them now, `kv_bytes_max` its quota (0 = none)."""

    arrived: int = 0
    finished: int = 0
    rejected: int = 0
    aborted: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    kv_bytes: int = 0
    kv_bytes_max: int = 0


class Enforced(StrEnum):
    """How a share holds. `cap`: engines preallocate, so no byte moves; admission promises no more to either kind."""

    CAP = "cap"


class ShareRow(msgspec.Struct, kw_only=True):
    """How an engine's KV memory is divided ("pool" = the pool as a whole); the bytes are 0 where it is not known."""

    llm_ppm: int
    embedding_ppm: int
    reason: str
    llm_bytes: int = 0
    embedding_bytes: int = 0
    enforced: Enforced = Enforced.CAP


class PredictorRow(msgspec.Struct, kw_only=True):
    """A predictor of output length, since the log began: of `finished` answers `covered` ended within its upper bound.
    `stood_in` counts answers that it gave because the configured predictor failed or knew nothing yet. `alarm`: it
    misses its target now, by admission's own count of late answers (`coverage_ppm_late`)."""

    asked: int = 0
    stood_in: int = 0
    finished: int = 0
    covered: int = 0
    output_tokens_predicted: int = 0
    output_tokens_actual: int = 0
    alarm: bool = False
    alarms: int = 0
    target_ppm: int = 0
    coverage_ppm_late: int = 0


class DeviceRow(msgspec.Struct, kw_only=True):
    """A device, as NVML says; or, under its host's name alone, why NVML shows none there (`unseen`)."""

    name: str = ""
    bytes_total: int = 0
    bytes_used: int = 0
    llm_bytes: int = 0
    embedding_bytes: int = 0
    shared_bytes: int = 0
    busy_ppm: int = 0
    unseen: str = ""


class ShadowRow(msgspec.Struct, kw_only=True):
    """What a second policy would have said beside an actor, as its newest shadow said last: see `ShadowCompared`."""

    policy: str
    since_seq: int
    to_seq: int
    words: int
    same: int
    amounts: int
    outcomes: int
    standing: int
    wakes: int
    failed: str
    ended: bool
