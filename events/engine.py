"""Facts about engines: what they are, what was measured on them, whether they answer."""

from enum import StrEnum

import msgspec

from events.base import EngineId, Event, ModelId

STEPS_AHEAD = 1
"""How many steps vLLM, as it ships, schedules before the one in flight has ended (asynchronous scheduling)."""


class EngineKind(StrEnum):
    """Which backend speaks to it."""

    VLLM = "vllm"
    SIMULATED = "simulated"


class Health(StrEnum):
    """`ready` takes work; `draining` finishes what it has; `lost` does not answer."""

    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


class Capability(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine can be asked to do; where it cannot, no policy pretends. `labels` say where it is: `nvlink` (its
    domain), `numa`, `host`, `rack`. `steps_ahead`: so many steps are scheduled before the one in flight has ended, so
    what comes during a step enters that many later (0 = none, or not said). `device_lru`: its device memory evicts what
    was used least recently whatever a directive says, as vLLM's does; directives are for its tiers and victims."""

    llm: bool = True
    embedding: bool = False
    can_preempt: bool = False
    can_prioritise: bool = False
    can_abort: bool = True
    reports_slices: bool = False
    seqs_max: int = 256
    batch_tokens_max: int = 2048
    context_tokens_max: int = 131_072
    steps_ahead: int = 0
    device_lru: bool = False
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class StepModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Time of one engine step, in integer femtoseconds per unit (so that sums are exact).

    t = base + above*max(T-knee,0) + below*min(T,knee) + qk*Aq + context*C + seq*B with T = tokens in the
    step, Aq = sum over prefill chunks of chunk*(prior_context+chunk/2), C = sum of decode context lengths,
    B = decode sequences. Where attention of steps without a prefill chunk has kernels of its own, such a step takes
    decode_base + decode_context*C + decode_seq*B instead; decode_base = 0 means that the one form holds for all.
    `source` names the measurement it was fitted to; "" means a guess.
    """

    base_fs: int
    above_fs: int
    below_fs: int
    knee_tokens: int
    qk_fs: int
    context_fs: int
    seq_fs: int
    source: str = ""
    decode_base_fs: int = 0
    decode_context_fs: int = 0
    decode_seq_fs: int = 0


class EngineRegistered(Event, frozen=True, kw_only=True, tag="engine_registered.v1"):
    """An engine belongs to the pool, with its memory. Said again, it replaces what was said before.

    `kv_blocks` blocks of `block_tokens` tokens, `block_bytes` bytes each (all layers): the KV budget.
    """

    engine_id: EngineId
    kind: EngineKind
    models: tuple[ModelId, ...]
    kv_blocks: int
    block_tokens: int
    block_bytes: int
    capability: Capability = Capability()
    step: StepModel | None = None


class EngineRemoved(Event, frozen=True, kw_only=True, tag="engine_removed.v1"):
    """An engine left the pool: nothing new goes there."""

    engine_id: EngineId


class EngineHealthChanged(Event, frozen=True, kw_only=True, tag="engine_health_changed.v1"):
    """An engine began or stopped answering."""

    engine_id: EngineId
    health: Health
    reason: str = ""


class EngineMeasured(Event, frozen=True, kw_only=True, tag="engine_measured.v1"):
    """What the engine says of itself. Totals count from its start; `kv_used_ppm` is of its KV blocks.

    `evictions_total` counts cached slices (or blocks, as the engine counts) that it dropped to make room;
    `embedding_bytes` is the part of the KV in use that embedding jobs hold, where the engine tells (-1 = it does not).
    `directive_version` is the newest `engine_directed` that it goes by.
    """

    engine_id: EngineId
    running: int
    waiting: int
    kv_used_ppm: int
    preemptions_total: int = 0
    prefix_queries_total: int = 0
    prefix_hits_total: int = 0
    prompt_tokens_total: int = 0
    output_tokens_total: int = 0
    evictions_total: int = 0
    embedding_bytes: int = -1
    directive_version: int = 0


class DeviceMeasured(Event, frozen=True, kw_only=True, tag="device_measured.v1"):
    """What a device says of its memory (NVML), and whose it is: `llm_bytes` and `embedding_bytes` are those of the
    processes of engines that do only that, `shared_bytes` those of engines that do both."""

    host: str
    device: int
    name: str
    bytes_total: int
    bytes_used: int
    llm_bytes: int = 0
    embedding_bytes: int = 0
    shared_bytes: int = 0
    busy_ppm: int = 0


class DevicesUnseen(Event, frozen=True, kw_only=True, tag="devices_unseen.v1"):
    """NVML shows no device on this host, and why: `device_measured` is not to be expected from there."""

    host: str
    reason: str
