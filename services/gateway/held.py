"""A request in the hands of its holder, from its arrival to its end."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from events.base import EngineId
from events.decisions import RequestAdmitted, RequestRejected
from events.request import AbortReason, FinishReason, RequestArrived, RequestFinished
from services.engines.base import Call, Chunk, Usage

UNKNOWN_USAGE = Usage()
NO_ENGINE = EngineId("")


class Ask(NamedTuple):
    """What a holder is asked to serve. `arrived` goes into the log; `call` (without body) goes to the engine with the
    body that `body_for` gives it. It came at `arrived_ns` of the pool's time, `mono_ns` of this machine's monotonic
    clock. `keeps_usage`: the usage event of a stream is the holder's, not the client's."""

    arrived: RequestArrived
    arrived_ns: int
    mono_ns: int
    call: Call
    body_for: Callable[[EngineId], bytes]
    keeps_usage: bool = False


class Route(NamedTuple):
    """Where a request goes, and the decision's place in the log ("" = nobody decided: the log was down)."""

    engine_id: EngineId
    cause: str = ""

    @property
    def decided(self) -> bool:
        """Whether a decision that stands in the log says so."""
        return bool(self.cause)


class Sink(Protocol):
    """Where an answer goes. `begin` comes once, before the first `send`; both may wait for a slow client."""

    async def begin(self, route: Route, first: Chunk) -> None:
        """The answer begins: status, content type and engine are known."""
        ...

    async def send(self, data: bytes) -> None:
        """A piece of it."""
        ...


class Word(NamedTuple):
    """A decision that ends the wait, and its place in the log."""

    decision: RequestAdmitted | RequestRejected
    at: str


@dataclass(slots=True)
class Held:
    """See the module. Times are pool time, from the arrival; `deferred_until_ns` is the clock's steady time.
    `output_expected` is what admission promised memory for (0 = nobody decided).

    `calling`: an engine is being called. `closing`: that call is closed, because the request was taken off the engine
    before its answer began. `parking` looks after a stream that was taken off after that."""

    ask: Ask
    task: asyncio.Task[object]
    word: asyncio.Future[Word]
    attempt: int = 0
    calling: bool = False
    closing: bool = False
    parking: asyncio.Task[None] | None = None
    deferred_until_ns: int = 0
    ended: AbortReason | None = None
    lost: bool = False
    engine_id: EngineId = NO_ENGINE
    cause: str = ""
    output_expected: int = 0
    began: bool = False
    output_tokens: int = 0
    ttft_ns: int = 0
    last_ns: int = 0
    usage: Usage = UNKNOWN_USAGE

    def took(self, chunk: Chunk, *, speed: int) -> bool:
        """Account for a piece of the answer; whether it brought the first token."""
        if chunk.usage is not None:
            self.usage = chunk.usage
        if not chunk.tokens and self.ttft_ns:
            return False
        self.last_ns = self._elapsed_ns(chunk, speed)
        self.output_tokens += chunk.tokens
        if self.ttft_ns or not chunk.tokens:
            return False
        self.ttft_ns = self.last_ns
        return True

    def offer_again(self) -> None:
        """Its engine was lost before anything was passed on: from here it is as if it had just come."""
        self.attempt += 1
        self.word = asyncio.get_running_loop().create_future()
        self.deferred_until_ns = self.output_tokens = self.ttft_ns = self.last_ns = 0
        self.usage, self.engine_id, self.cause, self.output_expected = UNKNOWN_USAGE, NO_ENGINE, "", 0

    def wait_again(self, until_ns: int = 0) -> None:
        """It was taken off its engine: the next word says how it goes on. `until_ns` as when it is deferred."""
        self.word = asyncio.get_running_loop().create_future()
        self.deferred_until_ns = until_ns

    def call(self) -> Call:
        """What its engine is asked to do."""
        body = self.ask.body_for(self.engine_id)
        return self.ask.call._replace(body=body, output_expected=self.output_expected)

    def age_s(self) -> float:
        """Wall seconds since it came."""
        return (time.monotonic_ns() - self.ask.mono_ns) / 1e9

    def finished(self, *, speed: int) -> RequestFinished:
        """The fact of its good end, by the engine's own counts where it states them."""
        usage, arrived = self.usage, self.ask.arrived
        output = usage.output_tokens if usage.output_tokens >= 0 else self.output_tokens
        prompt = usage.prompt_tokens if usage.prompt_tokens >= 0 else arrived.prompt_tokens
        ttft_ns = self.ttft_ns or self.last_ns or self._elapsed_ns(None, speed)
        e2e_ns = max(ttft_ns, self.last_ns)
        return RequestFinished(
            request_id=arrived.request_id,
            engine_id=self.engine_id,
            prompt_tokens=prompt,
            output_tokens=output,
            cached_tokens=usage.cached_tokens,
            kv_cache_tokens=prompt + output,
            ttft_ns=ttft_ns,
            tpot_ns=(e2e_ns - ttft_ns) // (output - 1) if output > 1 else 0,
            e2e_ns=e2e_ns,
            preemptions=usage.preemptions,
            finish_reason=_finish_reason(usage.finish_reason),
            slo_slack_ns=arrived.deadline_ns - self.ask.arrived_ns - ttft_ns,
            embedding_workspace_bytes=usage.embedding_bytes,
        )

    def _elapsed_ns(self, chunk: Chunk | None, speed: int) -> int:
        if chunk is not None and chunk.at_ns:
            return max(1, chunk.at_ns - self.ask.mono_ns * speed)
        return max(1, (time.monotonic_ns() - self.ask.mono_ns) * speed)


def _finish_reason(text: str) -> FinishReason:
    if not text or text == FinishReason.STOP:
        return FinishReason.STOP
    return FinishReason.LENGTH if text == FinishReason.LENGTH else FinishReason.OTHER
