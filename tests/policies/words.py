"""Short words for admission's events: an engine with round numbers, requests, and what happens to them.

The engine computes 1 ms per prefill token (in steps of at most 100), 10 ms per step that only decodes, whatever the
context; it has 100 blocks of 10 tokens and promises all of them (tests set `safety_ppm` to 0 where they count).
"""

from typing import Any

from events.base import NS_PER_MS, NS_PER_S, EngineId, HolderId, ModelId, RequestId, RequestKind, SliceId, TenantId
from events.control import PolicyConfigured, Ticked
from events.decisions import ShareReason, SharesSet, TenantQuotaSet
from events.engine import (
    Capability,
    EngineHealthChanged,
    EngineKind,
    EngineMeasured,
    EngineRegistered,
    Health,
    StepModel,
)
from events.request import (
    AbortReason,
    FirstTokenSeen,
    HolderBeat,
    Progress,
    RequestAborted,
    RequestArrived,
    RequestExpired,
    RequestFinished,
)
from tests.spec import START_NS

MS, S = NS_PER_MS, NS_PER_S
FS_PER_MS = 10**12
STEP = StepModel(
    base_fs=10 * FS_PER_MS, above_fs=0, below_fs=0, knee_tokens=0, qk_fs=0, context_fs=0, seq_fs=0, source="round"
)
"""10 ms a step: a prompt of n tokens takes 10 ms per 100 tokens, a decode 10 ms per token."""


def engine(
    name: str = "e1", *, blocks: int = 100, step: StepModel | None = STEP, **capability: Any
) -> EngineRegistered:
    """100 blocks of 10 tokens, 1,000 bytes each; steps of 100 tokens; 8 sequences; 2,000 tokens of context."""
    described: dict[str, Any] = {"seqs_max": 8, "batch_tokens_max": 100, "context_tokens_max": 2_000}
    return EngineRegistered(
        engine_id=EngineId(name), kind=EngineKind.SIMULATED, models=(ModelId("m"),), kv_blocks=blocks,
        block_tokens=10, block_bytes=1_000, capability=Capability(**(described | capability)), step=step,
    )  # fmt: skip


def arrived(
    name: str, prompt: int = 100, *, out: int = 100, slack: int = 1_000 * MS, now: int = 0, holder: str = "h",
    tpot: int = 0, **more: Any,
) -> RequestArrived:  # fmt: skip
    """A request that arrives `now` and wants its first token `slack` later; at most `out` output tokens, streamed."""
    return RequestArrived(
        request_id=RequestId(name), tenant=TenantId(more.pop("tenant", "t")), model=ModelId(more.pop("model", "m")),
        holder=HolderId(holder), prompt_tokens=prompt, tokens_max=out, slo_ttft_ns=slack, slo_tpot_ns=tpot,
        deadline_ns=START_NS + now + slack, slice_tokens=more.pop("slice_tokens", 10),
        stream=more.pop("stream", more.get("kind") is not RequestKind.EMBEDDING), **more,
    )  # fmt: skip


def embedding(name: str, prompt: int = 100, **more: Any) -> RequestArrived:
    """An embedding job."""
    return arrived(name, prompt, out=0, kind=RequestKind.EMBEDDING, **more)


def slices(*names: str) -> tuple[SliceId, ...]:
    return tuple(SliceId(name) for name in names)


def first_token(name: str, engine_id: str = "e1") -> FirstTokenSeen:
    return FirstTokenSeen(request_id=RequestId(name), engine_id=EngineId(engine_id), ttft_ns=1)


def finished(name: str, engine_id: str = "e1", *, out: int = 10) -> RequestFinished:
    return RequestFinished(
        request_id=RequestId(name),
        engine_id=EngineId(engine_id),
        prompt_tokens=1,
        output_tokens=out,
        ttft_ns=1,
        e2e_ns=1,
    )


def aborted(name: str, reason: AbortReason = AbortReason.CLIENT_GONE, **more: Any) -> RequestAborted:
    return RequestAborted(request_id=RequestId(name), reason=reason, **more)


def expired(name: str) -> RequestExpired:
    return RequestExpired(request_id=RequestId(name), waited_ns=1)


def beat(holder: str = "h", epoch: str = "", **progress: int) -> HolderBeat:
    """A holder's beat; keyword arguments are requests and their output tokens."""
    said = tuple(Progress(RequestId(name), tokens) for name, tokens in progress.items())
    return HolderBeat(holder=HolderId(holder), epoch=epoch, progress=said)


def health(name: str, now: Health) -> EngineHealthChanged:
    return EngineHealthChanged(engine_id=EngineId(name), health=now)


def measured(name: str = "e1", *, used_ppm: int = 0, running: int = 0, waiting: int = 0) -> EngineMeasured:
    return EngineMeasured(engine_id=EngineId(name), running=running, waiting=waiting, kv_used_ppm=used_ppm)


def shares(llm_ppm: int, engine_id: str = "e1", *, reason: ShareReason = ShareReason.LOAD_MOVED) -> SharesSet:
    return SharesSet(engine_id=EngineId(engine_id), llm_ppm=llm_ppm, embedding_ppm=1_000_000 - llm_ppm, reason=reason)


def quota(tenant: str, kv_bytes_max: int) -> TenantQuotaSet:
    return TenantQuotaSet(tenant=TenantId(tenant), kv_bytes_max=kv_bytes_max)


def tick(n: int = 1) -> Ticked:
    return Ticked(n=n)


def settings(**changes: Any) -> PolicyConfigured:
    """Change admission's settings."""
    return PolicyConfigured(actor="admission", settings=changes)


EXACT = settings(
    safety_ppm=0, ttft_margin_ppm=1_000_000, output_quantile_ppm=1_000_000, backlog_max_ns=500 * MS, strategy="fifo",
    preemption="off", long_prefill_ns=0, fairness_ppm=0, late_max_ns=0,
)  # fmt: skip
"""No margins: the round numbers are the limits. In order of arrival, and nobody makes room."""
