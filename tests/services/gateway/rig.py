"""What the gateway's tests share: a log that can be switched off, an admission in this process, a scripted engine."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from events import codec, subjects
from events.base import EngineId, Event, HolderId, LogError, ModelId, PoolId, Recorded, RequestId, RequestKind, TenantId
from events.decisions import (
    EngineDirected,
    PreemptReason,
    RequestAdmitted,
    RequestPreempted,
    TransferCancelled,
    TransferOrdered,
)
from events.engine import Capability, EngineKind, EngineMeasured, EngineRegistered
from events.log.base import Fence
from events.log.memory import MemoryLog
from events.request import HolderBeat, RequestArrived
from policies.decider import Decider, advance, begin
from services.engines.base import Call, Chunk, EngineError, InferenceBackend, Usage
from services.engines.open import Engines
from services.gateway.engine_book import EngineBook
from services.gateway.gateway_metrics import GatewayMetrics
from services.gateway.held import Ask, Route
from services.gateway.holder import Holder, Limits
from services.gateway.log_health import LogHealth
from services.gateway.log_reader import LogReader, admission_of
from services.runtime.config import EngineConfig
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock

MODEL = ModelId("tiny")
Decide = Callable[[Event], list[Event]]


class SwitchLog(MemoryLog):
    """Takes nothing while `off`; what stands in it can still be read."""

    off = False

    async def append(
        self, subject: str, body: bytes, *, msg_id: str = "", fence: Fence | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:  # fmt: skip
        if self.off:
            raise LogError("switched off", where="test")
        return await super().append(subject, body, msg_id=msg_id, fence=fence, headers=headers)


async def records(log: MemoryLog) -> list[Recorded]:
    """All that stands in the log."""
    return [
        recorded
        async for batch in log.read()
        for message in batch
        for recorded in codec.decode(message.seq, message.subject, message.body)
    ]


async def heard(log: MemoryLog, wanted: Callable[[Event], bool]) -> Recorded:
    """The first record that is wanted, once it is there."""
    async for batch in log.read(follow=True):
        for message in batch:
            for recorded in codec.decode(message.seq, message.subject, message.body):
                if wanted(recorded.event):
                    return recorded
    raise AssertionError("a followed log does not end")


async def admit_by(log: MemoryLog, decide: Decide) -> None:
    """An admission of one function: its decisions for each record, as one message."""
    async for batch in log.read(follow=True):
        for message in batch:
            for recorded in codec.decode(message.seq, message.subject, message.body):
                if not recorded.actor:
                    await say_decisions(log, decide(recorded.event), str(recorded.at))


async def admit_for_real(log: MemoryLog, decider: Decider[Any]) -> None:
    """The real policy, driven as the actor drives it."""
    progress = begin(decider)
    async for batch in log.read(follow=True):
        for message in batch:
            for recorded in codec.decode(message.seq, message.subject, message.body):
                await say_decisions(log, advance(decider, progress, recorded), str(recorded.at))


async def say_decisions(log: MemoryLog, decisions: list[Event], cause: str) -> None:
    """One message with all decisions of a cause."""
    if not decisions:
        return
    said = [codec.Said(cause=cause, event=decision) for decision in decisions]
    kind = decisions[0].event_kind() if len(decisions) == 1 else subjects.SEVERAL
    body = codec.encode(owner="test", ts_ns=1, said=said)
    await log.append(subjects.decision(log.pool, "admission", kind), body)


def admitted(arrived: RequestArrived, engine_id: str = "e1") -> RequestAdmitted:
    """A plain admission."""
    return RequestAdmitted(
        request_id=arrived.request_id, engine_id=EngineId(engine_id), output_tokens_predicted=1, kv_cache_tokens=1,
        kv_bytes_reserved=1, ttft_predicted_ns=1, slo_slack_ns=1, attempt=arrived.attempt,
    )  # fmt: skip


def preempted(arrived: RequestArrived, engine_id: str = "e1", output_tokens: int = 0) -> RequestPreempted:
    """It makes room for another."""
    return RequestPreempted(
        request_id=arrived.request_id, engine_id=EngineId(engine_id), for_request=RequestId("urgent"),
        reason=PreemptReason.MORE_URGENT, output_tokens=output_tokens, attempt=arrived.attempt,
    )  # fmt: skip


def admit_to(*engine_ids: str) -> Decide:
    """Admit each attempt to the engine of its number."""

    def decide(event: Event) -> list[Event]:
        return [admitted(event, engine_ids[event.attempt])] if isinstance(event, RequestArrived) else []

    return decide


class ScriptedEngine:
    """Yields what it is told to; an exception in the script is raised, an Event is waited for."""

    def __init__(self, engine_id: str, script: list[Chunk | Exception | asyncio.Event]) -> None:
        self.engine_id = EngineId(engine_id)
        self.script = script
        self.calls: list[Call] = []
        self.closed_early = asyncio.Event()
        self.on_submit: Callable[[], None] = lambda: None
        self.can_preempt = False
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.preempted = asyncio.Event()
        self.told: list[str] = []

    def get_kv_schema(self) -> None:
        return None

    def get_capability(self) -> Capability:
        return Capability(seqs_max=2, can_preempt=self.can_preempt)

    async def describe(self) -> EngineRegistered:
        return registered(self.engine_id)

    async def submit(self, call: Call) -> AsyncIterator[Chunk]:
        self.calls.append(call)
        self.on_submit()
        ended = False
        try:
            for step in self.script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    await self.goes_on.wait()
                    yield step
            ended = True
        finally:
            if not ended:
                self.closed_early.set()

    async def abort(self, request_id: RequestId) -> None:
        return None

    async def preempt(self, request_id: RequestId) -> bool:
        self.goes_on.clear()
        self.preempted.set()
        self.told.append(f"preempt {request_id}")
        return True

    async def resume(self, request_id: RequestId) -> None:
        self.told.append(f"resume {request_id}")
        self.goes_on.set()

    async def direct(self, directive: EngineDirected) -> None:
        self.told.append(f"direct {directive.version}")

    async def order(self, order: TransferOrdered | TransferCancelled) -> None:
        self.told.append(f"{'order' if isinstance(order, TransferOrdered) else 'cancel'} {order.order}")

    async def slice_facts(self, *, measure: bool) -> list[Event]:
        return []

    async def metrics(self) -> EngineMeasured:
        return EngineMeasured(engine_id=self.engine_id, running=0, waiting=0, kv_used_ppm=0)

    async def tokenize(self, path: str, body: bytes) -> None:
        return None

    async def close(self) -> None:
        return None


def registered(engine_id: str) -> EngineRegistered:
    return EngineRegistered(
        engine_id=EngineId(engine_id), kind=EngineKind.VLLM, models=(MODEL,), kv_blocks=100, block_tokens=16,
        block_bytes=1, capability=Capability(seqs_max=2),
    )  # fmt: skip


def answer(*texts: str, usage: Usage | None = None) -> list[Chunk | Exception | asyncio.Event]:
    """A stream of one token per text, with its usage."""
    chunks: list[Chunk | Exception | asyncio.Event] = [Chunk(text.encode(), tokens=1) for text in texts]
    return [*chunks, Chunk(b"usage", usage=usage or Usage(10, len(texts)))]


def lost(engine_id: str = "e1") -> EngineError:
    return EngineError("gone", engine_id=EngineId(engine_id), lost=True)


class Collected:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self.data: list[bytes] = []
        self.got = asyncio.Event()

    async def begin(self, route: Route, first: Chunk) -> None:
        self.route = route

    async def send(self, data: bytes) -> None:
        self.data.append(data)
        self.got.set()


class Rig:
    """A holder with everything around it."""

    def __init__(self, log: SwitchLog, holder: Holder, writer: FactWriter, clock: PoolClock) -> None:
        self.log, self.holder, self.writer, self.clock = log, holder, writer, clock
        self.said = 0

    def ask(self, *, slo_ms: int = 10_000, stream: bool = True, request_id: str = "") -> Ask:
        """A request that arrives now."""
        self.said += 1
        name = RequestId(request_id or f"r{self.said}")
        now_ns = self.clock.now_ns()
        arrived = RequestArrived(
            request_id=name, tenant=TenantId("t"), model=MODEL, holder=self.holder.name, prompt_tokens=10,
            slo_ttft_ns=slo_ms * 1_000_000, deadline_ns=now_ns + slo_ms * 1_000_000, stream=stream,
        )  # fmt: skip
        call = Call(name, MODEL, RequestKind.LLM, "/v1/completions", b"", stream, 10, 16)
        return Ask(
            arrived, now_ns, time.monotonic_ns(), call, lambda engine_id: b"to " + engine_id.encode(), keeps_usage=True
        )

    async def events(self) -> list[Event]:
        """Everything in the log but beats, once all that was said is stored."""
        await self.writer.write(HolderBeat(holder=self.holder.name))
        return [each.event for each in await records(self.log) if each.event.event_kind() != "holder_beat"]


@asynccontextmanager
async def rig(
    *backends: InferenceBackend,
    decide: Decide | None = None,
    limits: Limits | None = None,
    log_down_after_s: float = 0.05,
) -> AsyncIterator[Rig]:  # fmt: skip
    """A running holder over a memory log."""
    log = SwitchLog(PoolId("p"))
    clock = PoolClock()
    writer = FactWriter(log, source="gateway", owner="g1", clock=clock)
    by_id = {backend.engine_id: backend for backend in backends}
    engines = Engines(lambda config: by_id[EngineId(config.id)])
    await engines.reload([EngineConfig(id=engine_id, models=[MODEL]) for engine_id in by_id])
    health = LogHealth(writer, after_s=log_down_after_s)
    holder = Holder(
        HolderId("g1"), writer=writer, engines=engines, book=EngineBook(map(registered, by_id)), clock=clock,
        health=health, metrics=GatewayMetrics(), limits=limits or Limits(),
    )  # fmt: skip
    reader = LogReader(log, admission_of(log), holder.take)
    await reader.start()
    running = [reader.run(), writer.run(), health.watch(), holder.beat()]
    if decide is not None:
        running.append(admit_by(log, decide))
    tasks = [asyncio.create_task(each) for each in running]
    try:
        yield Rig(log, holder, writer, clock)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def kinds(events: list[Event]) -> list[str]:
    return [event.event_kind() for event in events]


def json(data: bytes) -> Any:
    return msgspec.json.decode(data)
