"""What goes into a simulated engine, what comes out of it, and a request while it is inside."""

from collections.abc import Hashable
from enum import StrEnum
from typing import NamedTuple

import msgspec

from events.base import RequestId, RequestKind, TenantId
from events.engine import Capability
from replay.engines.prefix_cache import Unit


class SimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is asked to do. `output_tokens` is the true length, which nobody else knows.

    `prefix` names the prompt's leading units of `unit_tokens` tokens (ids under their parents); only full units are
    cached, and only if a unit is a whole number of blocks.

    What an engine may weigh when it must choose a victim within a step: `tenant`, `priority`, when the first token is
    due (`deadline_ns`, in the engine's time), the pace, and the output length that is expected (0 = not known).
    """

    request_id: RequestId
    prompt_tokens: int
    output_tokens: int
    kind: RequestKind = RequestKind.LLM
    prefix: tuple[Hashable, ...] = ()
    unit_tokens: int = 256
    inputs: int = 1
    tenant: TenantId = TenantId("")
    priority: int = 0
    deadline_ns: int = 0
    slo_tpot_ns: int = 0
    output_expected: int = 0


class RefuseReason(StrEnum):
    """Why an engine does not take a request at all."""

    TOO_LONG = "too_long"
    NOT_SERVED = "not_served"


class FirstToken(NamedTuple):
    """The first output token is there."""

    request_id: RequestId
    at_ns: int


class Tokens(NamedTuple):
    """So many output tokens after the first have come since this was last said; the newest at `at_ns`."""

    request_id: RequestId
    tokens: int
    at_ns: int


class Finished(NamedTuple):
    """All output is there (for an embedding: the vectors). `kv_tokens` is what it held at its end."""

    request_id: RequestId
    at_ns: int
    output_tokens: int
    cached_tokens: int
    preemptions: int
    kv_tokens: int


class Refused(NamedTuple):
    """The engine does not take it; nothing was computed."""

    request_id: RequestId
    at_ns: int
    reason: RefuseReason


Outcome = FirstToken | Tokens | Finished | Refused


class Job:
    """A request inside the engine. `emitted` and `told` count output tokens made and said; `serial` is its place in
    the decode clock (0 = not decoding), `joined` the clock's step then. `gone`: it was aborted; `leaving`: it is to
    give way when the step in flight is over; `offered` of its units were offered to the tiers behind. `came_fs` is when
    it was last put into the queue. While its prompt is computed it has blocks for `slots` tokens
    (an embedding: so many are computed, or in the step in flight). `rest` is what it left
    in the cache when it was preempted, behind `rest_behind` units."""

    __slots__ = (
        "cached", "came_fs", "computed", "emitted", "first_ns", "gone", "joined", "leaving", "offered", "preemptions",
        "request", "rest", "rest_behind", "serial", "slots", "target", "told", "unit_blocks", "units", "used_from",
        "window",
    )  # fmt: skip

    def __init__(self, request: SimRequest, block_tokens: int, batch_tokens: int) -> None:
        self.request = request
        self.units: list[Unit] = []
        self.rest: Unit | None = None
        self.rest_behind = self.offered = self.came_fs = self.slots = 0
        self.first_ns = self.emitted = self.told = self.computed = self.preemptions = self.serial = self.joined = 0
        self.cached = -1
        self.used_from = len(request.prefix)
        self.target = request.prompt_tokens
        self.gone = self.leaving = False
        self.unit_blocks, odd = divmod(request.unit_tokens, block_tokens)
        if odd or request.kind is RequestKind.EMBEDDING:
            self.unit_blocks = 0
        self.window = embedding_window(request.prompt_tokens, request.inputs, batch_tokens)

    def full_keys(self) -> tuple[Hashable, ...]:
        """The units of its prompt that can be cached: at least the last token is computed."""
        if not self.unit_blocks:
            return ()
        return self.request.prefix[: min(self.target - 1, self.request.prompt_tokens) // self.request.unit_tokens]

    def tail_blocks(self) -> int:
        """Full blocks of its prompt behind the last unit."""
        request = self.request
        if not self.unit_blocks:
            return 0
        units = min(len(request.prefix), request.prompt_tokens // request.unit_tokens)
        return request.prompt_tokens * self.unit_blocks // request.unit_tokens - units * self.unit_blocks

    def to_come(self) -> int:
        """Tokens of its prompt that are in no step yet."""
        return self.target - (self.slots if self.request.kind is RequestKind.EMBEDDING else self.computed)

    def begun(self) -> int:
        """As many of these as go on before all others: of an embedding those of the input that is begun."""
        if self.request.kind is RequestKind.EMBEDDING:
            longest = -(-self.request.prompt_tokens // self.request.inputs)
            return min(self.to_come(), -self.slots % longest)
        return self.to_come()

    def pairs(self, count: int) -> int:
        """Twice the query-key pairs of its next `count` prompt tokens."""
        if self.request.kind is RequestKind.EMBEDDING:
            return count * (self.request.prompt_tokens // self.request.inputs)
        end = self.computed + count
        return end * end - self.computed * self.computed


def embedding_window(prompt_tokens: int, inputs: int, batch_tokens: int) -> int:
    """Tokens that an embedding request holds at once. Its inputs pass through: a step's worth, or the longest input."""
    return max(-(-prompt_tokens // inputs), min(prompt_tokens, batch_tokens))


def refused(request: SimRequest, capability: Capability, *, kv_tokens: int) -> RefuseReason | None:
    """Why an engine with this much KV does not take it at all; None = it does."""
    embedding = request.kind is RequestKind.EMBEDDING
    if not (capability.embedding if embedding else capability.llm):
        return RefuseReason.NOT_SERVED
    longest = -(-request.prompt_tokens // request.inputs) if embedding else request.prompt_tokens
    most = longest + request.output_tokens
    return RefuseReason.TOO_LONG if most > min(capability.context_tokens_max, kv_tokens) else None
