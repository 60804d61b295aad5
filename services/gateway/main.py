"""A gateway put together: front doors, holder, hosted engines; what starts it, and how it ends in good order."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

from nats.aio.client import Client

from events import subjects
from events.base import HolderId, Recorded
from events.control import Ticked
from events.engine import EngineHealthChanged, EngineMeasured, EngineRegistered, EngineRemoved
from events.log.base import Log
from services.engines.open import Engines, Reloaded, as_configured, open_engine
from services.gateway import log_reader, micro
from services.gateway.app import App
from services.gateway.engine_book import EngineBook
from services.gateway.front import Front, ask_engine
from services.gateway.gateway_metrics import GatewayMetrics
from services.gateway.holder import Holder, Limits
from services.gateway.hosted import HostedEngines
from services.gateway.http_server import HttpServer
from services.gateway.ingest import Ingest, RefusedCount
from services.gateway.ingest_rules import IngestRules
from services.gateway.log_health import LogHealth
from services.gateway.log_reader import LogReader
from services.gateway.tenants import Tenants, pool_secret
from services.gateway.tokens import Tokens
from services.runtime.config import Config, EngineConfig
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock


class Gateway:
    """A running gateway: where it listens, and what can be changed while it runs."""

    def __init__(
        self, *, url: str, holder: Holder, engines: Engines, book: EngineBook, hosted: HostedEngines, app: App
    ) -> None:
        self.url, self.holder, self.engines, self.app = url, holder, engines, app
        self._book, self._hosted = book, hosted

    async def reload(self, configs: Sequence[EngineConfig]) -> Reloaded:
        """Exchange the engine list; calls in flight end where they are. Raises ConfigError (nothing changed) or
        LogError."""
        reloaded = await self.engines.reload(configs)
        for engine_id in reloaded.removed:
            self._book.take(EngineRemoved(engine_id=engine_id))
        for engine_id in reloaded.added:
            self._book.take(as_configured(self.engines.config(engine_id)))
        await self._hosted.reloaded(reloaded)
        return reloaded


async def run(
    config: Config,
    *,
    log: Log,
    stop: asyncio.Event,
    nats: Client | None = None,
    clock: PoolClock | None = None,
    on_ready: Callable[[Gateway], None] = lambda _gateway: None,
) -> None:
    """Serve until `stop` is set. `nats`: also take plain events and answer `nats micro`. `clock` None: follow the
    pool's ticks. Raises ConfigError (address, tokenizer, engine) and LogError (the log is damaged)."""
    async with open_gateway(config, log=log, nats=nats, clock=clock) as gateway:
        on_ready(gateway)
        await stop.wait()


@asynccontextmanager
async def open_gateway(
    config: Config, *, log: Log, nats: Client | None = None, clock: PoolClock | None = None
) -> AsyncIterator[Gateway]:
    """See `run`; the gateway serves inside the block and ends in good order after it."""
    try:
        async with AsyncExitStack() as stack:
            yield await _open(stack, config, log, nats, clock)
    except BaseExceptionGroup as group:
        # One background task failing ends all; the caller hears of the first as if nothing ran in the background.
        raise _first(group) from group


async def _open(
    stack: AsyncExitStack, config: Config, log: Log, nats: Client | None, clock: PoolClock | None
) -> Gateway:
    follows = clock is None
    clock = clock or await log_reader.clock_of(log, speed=config.speed)
    name = HolderId(f"gateway-{secrets.token_hex(6)}")
    models = {model.name: model for model in config.models}
    tenants = Tenants(config.tenants, secret=pool_secret(config))
    metrics = GatewayMetrics()
    book = EngineBook(as_configured(engine) for engine in config.engines)
    engines = Engines(lambda engine: open_engine(engine, clock=clock, others=engines.get))
    stack.push_async_callback(engines.close)
    await engines.reload(config.engines)
    tokens = Tokens(
        config.models, threads=config.gateway.tokenizer_threads, ask_engine=partial(ask_engine, engines, book)
    )
    stack.callback(tokens.close)

    tasks = await stack.enter_async_context(_Background())
    writer = _writer(stack, tasks, log, "gateway", name, clock)
    health = LogHealth(writer, after_s=config.gateway.log_down_after_ms / 1000)
    holder = Holder(
        name, writer=writer, engines=engines, book=book, clock=clock, health=health, metrics=metrics,
        limits=Limits(config.gateway.requests_max, config.gateway.on_log_down),
    )  # fmt: skip
    for source, take in _readers(log, holder, book, clock if follows else None):
        reader = LogReader(log, source, take)
        await reader.start()
        tasks.start(reader.run())
    hosted = HostedEngines(engines, writer=_writer(stack, tasks, log, "sensor", name, clock), clock=clock)
    for actor in log_reader.ORDERING_ACTORS:
        # From now on: what was ordered before these engines were here is not theirs to do.
        orders = LogReader(log, subjects.decisions_of(log.pool, actor), hosted.take)
        await orders.start()
        tasks.start(orders.run())
    await hosted.start()
    # From the first record on: an engine that starts anew goes by the newest directive, whenever that was said.
    tasks.start(LogReader(log, log_reader.eviction_of(log), hosted.take).run())
    stack.callback(hosted.stop)
    front = Front(
        holder=holder, engines=engines, book=book, models=models, tenants=tenants, tokens=tokens, clock=clock,
        config=config.gateway, metrics=metrics,
    )  # fmt: skip
    app = App(front, book=book, models=models, tenants=tenants, health=health, metrics=metrics)
    server = HttpServer(app, config.gateway)
    for running in (health.watch(), holder.beat(), hosted.run(), hosted.carry_out()):
        tasks.start(running)
    serving = tasks.start(server.run())
    stack.push_async_callback(_stop_serving, holder, server, serving)
    if nats is not None:
        rules = IngestRules(tenants=tenants, models=models)
        await stack.enter_async_context(_ingesting(nats, log, name, rules, clock, metrics))
        service = await micro.serve(nats, log.pool, status=app.status, models=app.model_names)
        stack.push_async_callback(service.stop)
    return Gateway(url=server.url, holder=holder, engines=engines, book=book, hosted=hosted, app=app)


async def run_ingest(config: Config, *, log: Log, nats: Client, stop: asyncio.Event, metrics: RefusedCount) -> None:
    """The ingest alone (`tidegate worker ingest`), until `stop` is set. Raises LogError."""
    clock = await log_reader.clock_of(log, speed=config.speed)
    reader = LogReader(log, log_reader.facts_of(log, "clock"), partial(_follow, clock))
    rules = IngestRules(
        tenants=Tenants(config.tenants, secret=pool_secret(config)),
        models={model.name: model for model in config.models},
    )
    try:
        async with _Background() as tasks:
            await reader.start()
            tasks.start(reader.run())
            async with _ingesting(nats, log, HolderId(f"ingest-{secrets.token_hex(6)}"), rules, clock, metrics):
                await stop.wait()
    except BaseExceptionGroup as group:
        raise _first(group) from group


@asynccontextmanager
async def _ingesting(
    nats: Client, log: Log, owner: HolderId, rules: IngestRules, clock: PoolClock, metrics: RefusedCount
) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(_Background())
        writer = _writer(stack, tasks, log, "ingest", owner, clock)
        ingest = Ingest(nats, log.pool, rules=rules, writer=writer, clock=clock, metrics=metrics)
        await ingest.start()
        stack.push_async_callback(ingest.stop)
        tasks.start(ingest.run())
        yield


class _Background:
    """Tasks that run as long as the block; one that fails ends the block with its error."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    def start(self, running: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """One more."""
        task = self._group.create_task(running)
        self._tasks.append(task)
        return task


def _writer(
    stack: AsyncExitStack, tasks: _Background, log: Log, source: str, owner: str, clock: PoolClock
) -> FactWriter:
    writer = FactWriter(log, source=source, owner=owner, clock=clock)
    tasks.start(writer.run())
    stack.push_async_callback(writer.close)
    return writer


def _readers(
    log: Log, holder: Holder, book: EngineBook, clock: PoolClock | None
) -> list[tuple[str, Callable[[Recorded], None]]]:
    """What of the log is followed, and by whom; `clock` None: somebody else in this process follows the ticks."""
    readers: list[tuple[str, Callable[[Recorded], None]]] = [
        (log_reader.admission_of(log), holder.take),
        (log_reader.facts_of(log, "sensor"), partial(_note_engine, book)),
    ]
    if clock is not None:
        readers.append((log_reader.facts_of(log, "clock"), partial(_follow, clock)))
    return readers


def _note_engine(book: EngineBook, recorded: Recorded) -> None:
    if isinstance(recorded.event, EngineRegistered | EngineRemoved | EngineHealthChanged | EngineMeasured):
        book.take(recorded.event)


def _follow(clock: PoolClock, recorded: Recorded) -> None:
    if isinstance(recorded.event, Ticked):
        clock.follow(recorded.ts_ns)


async def _stop_serving(holder: Holder, server: HttpServer, serving: asyncio.Task[None]) -> None:
    """Requests end first, so that their clients hear of it; then the connections."""
    await holder.stop()
    server.stop()
    await asyncio.wait((serving,))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
