"""What a live target says of itself while it is under load: engines' /metrics, and the log of a gateway of ours."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import aiohttp
import msgspec

from events import codec, subjects
from events.base import EngineId, Event, PoolId
from events.engine import EngineKind, EngineMeasured, EngineRegistered
from events.log.base import Log, Message
from services.engines import vllm_metrics
from services.runtime.config import Config, NatsConfig
from services.runtime.servers import open_log
from services.target.options import TargetOptions

EVERY_S: Final = 1.0
ASK_S_MAX: Final = 5.0
_VLLM: Final = "vllm:"


class Told(NamedTuple):
    """What an engine said, and when (monotonic clock)."""

    at_ns: int
    event: EngineMeasured | EngineRegistered


TOTALS: Final = (
    "preemptions_total", "prefix_queries_total", "prefix_hits_total", "prompt_tokens_total", "output_tokens_total",
    "evictions_total",
)  # fmt: skip
"""Fields of EngineMeasured that count from the engine's start on."""


class SinceFirst:
    """Takes off what engines had counted when they were first heard: a target has a life before the load. An engine
    whose totals go back started anew, and counts from there."""

    def __init__(self) -> None:
        self._first: dict[EngineId, EngineMeasured] = {}

    def of(self, event: EngineMeasured) -> EngineMeasured:
        """The same, counted from when this engine was first heard."""
        first = self._first.setdefault(event.engine_id, event)
        if any(getattr(event, field) < getattr(first, field) for field in TOTALS):
            first = self._first[event.engine_id] = msgspec.structs.replace(first, **dict.fromkeys(TOTALS, 0))
        return msgspec.structs.replace(
            event, **{field: getattr(event, field) - getattr(first, field) for field in TOTALS}
        )


class Watch:
    """Asks engines at `urls` for their metrics, each second. `missed` counts questions without an answer."""

    def __init__(
        self, session: aiohttp.ClientSession, urls: Sequence[str], *, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._session, self._urls, self._clock = session, list(urls), clock
        self._known: dict[str, EngineId] = {}
        self._since = SinceFirst()
        self.told: list[Told] = []
        self.missed = 0

    @property
    def engines(self) -> int:
        """How many answered as engines do."""
        return len(self._known)

    async def look(self) -> None:
        """Ask each once. Whoever never spoke as a vLLM does is not asked again."""
        texts = await asyncio.gather(*(self._ask(url) for url in self._urls))
        at_ns = self._clock()
        for url, text in zip(list(self._urls), texts, strict=True):
            if text is None:
                self.missed += 1
            elif _VLLM not in text:
                self._urls.remove(url)
            else:
                self._take(url, text, at_ns)

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.look()

    def _take(self, url: str, text: str, at_ns: int) -> None:
        engine_id = self._known.get(url)
        if engine_id is None:
            engine_id = self._known[url] = EngineId(f"target-{len(self._known) + 1}")
            cache = vllm_metrics.cache_config(text)
            registered = EngineRegistered(
                engine_id=engine_id, kind=EngineKind.VLLM, models=(), kv_blocks=cache.kv_blocks,
                block_tokens=cache.block_tokens, block_bytes=0,
            )  # fmt: skip
            self.told.append(Told(at_ns, registered))
        self.told.append(Told(at_ns, self._since.of(vllm_metrics.measured(engine_id, text))))

    async def _ask(self, url: str) -> str | None:
        timeout = aiohttp.ClientTimeout(total=ASK_S_MAX)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                return await response.text(errors="replace") if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None


class Record:
    """What stands in a pool's log from `begin` on."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._after = 0

    async def begin(self) -> None:
        """What was said before is not of this run. Raises LogError."""
        last = await self._log.last()
        self._after = last.seq if last is not None else 0

    async def messages(self) -> list[Message]:
        """All since then, after what engines are; their totals count from then. Raises LogError."""
        since = SinceFirst()
        found = [_counted(message, since) async for batch in self._log.read(after=self._after) for message in batch]
        return [*await self._engines(found[0]), *found] if found else []

    async def _engines(self, first: Message) -> list[Message]:
        """What was last said of what each engine is, as if it were said at the time of the first message."""
        known: dict[EngineId, EngineRegistered] = {}
        pattern = subjects.fact(self._log.pool, "*", EngineRegistered.event_kind())
        async for batch in self._log.read(pattern=pattern):
            for message in batch:
                if message.seq <= self._after:
                    for recorded in codec.decode(message.seq, message.subject, message.body):
                        if isinstance(recorded.event, EngineRegistered):
                            known[recorded.event.engine_id] = recorded.event
        records = codec.decode(first.seq, first.subject, first.body)
        said = [codec.Said(event=event) for event in known.values()]
        if not said or not records:
            return []
        subject = subjects.fact(self._log.pool, "sensor", codec.kind_of(said))
        return [Message(self._after, subject, codec.encode(owner="", ts_ns=records[0].ts_ns, said=said), {})]


def _since(event: Event, since: SinceFirst) -> Event:
    return since.of(event) if isinstance(event, EngineMeasured) else event


def _counted(message: Message, since: SinceFirst) -> Message:
    records = codec.decode(message.seq, message.subject, message.body)
    if not any(isinstance(recorded.event, EngineMeasured) for recorded in records):
        return message
    said = [codec.Said(cause=recorded.cause, event=_since(recorded.event, since)) for recorded in records]
    body = codec.encode(owner=records[0].owner, ts_ns=records[0].ts_ns, said=said)
    return Message(message.seq, message.subject, body, message.headers)


@asynccontextmanager
async def log_of(options: TargetOptions) -> AsyncIterator[Log | None]:
    """The log that the options name; None where they name none. Raises LogError, also where the pool has none there."""
    if not options.pool:
        yield None
        return
    nats = NatsConfig(url=options.log_url, creds=options.creds)
    config = Config(pool=options.pool, state_dir=options.state_dir, nats=nats)
    async with open_log(config, PoolId(options.pool)) as log:
        yield log
