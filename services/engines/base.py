"""What an engine is to the rest of the house: one Protocol, two kinds (vLLM over HTTP, simulated)."""

from collections.abc import AsyncIterator, Mapping
from typing import Final, NamedTuple, Protocol

from events.base import EngineId, Event, ModelId, RequestId, RequestKind, TenantId
from events.decisions import EngineDirected, TransferCancelled, TransferOrdered
from events.engine import Capability, EngineMeasured, EngineRegistered
from kvstore.schema import KVCacheSchema

STATUS_ABORTED: Final = 499
"""Status of the EngineError that ends a call which was aborted by name."""


class EngineError(Exception):
    """An engine failed. `lost`: it did not answer or broke off (the request may be offered again elsewhere);
    else it answered `status` with `body` (OpenAI's error shape), which the client gets as it is."""

    def __init__(self, what: str, *, engine_id: EngineId, lost: bool, status: int = 502, body: bytes = b"") -> None:
        super().__init__(what)
        self.what, self.engine_id, self.lost, self.status, self.body = what, engine_id, lost, status, body

    def __str__(self) -> str:
        return f"engine {self.engine_id}: {self.what}"


class Call(NamedTuple):
    """One request on its way to an engine. `path` is the client's (`/v1/chat/completions`, ...), `body` the JSON
    that the engine gets. `prompt_tokens`, `tokens_max`, `slices` and `slice_tokens` are what the gateway counted:
    the simulated engine has nothing else to go by. `output_tokens` is set only where a workload dictates it.
    `inputs`: prompts in it, whose tokens `prompt_tokens` counts together.

    What an engine of ours may weigh when it must choose a victim within a step: `tenant`, `priority`, when the first
    token is due (`deadline_ns`, in the steady time of `PoolClock`), the pace `slo_tpot_ns`, and the length that
    admission expects (`output_expected`). 0 = not known."""

    request_id: RequestId
    model: ModelId
    kind: RequestKind
    path: str
    body: bytes
    stream: bool
    prompt_tokens: int
    tokens_max: int
    slices: tuple[str, ...] = ()
    slice_tokens: int = 256
    output_tokens: int = 0
    inputs: int = 1
    tenant: TenantId = TenantId("")
    priority: int = 0
    deadline_ns: int = 0
    slo_tpot_ns: int = 0
    output_expected: int = 0


class Usage(NamedTuple):
    """What the engine says that a request used (-1 = it did not say). `embedding_bytes`: what an embedding job held at
    once (0 = no embedding, or it does not tell)."""

    prompt_tokens: int = -1
    output_tokens: int = -1
    cached_tokens: int = 0
    preemptions: int = 0
    finish_reason: str = ""
    embedding_bytes: int = 0


class Chunk(NamedTuple):
    """A piece of the answer, to be passed on as it is. `tokens`: output tokens in it. `at_ns`: the steady
    time (`PoolClock`) at which the engine made the last of them where the engine's time is modelled, else 0. Of a
    modelled stream the first token stands alone, so that its time is known.

    `usage` of a stream stands in a piece of its own, so that it can be kept from a client that did not ask; a
    non-stream answer is one piece with everything. Where the engine says nothing of usage, none has it."""

    data: bytes
    tokens: int = 0
    at_ns: int = 0
    usage: Usage | None = None
    status: int = 200
    content_type: str = "application/json"


class InferenceBackend(Protocol):
    """One engine. All calls may raise EngineError."""

    engine_id: EngineId

    def get_kv_schema(self) -> KVCacheSchema | None:
        """KV format of its model; None where neither configuration nor engine tells (then blocks are counted)."""
        ...

    def get_capability(self) -> Capability:
        """What it can be asked to do."""
        ...

    async def describe(self) -> EngineRegistered:
        """What it is, for the log: models, KV blocks, capability; asks the engine where it can."""
        ...

    def submit(self, call: Call) -> AsyncIterator[Chunk]:
        """Run a request; its answer in pieces, the first as soon as there is one. Closing the iterator before its
        end aborts the work in the engine. A non-stream answer is one chunk."""
        ...

    async def abort(self, request_id: RequestId) -> None:
        """Stop the work on a request; no error when it is not there. Who reads its answer gets EngineError (not
        lost, STATUS_ABORTED)."""
        ...

    async def preempt(self, request_id: RequestId) -> bool:
        """Take a running request's KV away; its answer stays open and goes on after `resume`. False: it does not run
        here (now), or the engine cannot (`Capability.can_preempt`)."""
        ...

    async def resume(self, request_id: RequestId) -> None:
        """Let a preempted request go on: its prompt and what it has said so far are computed anew, nothing is said
        twice. No error when it is not there."""
        ...

    async def direct(self, directive: EngineDirected) -> None:
        """What it goes by from now on when it must choose within a step. An engine that takes no directives ignores
        it, and never reports its version."""
        ...

    async def order(self, order: TransferOrdered | TransferCancelled) -> None:
        """Move slices between its tiers, or begin no more of that. What became of an order stands in `slice_facts`,
        once. An engine whose slices somebody else looks after (its agent reads the log itself) ignores it."""
        ...

    async def slice_facts(self, *, measure: bool) -> list[Event]:
        """What changed in its tiers since this was last asked, for the log; with `measure`, also what they hold now,
        else only where an order has ended. Nothing where somebody else reports it, or there are no tiers."""
        ...

    async def metrics(self) -> EngineMeasured:
        """What it says of itself now. EngineError(lost=True) when it does not answer."""
        ...

    async def tokenize(self, path: str, body: bytes) -> list[int] | None:
        """The prompt's token ids as the engine would see them; None where it cannot tell."""
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


Backends = Mapping[EngineId, InferenceBackend]
