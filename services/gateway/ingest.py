"""The plain-events front door: clients with their own data plane publish `tg.in.<pool>.<client>.<kind>`.

What is valid becomes a fact; whoever asked with a reply subject is told its place in the log, or what to mend. Any
number of ingests share the work (queue group). A client that was heard counts as alive for that second.
"""

import asyncio
import logging
from collections import Counter
from typing import Any, Final, Protocol

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from events import subjects
from events.base import NS_PER_S, Event, LogError, PoolId
from events.control import IngestRefused
from events.request import HolderBeat, HolderStopped
from services.gateway.ingest_rules import IngestRefusal, IngestRules, RefuseReason, holder_of
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock

QUEUE_GROUP: Final = "tidegate-ingest"
IN_FLIGHT_MAX: Final = 4_096
"""Messages whose fact is not stored yet."""
CLIENTS_MAX: Final = 1_024
"""Clients heard in one second that are told apart; those beyond still get in, without the free beat."""
NAMED_MAX: Final = 64
"""Different (client, reason) pairs that refusals of one second are told apart by."""
OTHERS: Final = "others"

logger = logging.getLogger(__name__)


class RefusedCount(Protocol):
    """Who counts refusals for /metrics."""

    def refused(self, reason: str, count: int) -> None:
        """So many messages were kept out."""
        ...


class Ingest:
    """See the module. `run` needs `start` before it."""

    def __init__(
        self, client: Client, pool: PoolId, *, rules: IngestRules, writer: FactWriter, clock: PoolClock,
        metrics: RefusedCount,
    ) -> None:  # fmt: skip
        self._client, self._pool, self._rules = client, pool, rules
        self._writer, self._clock, self._metrics = writer, clock, metrics
        self._in_flight: set[asyncio.Task[None]] = set()
        self._refused: Counter[tuple[str, str]] = Counter()
        self._heard: dict[str, None] = {}

    async def start(self) -> None:
        """Subscribe; the server knows of it on return. Raises nats.errors.Error."""
        self._subscription = await self._client.subscribe(
            subjects.ingest_of(self._pool), queue=QUEUE_GROUP, cb=self._on_message
        )
        await self._client.flush()

    async def run(self) -> None:
        """Say every pool second who was heard and what was refused. Never ends."""
        while True:
            await asyncio.sleep(self._clock.wall_s(NS_PER_S))
            self._say_refused()
            heard, self._heard = self._heard, {}
            for client in heard:
                self._say(HolderBeat(holder=holder_of(client)))

    async def stop(self) -> None:
        """Take nothing more; what was taken is stored first."""
        if not self._client.is_closed:
            await self._subscription.unsubscribe()
        if self._in_flight:
            await asyncio.wait(self._in_flight)
        self._say_refused()

    async def _on_message(self, message: Msg) -> None:
        # tg.in.<pool>.<client>.<kind>: the subscription's pattern has exactly these five tokens.
        _, _, _, client, kind = message.subject.split(".")
        try:
            event = self._read(client, kind, message.data)
        except IngestRefusal as refusal:
            self._refuse(client, refusal)
            await _reply(message, {"ok": False, "error": refusal.what, "mend": refusal.mend, "reason": refusal.reason})
            return
        if not isinstance(event, HolderBeat | HolderStopped) and len(self._heard) < CLIENTS_MAX:
            self._heard[client] = None
        task = asyncio.create_task(self._store(client, event, message))
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    def _read(self, client: str, kind: str, body: bytes) -> Event:
        if len(self._in_flight) >= IN_FLIGHT_MAX:
            raise IngestRefusal(RefuseReason.BUSY, "too many messages wait for the log", mend="send it again later")
        return self._rules.read(client, kind, body, now_ns=self._clock.now_ns())

    async def _store(self, client: str, event: Event, message: Msg) -> None:
        try:
            at = await self._writer.write(event)
        except LogError as error:
            refusal = IngestRefusal(RefuseReason.LOG_DOWN, error.what, mend="send it again later")
            self._refuse(client, refusal)
            await _reply(message, {"ok": False, "error": refusal.what, "mend": refusal.mend, "reason": refusal.reason})
            return
        answer: dict[str, Any] = {"ok": True, "seq": at.seq, "item": at.item}
        if "request_id" in event.__struct_fields__:
            answer["request_id"] = getattr(event, "request_id")  # noqa: B009 - not every event has one
        await _reply(message, answer)

    def _refuse(self, client: str, refusal: IngestRefusal) -> None:
        name = OTHERS if refusal.reason is RefuseReason.BAD_CLIENT else client
        pair = (name, str(refusal.reason))
        if pair not in self._refused and len(self._refused) >= NAMED_MAX:
            pair = (OTHERS, str(refusal.reason))
        self._refused[pair] += 1
        self._metrics.refused(refusal.reason, 1)

    def _say_refused(self) -> None:
        refused, self._refused = self._refused, Counter()
        for (client, reason), count in refused.items():
            self._say(IngestRefused(client=client, reason=reason, count=count))

    def _say(self, event: Event) -> None:
        try:
            self._writer.say(event)
        except LogError as error:
            logger.warning("%s was not said: %s", event.event_kind(), error)


async def _reply(message: Msg, answer: dict[str, Any]) -> None:
    if not message.reply:
        return
    try:
        await message.respond(msgspec.json.encode(answer))
    except NatsError as error:
        logger.warning("an ingest reply was not sent: %s", error)
