"""Facts about requests: they arrive, run, end. Written by who holds the payload, or by the ingest for it."""

from enum import StrEnum

import msgspec

from events.base import (
    EngineId,
    Event,
    HolderId,
    ModelId,
    RequestId,
    RequestKind,
    SessionId,
    SliceId,
    TenantId,
)


class FinishReason(StrEnum):
    """How an engine ended a request (OpenAI's words)."""

    STOP = "stop"
    LENGTH = "length"
    OTHER = "other"


class AbortReason(StrEnum):
    """Why a request ended without an answer. `aborted_holder_lost` is said by admission, not here."""

    CLIENT_GONE = "aborted_client_gone"
    ENGINE_LOST = "aborted_engine_lost"
    ENGINE_REFUSED = "aborted_engine_refused"
    EXPIRED = "aborted_expired"
    SHUTDOWN = "aborted_shutdown"


class RequestArrived(Event, frozen=True, kw_only=True, tag="request_arrived.v1"):
    """A request asks to be served. The prompt itself never comes here.

    `prompt_tokens` counts tokens (all inputs together for embeddings); `estimated` says that it was guessed
    from bytes. `tokens_max` is the client's cap on output tokens (0 = none given; embeddings have no output).
    `deadline_ns` is pool time by which the first token (or the vector) must be there. `slices` are the
    fingerprints of the full slices of the prompt, first to last, `slice_tokens` tokens each.
    `attempt` is 1 for a request that is offered again after its engine was lost.
    """

    request_id: RequestId
    tenant: TenantId
    model: ModelId
    kind: RequestKind = RequestKind.LLM
    holder: HolderId
    prompt_tokens: int
    estimated: bool = False
    tokens_max: int = 0
    inputs: int = 1
    stream: bool = False
    priority: int = 0
    objective: str = ""
    session: SessionId = SessionId("")
    slo_ttft_ns: int
    slo_tpot_ns: int = 0
    deadline_ns: int
    slices: tuple[SliceId, ...] = ()
    slice_tokens: int = 256
    attempt: int = 0


class DispatchStarted(Event, frozen=True, kw_only=True, tag="dispatch_started.v1"):
    """The holder is about to call the engine; logged before the call."""

    request_id: RequestId
    engine_id: EngineId


class FirstTokenSeen(Event, frozen=True, kw_only=True, tag="first_token_seen.v1"):
    """The first token came back. `ttft_ns` counts from the arrival at the holder. Not said of an answer that comes in
    one piece: nobody saw it."""

    request_id: RequestId
    engine_id: EngineId
    ttft_ns: int


class RequestFinished(Event, frozen=True, kw_only=True, tag="request_finished.v1"):
    """The engine's answer is complete. Actual amounts, to be held against the predicted ones.

    `tpot_ns` is the mean time per output token after the first (0 when there is only one).
    `kv_cache_tokens` is what the request held at its end; `prompt_tokens` is the engine's own count.
    `slo_slack_ns` is what was left to the deadline when the first token (or the vector) was there, below 0 when it was
    late; `embedding_workspace_bytes` what an embedding job held at once, where the engine tells.
    """

    request_id: RequestId
    engine_id: EngineId
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    kv_cache_tokens: int = 0
    ttft_ns: int
    tpot_ns: int = 0
    e2e_ns: int
    preemptions: int = 0
    finish_reason: FinishReason = FinishReason.STOP
    slo_slack_ns: int = 0
    embedding_workspace_bytes: int = 0


class RequestAborted(Event, frozen=True, kw_only=True, tag="request_aborted.v1"):
    """The request ended without a complete answer; what it reserved is free. `final` is false when the holder
    will offer it again (engine lost before the first token)."""

    request_id: RequestId
    reason: AbortReason
    engine_id: EngineId = EngineId("")
    output_tokens: int = 0
    final: bool = True


class RequestExpired(Event, frozen=True, kw_only=True, tag="request_expired.v1"):
    """The slack passed at the holder before any decision came: it answered 503 by its own clock."""

    request_id: RequestId
    waited_ns: int


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far one running request is: [request_id, output tokens so far]."""

    request_id: RequestId
    output_tokens: int


class HolderBeat(Event, frozen=True, kw_only=True, tag="holder_beat.v1"):
    """A holder is alive, and this far with its streams. `epoch` changes when the holder starts anew; "" says nothing
    about that."""

    holder: HolderId
    epoch: str = ""
    progress: tuple[Progress, ...] = ()


class HolderStopped(Event, frozen=True, kw_only=True, tag="holder_stopped.v1"):
    """A holder leaves in good order: nothing of it is running any more."""

    holder: HolderId


class OutputPredicted(Event, frozen=True, kw_only=True, tag="output_predicted.v1"):
    """A predictor outside of the house (`source`) says how long an answer will be: with `upper_ppm` probability at
    most `output_tokens_high`, and probably at least `output_tokens_low`. Said before the request arrives, best in the
    same message; what comes later counts where the request still waits."""

    request_id: RequestId
    source: str
    output_tokens_low: int
    output_tokens_high: int
    upper_ppm: int = 900_000


class OutputTraced(Event, frozen=True, kw_only=True, tag="output_traced.v1"):
    """What a trace knows of a request that its arrival does not say: the output length that it had, and where it stood
    in its session. Stands in imported traces only; engine models read it, no policy does.

    `after` is the request whose end this one waited for ("" = it came at its own time), `think_ns` how long after that
    end it came. `kv_cache_tokens` and `kv_cache_bytes` are what it is expected to hold at its end,
    `embedding_workspace_bytes` what an embedding job holds while it runs (0 = not said). `slo_ttft_min_ns` and
    `slo_ttft_factor` are the envelope that its TTFT limit comes from on any engine (0 = that of the run).
    """

    request_id: RequestId
    output_tokens: int
    after: RequestId = RequestId("")
    think_ns: int = 0
    kv_cache_tokens: int = 0
    kv_cache_bytes: int = 0
    embedding_workspace_bytes: int = 0
    slo_ttft_min_ns: int = 0
    slo_ttft_factor: int = 0
