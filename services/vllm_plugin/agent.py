"""The engine's side of the log: a thread in the engine core's process that speaks with NATS, so that vLLM need not.

It brings directives and orders of its engine from the log to the bridge, from its start on, and writes what the engine
tells into the log, at most 20 messages a second (source `agent`). It reads vLLM's own KV events for what the device
holds, and keeps the engine's own journal of choices. At its start, and whenever facts had to be dropped, it says that
what was known of the engine's tiers is void, and then what they hold.

While NATS is away the engine serves as ever, under the last directive; facts wait, as many as fit. When the agent fails
it is started again some times; then it stays away, and a plain vLLM goes on with our policies.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from events import subjects
from events.base import Event, LogDamaged, LogError, Recorded
from events.control import Ticked
from events.decisions import EngineDirected, HolderLost, TransferCancelled, TransferOrdered
from events.log.jetstream import JetStreamLog, connect
from events.slice import SlicesCleared, SlicesRemoved, SlicesStored, Tier, TransferEnd
from services.gateway.log_reader import LogReader, clock_of, facts_of
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock
from services.vllm_plugin import settings as plugin_settings
from services.vllm_plugin.bridge import Bridge
from services.vllm_plugin.journal import ChoiceJournal
from services.vllm_plugin.naming import naming
from services.vllm_plugin.settings import PluginSettings

if TYPE_CHECKING:
    from services.vllm_plugin.events import KVEvents

SOURCE: Final = "agent"
BATCH_EVERY_S: Final = 0.05
"""A message is written at most so often: 20 a second."""
FACTS_PER_MESSAGE_MAX: Final = 256
SLICES_PER_FACT_MAX: Final = 2_048
MEASURE_EVERY_S: Final = 1.0
RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 15.0
RESTARTS_MAX: Final = 5
STOP_WAIT_S: Final = 5.0
CANCEL_AGAIN_S: Final = 1.0
JOURNAL_RETRY_S: Final = 60.0
"""A folder that took nothing is tried again so often."""
GROUP_BYTES: Final = (0).to_bytes(4, "big")
"""Behind a block's hash it makes the offload key of the slice that ends with it: of cache group 0, the only one."""

logger = logging.getLogger("tidegate.engine")


class Agent:
    """One per engine core process. `restarts` counts its failures."""

    def __init__(self, settings: PluginSettings, bridge: Bridge, *, events_config: Any, slice_bytes: int) -> None:
        self._settings, self._bridge = settings, bridge
        self._events_config, self._slice_bytes = events_config, slice_bytes
        self._journal = ChoiceJournal(Path(settings.folder), settings.engine_id) if settings.folder else None
        self._writer: FactWriter | None = None
        self._clock: PoolClock | None = None
        self._events: KVEvents | None = None
        self._thread = threading.Thread(target=self._work, name="tidegate-agent", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._stopping = False
        self._stop: asyncio.Event | None = None
        self._journal_due_s = 0.0
        self._connected = False
        self.restarts = 0

    def start(self) -> None:
        """Begin, in a thread that does not keep the process."""
        if self._journal is not None:
            self._bridge.number_from(self._journal.last_number())
        self._bridge.listen(self._wake, journals=self._journal is not None)
        self._thread.start()

    def stop(self) -> None:
        """Say what is left to say, and end; after STOP_WAIT_S it is left to itself."""
        self._stopping = True
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            _soon(loop, stop.set)
        if self._thread.is_alive():
            self._thread.join(STOP_WAIT_S)

    def _work(self) -> None:
        """The thread. This is its supervisor: whatever fails, vLLM goes on."""
        while not self._stopping:
            try:
                asyncio.run(self._run())
            except Exception:
                self.restarts += 1
                logger.exception("the agent failed (%d times so far)", self.restarts)
                if self.restarts > RESTARTS_MAX:
                    logger.error("the agent stays away: the engine goes on under its last directive")
                    break
                time.sleep(min(RETRY_MAX_S, RETRY_FIRST_S * 2**self.restarts))
                self._bridge.listen(self._wake, journals=self._journal is not None)
        self._bridge.deafen()

    def _wake(self) -> None:
        """From any thread: something waits."""
        loop = self._loop
        if loop is not None:
            _soon(loop, self._woken.set)

    async def _run(self) -> None:
        self._loop, self._stop, self._woken = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        if self._stopping:
            self._stop.set()  # It was said before there was anything to say it to.
        tasks = [
            asyncio.create_task(work) for work in (self._pump_on(), self._measure_on(), self._live(), self._read())
        ]
        stopped = asyncio.create_task(self._stop.wait())
        try:
            done, _ = await asyncio.wait((*tasks, stopped), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await self._end([*tasks, stopped])

    async def _end(self, tasks: "list[asyncio.Task[Any]]") -> None:
        """Answer what is open, write what waits, close the journal."""
        self._bridge.orders.fail_all("the engine ends")
        for task in tasks[:2]:
            task.cancel()
        self._pump()
        if self._writer is not None:
            await self._writer.close(wait_s=STOP_WAIT_S / 2)
        await _end_all(tasks, again_s=CANCEL_AGAIN_S)
        if self._journal is not None:
            self._journal.close()

    # What the engine tells.

    async def _pump_on(self) -> None:
        while True:
            try:
                async with asyncio.timeout(MEASURE_EVERY_S):
                    await self._woken.wait()
            except TimeoutError:
                pass  # Entries of the journal wait without a fact.
            self._woken.clear()
            self._pump()
            await asyncio.sleep(BATCH_EVERY_S)

    def _pump(self) -> None:
        """Facts that were told are written after the entries that they name: no number is ever used twice."""
        writer = self._writer
        # What one message does not take waits in the bridge, where it is bounded.
        ready = writer is not None and not writer.waiting
        facts = self._bridge.facts(FACTS_PER_MESSAGE_MAX) if ready else []
        self._keep_journal()
        if writer is not None and facts:
            for fact in merged(facts):
                writer.say(fact)
            self._woken.set()
        if ready and self._bridge.resync_due():
            self._say_all("facts were dropped")

    def _keep_journal(self) -> None:
        entries = self._bridge.entries()
        if self._journal is None:
            return
        self._journal.write(entries)
        if self._journal.broken:
            if time.monotonic() > self._journal_due_s:
                self._journal_due_s = time.monotonic() + JOURNAL_RETRY_S
                self._bridge.begin_journal()
        elif self._journal.is_full():
            self._bridge.begin_journal()

    async def _measure_on(self) -> None:
        """What the device's cache holds, and the directive that the engine goes by; of the tiers below what no step
        of the engine told."""
        while True:
            measured = self._bridge.measured_now()
            if measured is not None:
                evictions = self._events.slices.evictions if self._events is not None else 0
                self._bridge.tell(
                    msgspec.structs.replace(
                        measured, evictions_total=evictions, directive_version=self._bridge.directed_version
                    )
                )
            self._bridge.tell_noted()
            await asyncio.sleep(MEASURE_EVERY_S)

    def _say_all(self, reason: str) -> None:
        """What was known of this engine's tiers is void; this is what they hold."""
        assert self._writer is not None, "there is a log"
        self._bridge.forget_facts()
        for tier in Tier:
            self._writer.say(SlicesCleared(engine_id=self._settings.engine_id, tier=tier, reason=reason))
        stored = [] if self._events is None else self._events.inventory()
        for inventory in self._bridge.inventories().values():
            stored += inventory()
        for fact in stored:
            self._writer.say(fact)

    async def _read(self) -> None:
        """Follow vLLM's KV events, where they are published."""
        if self._events_config is None:
            logger.warning("KV events are off: the log is not told what the device holds (--kv-events-config)")
            await asyncio.Future()
        # These need vLLM's environment; all else here does not.
        from zmq import ZMQError

        from services.vllm_plugin.events import KVEvents

        while True:
            self._events = KVEvents(
                self._events_config, self._settings.engine_id, slice_tokens=self._settings.slice_tokens,
                slice_bytes=self._slice_bytes, tell=self._bridge.tell,
                learn=lambda last, name: naming.hear(last + GROUP_BYTES, name),
            )  # fmt: skip
            try:
                await self._events.run()
            except (OSError, ValueError, ZMQError) as error:
                self._events.lost(f"KV events cannot be read: {error}")
            await asyncio.sleep(RETRY_FIRST_S)

    # What the log says.

    async def _live(self) -> None:
        """Be connected, whatever it takes."""
        url, pause_s = plugin_settings.nats_url(), RETRY_FIRST_S
        if not url:
            logger.warning("no NATS (%s): the engine chooses under no directive", plugin_settings.NATS_URL)
            await asyncio.Future()
        while True:
            try:
                await self._with_log(url)
            except LogDamaged:
                logger.exception("the log cannot be trusted: the engine goes on without it")
                await asyncio.Future()
            except LogError as error:
                logger.warning("no log: %s", error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def _with_log(self, url: str) -> None:
        engine_id, creds = self._settings.engine_id, plugin_settings.nats_creds()
        client = await connect(url, name=f"tidegate-{SOURCE}-{engine_id}", creds=creds)
        try:
            log = await JetStreamLog.open(client, self._settings.pool, create=False)
            clock = await clock_of(log, speed=1)
            decisions = LogReader(log, subjects.decisions_of(log.pool, "*"), self._take)
            ticks = LogReader(log, facts_of(log, "clock"), lambda recorded: _follow(clock, recorded))
            await decisions.start()
            await ticks.start()
            owner = f"{engine_id}-{secrets.token_hex(6)}"
            self._writer = FactWriter(log, source=SOURCE, owner=owner, clock=clock)
            self._clock = clock
            self._say_all("connected anew" if self._connected else "started")
            self._connected = True
            self._woken.set()
            works = [asyncio.create_task(work) for work in (self._writer.run(), decisions.run(), ticks.run())]
            try:
                done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
                for work in done:
                    work.result()
            finally:
                self._writer = None  # From here on it takes nothing.
                await _end_all(works, again_s=CANCEL_AGAIN_S / 4)
        finally:
            self._writer = None
            await client.close()

    def _take(self, recorded: Recorded) -> None:
        event = recorded.event
        match event:
            case EngineDirected() if event.engine_id == self._settings.engine_id:
                self._bridge.direct(event)
            case TransferOrdered() if event.engine_id == self._settings.engine_id:
                self._ordered(event)
            case TransferCancelled() if event.engine_id == self._settings.engine_id:
                self._bridge.orders.cancel(event)
            case HolderLost() if event.requests:
                self._bridge.abort(event.requests)
            case _:
                pass

    def _ordered(self, said: TransferOrdered) -> None:
        assert self._clock is not None, "orders are read from a log"
        until_ns = 0
        if said.until_ns:
            until_ns = max(1, time.monotonic_ns() + said.until_ns - self._clock.now_ns())
        order = self._bridge.orders.give(said, until_ns=until_ns)
        if order is None:
            return
        if self._bridge.inventories():
            self._bridge.wake()
        else:
            self._bridge.orders.finish(order, TransferEnd.FAILED, why="this engine has no tiers")


def merged(facts: Iterable[Event]) -> Iterator[Event]:
    """The same facts, in order: those next to each other that say the same of more slices are one."""
    last: Event | None = None
    for fact in facts:
        if isinstance(last, SlicesStored | SlicesRemoved) and _fit(last, fact):
            last = msgspec.structs.replace(last, slices=last.slices + fact.slices)  # type: ignore[attr-defined]
            continue
        if last is not None:
            yield last
        last = fact
    if last is not None:
        yield last


def _fit(one: "SlicesStored | SlicesRemoved", other: Event) -> bool:
    if not isinstance(other, SlicesStored | SlicesRemoved) or len(one.slices) + len(other.slices) > SLICES_PER_FACT_MAX:
        return False
    return msgspec.structs.replace(one, slices=()) == msgspec.structs.replace(other, slices=())


def _follow(clock: PoolClock, recorded: Recorded) -> None:
    if isinstance(recorded.event, Ticked):
        clock.follow(recorded.ts_ns)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Have it called there; a loop that is closed, or closes meanwhile, calls nothing."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


async def _end_all(tasks: "Sequence[asyncio.Task[Any]]", *, again_s: float) -> None:
    """Cancel them until they have ended. Once is not always enough: under Python 3.11 `wait_for`, which nats-py waits
    by, loses a cancellation that comes together with what it waits for."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=again_s)
