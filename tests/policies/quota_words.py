"""Short words for quota's events: an engine of 100,000 bytes that serves both kinds, and requests that hold parts of
it."""

from typing import Any

from events.base import PPM, EngineId, Event, RequestId, RequestKind, TenantId
from events.control import PolicyConfigured
from events.decisions import (
    DeferReason,
    PreemptReason,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    ShareReason,
    SharesSet,
)
from events.engine import EngineRegistered
from events.quota import ShareBoundsAsked, TenantQuotaAsked
from policies.quota import QUOTA
from tests.policies.words import S, arrived, engine, measured, tick
from tests.spec import At, Spec, at, given

BOTH = {"llm": True, "embedding": True}


def both(name: str = "e1", **more: Any) -> EngineRegistered:
    """100,000 bytes of KV for LLM requests and embedding jobs."""
    return engine(name, **(BOTH | more))


def asks(name: str, kind: RequestKind = RequestKind.LLM, prompt: int = 100) -> Event:
    return arrived(name, prompt, kind=kind)


def admitted(name: str, amount: int, on: str = "e1") -> RequestAdmitted:
    """`amount` bytes are held for it there."""
    return RequestAdmitted(
        request_id=RequestId(name), engine_id=EngineId(on), output_tokens_predicted=0, kv_cache_tokens=1,
        kv_bytes_reserved=amount, ttft_predicted_ns=1, slo_slack_ns=1,
    )  # fmt: skip


def deferred(name: str) -> RequestDeferred:
    return RequestDeferred(request_id=RequestId(name), until_ns=0, reason=DeferReason.KV_BUDGET)


def rejected(name: str, reason: RejectReason = RejectReason.DEADLINE_PASSED) -> RequestRejected:
    return RequestRejected(request_id=RequestId(name), reason=reason)


def preempted(name: str, on: str = "e1") -> RequestPreempted:
    return RequestPreempted(
        request_id=RequestId(name), engine_id=EngineId(on), for_request=RequestId("other"),
        reason=PreemptReason.MORE_URGENT,
    )  # fmt: skip


def shares(embedding_percent: float, reason: ShareReason = ShareReason.LOAD_MOVED, on: str = "e1") -> dict[str, Any]:
    """The fields of a decision that gives embedding jobs so much."""
    embedding_ppm = round(embedding_percent * PPM / 100)
    return {
        "cls": SharesSet, "engine_id": on, "reason": reason,
        "embedding_ppm": embedding_ppm, "llm_ppm": PPM - embedding_ppm,
    }  # fmt: skip


def bounds(low: int, high: int, on: str = "") -> ShareBoundsAsked:
    """Bounds in percent."""
    return ShareBoundsAsked(
        engine_id=EngineId(on), embedding_min_ppm=low * PPM // 100, embedding_max_ppm=high * PPM // 100
    )


def tenant(name: str, kv_bytes_max: int) -> TenantQuotaAsked:
    return TenantQuotaAsked(tenant=TenantId(name), kv_bytes_max=kv_bytes_max)


def quota(**changes: Any) -> PolicyConfigured:
    """Change quota's settings."""
    return PolicyConfigured(actor="quota", settings=changes)


WIDE = quota(embedding_min_ppm=50_000, embedding_max_ppm=500_000, deadband_ppm=20_000, step_max_ppm=100_000)
"""Room to move: 5 % to 50 %, by 10 % at most, not for less than 2 %."""


def second(n: int, *events: Event, fresh: tuple[str, ...] = ("e1",)) -> list[At]:
    """What is said within a second, then the engines' measurements and the tick that ends it."""
    return [at(n * S, event) for event in (*events, *(measured(name) for name in fresh), tick(n))]


def armed(*events: Event) -> Spec:
    """Quota after its first period with one engine and no load: the share rests at its least."""
    return given(QUOTA, WIDE, both(), *events, *second(0), *second(1))
