"""A small decider whose decisions depend on all that came before, and a log that fails at chosen moments."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from events import codec, subjects
from events.base import EngineId, Event, HolderId, LogError, ModelId, PoolId, Recorded, RequestId, TenantId
from events.control import Ticked
from events.decisions import DeferReason, RejectReason, RequestAdmitted, RequestDeferred, RequestRejected, WakeAsked
from events.log.base import Fence, Message
from events.log.memory import MemoryLog
from events.request import RequestArrived
from policies.decider import Decider
from services.runtime.snapshot import CrashNote, MemorySnapshots, Snapshot

POISON = 666
POOL = PoolId("p")


class State(msgspec.Struct):
    """Mixes every input and every decision into one number; holds what is deferred."""

    mixed: int = 7
    factor: int = 31
    held: dict[str, int] = msgspec.field(default_factory=dict)


def evolve(state: State, event: Event, now_ns: int) -> None:
    mixed = state.mixed * state.factor + now_ns % 97
    match event:
        case RequestArrived():
            mixed += event.prompt_tokens
        case Ticked():
            mixed += 1
        case RequestDeferred():
            state.held[event.request_id] = event.until_ns
            mixed += 2
        case RequestAdmitted():
            state.held.pop(event.request_id, None)
            mixed += 3
        case _:
            mixed += 5
    state.mixed = mixed % 1_000_003


def decide(state: State, event: Event, now_ns: int) -> list[Event]:
    match event:
        case RequestArrived(prompt_tokens=666):
            raise ValueError("poison: the text that must not get into the log")
        case RequestArrived() if state.mixed % 4 == 0:
            return []
        case RequestArrived() if state.mixed % 4 == 1:
            return [RequestRejected(request_id=event.request_id, reason=RejectReason.KV_BUDGET)]
        case RequestArrived():
            until_ns = now_ns + state.mixed
            return [
                RequestDeferred(request_id=event.request_id, until_ns=until_ns, reason=DeferReason.KV_BUDGET),
                WakeAsked(at_ns=until_ns),
            ]
        case Ticked():
            return [admitted(request_id, state.mixed) for request_id in state.held]
        case _:
            return []


def admitted(request_id: str, amount: int) -> RequestAdmitted:
    return RequestAdmitted(
        request_id=RequestId(request_id), engine_id=EngineId("e"), output_tokens_predicted=amount, kv_cache_tokens=1,
        kv_bytes_reserved=1, ttft_predicted_ns=1, slo_slack_ns=1,
    )  # fmt: skip


def configure(state: State, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if key != "factor" or not isinstance(value, int):
            raise ValueError(f"{key}: not a setting")
        state.factor = value


TOY: Decider[State] = Decider(
    name="admission", state=State, initial=State, evolve=evolve, decide=decide, configure=configure,
    explain=lambda *_: {}, takes=frozenset({RequestArrived, Ticked}),
)  # fmt: skip


def arrived(n: int, prompt_tokens: int | None = None) -> RequestArrived:
    return RequestArrived(
        request_id=RequestId(f"r{n}"), tenant=TenantId("t"), model=ModelId("m"), holder=HolderId("h"),
        prompt_tokens=n % 600 if prompt_tokens is None else prompt_tokens, slo_ttft_ns=1, deadline_ns=1,
    )  # fmt: skip


async def say(log: MemoryLog, *events: Event, ts_ns: int = 0, source: str = "gateway") -> int:
    said = [codec.Said(event=event) for event in events]
    body = codec.encode(owner="gw", ts_ns=ts_ns, said=said)
    return await log.append(subjects.fact(log.pool, source, codec.kind_of(said)), body)


async def say_some(log: MemoryLog, chance: random.Random, numbers: range) -> None:
    """Arrivals and ticks in a random mix, some in one message."""
    for n in numbers:
        ts_ns = 1_000_000_000 * (n + 1)
        if chance.random() < 0.3:
            await say(log, Ticked(n=n), ts_ns=ts_ns, source="clock")
        elif chance.random() < 0.3:
            await say(log, arrived(2 * n), arrived(2 * n + 1), ts_ns=ts_ns)
        else:
            await say(log, arrived(2 * n), ts_ns=ts_ns)


def stored(log: MemoryLog) -> list[Message]:
    return list(log._messages)


def records(log: MemoryLog) -> list[Recorded]:
    return [r for m in stored(log) for r in codec.decode(m.seq, m.subject, m.body)]


def decisions(log: MemoryLog) -> list[tuple[str, Event]]:
    """Every decision that answers something, in log order."""
    return [(r.cause, r.event) for r in records(log) if r.actor == "admission" and r.cause]


async def until(holds: Callable[[], bool]) -> None:
    """Let the others run until a condition holds."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)


class Fate:
    """What happens at every await on the outside: nothing, an error, a lost answer, or the process is killed."""

    def __init__(self, chance: random.Random, *, kill: float = 0.0, fail: float = 0.0) -> None:
        self.chance, self.kill, self.fail = chance, kill, fail
        self.killed = asyncio.Event()

    async def before(self) -> None:
        await self._draw()
        if self.chance.random() < self.fail:
            raise LogError("no connection", where="test")

    async def after(self) -> None:
        await self._draw()
        if self.chance.random() < self.fail:
            raise LogError("no answer", where="test")

    async def die_maybe(self) -> None:
        await self._draw()

    async def _draw(self) -> None:
        if self.chance.random() < self.kill:
            self.killed.set()
        if self.killed.is_set():
            await asyncio.Future()  # The process is dead: nothing comes back.
        for _ in range(self.chance.randrange(3)):
            await asyncio.sleep(0)


class FatefulLog:
    """One process's way to a log that all processes share."""

    def __init__(self, log: MemoryLog, fate: Fate) -> None:
        self.pool, self._log, self._fate = log.pool, log, fate

    async def append(
        self, subject: str, body: bytes, *, msg_id: str = "", fence: Fence | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:  # fmt: skip
        await self._fate.before()
        # Ids are forgotten after a while: the fence alone must be enough.
        seq = await self._log.append(subject, body, fence=fence, headers=headers)
        await self._fate.after()
        return seq

    async def read(self, *, after: int = 0, pattern: str = ">", follow: bool = False) -> AsyncIterator[list[Message]]:
        await self._fate.before()
        async for batch in self._log.read(after=after, pattern=pattern, follow=follow):
            while batch:
                size = self._fate.chance.randrange(1, 8)
                yield batch[:size]
                batch = batch[size:]
                await self._fate.before()

    async def last(self, pattern: str = ">") -> Message | None:
        await self._fate.before()
        return await self._log.last(pattern)

    async def get(self, seq: int) -> Message | None:
        await self._fate.before()
        return await self._log.get(seq)

    async def close(self) -> None:
        """Nothing is held."""


class FatefulSnapshots(MemorySnapshots):
    """The same for the snapshots."""

    def __init__(self, kept: MemorySnapshots, fate: Fate) -> None:
        self._packed, self._notes, self._fate = kept._packed, kept._notes, fate

    async def save(self, snapshot: Snapshot) -> None:
        await self._fate.die_maybe()
        await super().save(snapshot)
        await self._fate.die_maybe()

    async def note_crash(self, actor: str, note: CrashNote | None) -> None:
        await self._fate.die_maybe()
        await super().note_crash(actor, note)
