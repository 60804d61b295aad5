"""A simulated engine behind the same Protocol as a real one: `LightEngine` driven by the pool's clock.

The engine's time is the pool clock's steady time: as fast as the pool's, also while the log is away. The process wakes
every few milliseconds of wall time, not for every token: what came meanwhile is one piece of the answer, with the
modelled time of its last token. What it measures does not depend on how busy this machine is.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from events.base import NS_PER_S, EngineId, Event, ModelId, RequestId, RequestKind
from events.decisions import EngineDirected, TransferCancelled, TransferOrdered
from events.engine import STEPS_AHEAD, Capability, EngineKind, EngineMeasured, EngineRegistered
from events.slice import Tier
from kvstore.schema import KVCacheSchema
from replay.costmodel import PROFILE_DEFAULT, PROFILES
from replay.engines.carrier import Peer
from replay.engines.job import Finished, Job, Outcome, Refused, RefuseReason, SimRequest, Tokens
from replay.engines.light import LightEngine
from replay.engines.tier_cache import SliceAt
from replay.engines.tiers import TierSizes
from services.engines.base import STATUS_ABORTED, Call, Chunk, EngineError, InferenceBackend, Usage
from services.engines.simulated_answer import DONE, AnswerWriter, refusal
from services.engines.stream import CONTENT_TYPE
from services.runtime.config import ConfigError, EngineConfig
from services.runtime.pool_clock import PoolClock

WAKE_S: Final = 0.004
"""Wall time between two looks at the engine while somebody reads a stream."""
SLEEP_S_MIN: Final = 0.0005


class _Reader:
    """Who waits for a request's outcomes."""

    __slots__ = ("mail", "stream")

    def __init__(self, *, stream: bool) -> None:
        self.mail: asyncio.Queue[Outcome | EngineError] = asyncio.Queue()
        self.stream = stream


class SimulatedBackend:
    """See `services.engines.base.InferenceBackend`. One choice per request, whatever `n` says."""

    def __init__(
        self, config: EngineConfig, *, clock: PoolClock,
        others: Callable[[EngineId], InferenceBackend | None] = lambda _id: None,
    ) -> None:  # fmt: skip
        """`others` finds the engines of this process by id: slices are copied to simulated ones only. Raises
        ConfigError for a `step_model` that does not exist."""
        self.engine_id = EngineId(config.id)
        self._registered = registered(config)
        self._schema = _schema_of(config)
        self._clock = clock
        self._engine = LightEngine(self._registered, now_ns=clock.steady_ns(), tiers=tiers_of(config), peers=self._peer)
        self._others = others
        self._readers: dict[RequestId, _Reader] = {}
        self._wake = asyncio.Event()
        self._driver: asyncio.Task[None] | None = None
        self._closed = False

    def get_kv_schema(self) -> KVCacheSchema | None:
        """Of the configured model."""
        return self._schema

    def get_capability(self) -> Capability:
        """As configured."""
        return self._registered.capability

    async def describe(self) -> EngineRegistered:
        """What it is; its step times are known exactly."""
        self._check_open()
        return self._registered

    async def submit(self, call: Call) -> AsyncIterator[Chunk]:
        """See the Protocol."""
        self._check_open()
        if call.request_id in self._readers:
            raise EngineError("a request with this id is running", engine_id=self.engine_id, lost=False, status=409)
        reader = _Reader(stream=call.stream)
        answer = AnswerWriter(call, created_s=self._clock.now_ns() // NS_PER_S)
        self._readers[call.request_id] = reader
        try:
            asked = _sim_request(call, answer)
            self._engine.submit(asked, self._clock.steady_ns())
            self._start_driver()
            told = 0
            while True:
                mail = await reader.mail.get()
                if isinstance(mail, EngineError):
                    raise mail
                if isinstance(mail, Refused):
                    raise _refused(self.engine_id, mail.reason)
                if isinstance(mail, Finished):
                    workspace = _workspace_bytes(self._registered, asked)
                    for chunk in _last_chunks(call, answer, mail, embedding_bytes=workspace):
                        yield chunk
                    return
                _, count, at_ns = mail if isinstance(mail, Tokens) else (mail.request_id, 1, mail.at_ns)
                if call.stream:
                    yield Chunk(answer.tokens(told, count), tokens=count, at_ns=at_ns, content_type=CONTENT_TYPE)
                told += count
        finally:
            if self._readers.pop(call.request_id, None) is not None:
                self._engine.abort(call.request_id, self._clock.steady_ns())

    async def abort(self, request_id: RequestId) -> None:
        """Free what it holds; whoever reads it gets EngineError(lost=False, status=499)."""
        reader = self._readers.pop(request_id, None)
        if reader is not None:
            self._engine.abort(request_id, self._clock.steady_ns())
            reader.mail.put_nowait(EngineError("aborted", engine_id=self.engine_id, lost=False, status=STATUS_ABORTED))

    async def preempt(self, request_id: RequestId) -> bool:
        """See the Protocol: its blocks are free when the step in flight is over."""
        self._check_open()
        if request_id not in self._readers or not self._engine.preempt(request_id, self._clock.steady_ns()):
            return False
        self._start_driver()
        return True

    async def resume(self, request_id: RequestId) -> None:
        """See the Protocol: it goes to the end of the engine's own queue."""
        self._check_open()
        if request_id in self._readers:
            self._engine.resume(request_id, self._clock.steady_ns())
            self._start_driver()

    async def direct(self, directive: EngineDirected) -> None:
        """See the Protocol."""
        self._check_open()
        self._engine.direct(directive)

    async def order(self, order: TransferOrdered | TransferCancelled) -> None:
        """See the Protocol."""
        self._check_open()
        steady_ns = self._clock.steady_ns()
        if isinstance(order, TransferOrdered) and order.until_ns:
            # The engine's time is not the pool's.
            until_ns = max(1, order.until_ns - self._clock.now_ns() + steady_ns)
            order = msgspec.structs.replace(order, until_ns=until_ns)
        self._engine.order(order, steady_ns)
        self._start_driver()

    async def slice_facts(self, *, measure: bool) -> list[Event]:
        """See the Protocol."""
        self._check_open()
        self._step()
        return self._engine.slice_facts(measure=measure)

    async def metrics(self) -> EngineMeasured:
        """As of now."""
        self._check_open()
        self._step()
        return self._engine.measured()

    async def tokenize(self, path: str, body: bytes) -> list[int] | None:  # noqa: ARG002 - it has no words of its own
        """It has no tokenizer."""
        return None

    async def close(self) -> None:
        """The engine is gone: calls in flight, and every later one, end with EngineError(lost=True)."""
        self._closed = True
        readers, self._readers = self._readers, {}
        for reader in readers.values():
            reader.mail.put_nowait(self._gone())
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)

    def accept(self, at: SliceAt, tier: Tier, now_ns: int) -> bool:
        """See `replay.engines.carrier.Peer`."""
        return not self._closed and self._engine.accept(at, tier, now_ns)

    def _peer(self, engine_id: EngineId) -> Peer | None:
        other = self._others(engine_id)
        return other if isinstance(other, SimulatedBackend) else None

    def _check_open(self) -> None:
        if self._closed:
            raise self._gone()

    def _gone(self) -> EngineError:
        return EngineError("the engine is gone", engine_id=self.engine_id, lost=True)

    def _start_driver(self) -> None:
        self._wake.set()
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive(), name=f"engine-{self.engine_id}")

    async def _drive(self) -> None:
        """Look at the engine as often as somebody can tell the difference; ends when there is nothing to do."""
        while (next_ns := self._step()) is not None:
            wait_s = max(SLEEP_S_MIN, self._clock.wall_s(next_ns - self._clock.steady_ns()))
            if any(reader.stream for reader in self._readers.values()):
                wait_s = min(wait_s, WAKE_S)
            self._wake.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _step(self) -> int | None:
        """Bring the engine to the present and hand out what came; when something can come next."""
        for outcome in self._engine.run_until(self._clock.steady_ns()):
            ended = isinstance(outcome, Finished | Refused)
            reader = self._readers.pop(outcome.request_id, None) if ended else self._readers.get(outcome.request_id)
            if reader is not None:
                reader.mail.put_nowait(outcome)
        return self._engine.next_outcome_ns()  # Whoever ordered something looks by itself whether it is done.


def registered(config: EngineConfig) -> EngineRegistered:
    """A simulated engine as its configuration describes it: memory of the profile where none is named. Raises
    ConfigError for a `step_model` that does not exist."""
    name = config.step_model or PROFILE_DEFAULT
    if name not in PROFILES:
        key = f"engines.{config.id}.step_model"
        raise ConfigError(f"{name!r} is not known", where="config", key=key, allowed=", ".join(sorted(PROFILES)))
    profile, schema = PROFILES[name], _schema_of(config)
    return EngineRegistered(
        engine_id=EngineId(config.id),
        kind=EngineKind.SIMULATED,
        models=tuple(ModelId(model) for model in config.models),
        kv_blocks=config.kv_blocks or profile.kv_tokens() // config.block_tokens,
        block_tokens=config.block_tokens,
        block_bytes=schema.token_bytes() * config.block_tokens,
        capability=Capability(
            llm=config.llm,
            embedding=config.embedding,
            can_preempt=True,
            reports_slices=bool(config.dram_bytes),
            seqs_max=config.seqs_max,
            steps_ahead=STEPS_AHEAD,
            batch_tokens_max=config.batch_tokens_max,
            context_tokens_max=config.context_tokens_max,
            labels=dict[str, str](config.labels.items()),
        ),
        step=profile.step,
    )


def tiers_of(config: EngineConfig) -> TierSizes | None:
    """What stands behind a simulated engine's memory, if anything does."""
    if not config.dram_bytes:
        return None
    return TierSizes(
        dram_bytes=config.dram_bytes, ssd_bytes=config.ssd_bytes, dram_bytes_per_s=config.dram_bytes_per_s,
        ssd_read_bytes_per_s=config.ssd_read_bytes_per_s, ssd_write_bytes_per_s=config.ssd_write_bytes_per_s,
        peer_bytes_per_s=config.peer_bytes_per_s,
    )  # fmt: skip


def _schema_of(config: EngineConfig) -> KVCacheSchema:
    schema = config.kv_schema or PROFILES.get(config.step_model or PROFILE_DEFAULT, PROFILES[PROFILE_DEFAULT]).kv
    return msgspec.structs.replace(schema, block_tokens=config.block_tokens)


def _sim_request(call: Call, answer: AnswerWriter) -> SimRequest:
    embedding = call.kind is RequestKind.EMBEDDING
    return SimRequest(
        request_id=call.request_id,
        prompt_tokens=max(1, call.prompt_tokens),
        output_tokens=0 if embedding else answer.output_tokens(),
        kind=call.kind,
        prefix=call.slices,
        unit_tokens=call.slice_tokens,
        inputs=call.inputs,
        tenant=call.tenant,
        priority=call.priority,
        deadline_ns=call.deadline_ns,
        slo_tpot_ns=call.slo_tpot_ns,
        output_expected=call.output_expected,
    )


def _workspace_bytes(engine: EngineRegistered, asked: SimRequest) -> int:
    """What an embedding job held at once; 0 for any other."""
    if asked.kind is not RequestKind.EMBEDDING:
        return 0
    job = Job(asked, engine.block_tokens, engine.capability.batch_tokens_max)
    return min(-(-job.window // engine.block_tokens), engine.kv_blocks) * engine.block_bytes


def _last_chunks(call: Call, answer: AnswerWriter, finished: Finished, *, embedding_bytes: int) -> list[Chunk]:
    full = finished.output_tokens == call.tokens_max
    usage = Usage(
        prompt_tokens=call.prompt_tokens,
        output_tokens=finished.output_tokens,
        cached_tokens=finished.cached_tokens,
        preemptions=finished.preemptions,
        finish_reason="length" if full else "stop",
        embedding_bytes=embedding_bytes,
    )
    if not call.stream:
        data = answer.whole(usage)
        return [Chunk(data, tokens=usage.output_tokens, at_ns=finished.at_ns, usage=usage)]
    return [
        Chunk(answer.end(usage), at_ns=finished.at_ns, content_type=CONTENT_TYPE),
        Chunk(answer.usage(usage), at_ns=finished.at_ns, usage=usage, content_type=CONTENT_TYPE),
        Chunk(DONE, at_ns=finished.at_ns, content_type=CONTENT_TYPE),
    ]


def _refused(engine_id: EngineId, reason: RefuseReason) -> EngineError:
    what = f"refused: {reason}"
    code = "context_length_exceeded" if reason is RefuseReason.TOO_LONG else "not_served"
    return EngineError(what, engine_id=engine_id, lost=False, status=400, body=refusal(what, code))
