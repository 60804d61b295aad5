"""One reader of a JetStream log: ordered, each message once, across restarts of server and connection.

It is a push consumer of its own that is made anew from the last message on whenever something is wrong: the
connection came back, heartbeats stopped, the delivery skipped. What the server sends is put into a buffer in the
same step; the reader takes all that has arrived. The server's flow control is answered only after a batch was
taken in, so that a slow reader is sent no more than the server's window (32 MiB).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from events.base import LogDamaged, LogError
from events.log.base import Message

if TYPE_CHECKING:
    from events.log.jetstream import JetStreamLog

HEARTBEAT_S = 1.0
SILENCE_MAX_S = 2.5
CONSUMER_KEPT_S = 5.0
RETRY_WAIT_S = 0.2
RECONNECT_WAIT_MAX_S = 10.0
"""How long a reader that does not follow waits for a lost connection; one that follows waits for ever."""


class Place(NamedTuple):
    """Where a delivered message stands: in the stream, in this delivery, and how many come after it."""

    seq: int
    delivery: int
    pending: int


def place_of(reply: str) -> Place | None:
    """Read from the subject that JetStream asks acks on; None for anything else.

    `$JS.ACK.<stream>.<consumer>.<tries>.<seq>.<delivery>.<time>.<pending>`, with domain and account after `ACK`
    (and a token at the end) where there are such.
    """
    parts = reply.split(".")
    if len(parts) == 9 and parts[1] == "ACK":
        return Place(int(parts[5]), int(parts[6]), int(parts[8]))
    if len(parts) >= 11 and parts[1] == "ACK":
        return Place(int(parts[7]), int(parts[8]), int(parts[10]))
    return None


class Reader:
    """Messages after seq `after` under `pattern` ("" = all of them). `batches` is read once."""

    def __init__(self, log: "JetStreamLog", *, after: int, pattern: str, follow: bool) -> None:
        self._log, self._pattern, self._follow = log, pattern, follow
        self._last = after
        self._delivered = 0
        self._gap_after = -1
        self._buffer: list[Message] = []
        self._flow_reply = ""
        self._lost = True
        self._at_end = False
        self._failure: LogError | None = None
        self._heard_s = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._subscription: Subscription | None = None
        self._loop = asyncio.get_running_loop()

    async def batches(self) -> AsyncIterator[list[Message]]:
        """All that has arrived, again and again; ends at the log's end unless it follows."""
        while True:
            if self._buffer:
                batch, self._buffer = self._buffer, []
                reply, self._flow_reply = self._flow_reply, ""
                yield batch
                if reply:
                    await self._answer(reply)
            elif self._failure is not None:
                raise self._failure
            elif self._lost:
                await self._resubscribe()
            elif self._at_end and not self._follow:
                return
            else:
                self._waiter = self._loop.create_future()
                await self._waiter

    async def stop(self) -> None:
        """Give the consumer back; the server forgets it by itself."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(NatsError):
                await subscription.unsubscribe()

    def reconnect(self) -> None:
        """The connection came or went: go on from the last message with a new consumer."""
        self._lost = True
        self._wake()

    def fail(self, failure: LogError) -> None:
        """End with this error once what has arrived is taken."""
        self._failure = self._failure or failure
        self._wake()

    async def _resubscribe(self) -> None:
        """Until it succeeds; a reader that does not follow gives up."""
        give_up_s = self._loop.time() + RECONNECT_WAIT_MAX_S
        while True:
            await self.stop()
            if self._log.client.is_closed:
                raise LogError("the connection is closed", where=self._log.where)
            try:
                if self._follow:
                    await self._log.client.up.wait()
                else:
                    async with asyncio.timeout_at(give_up_s):
                        await self._log.client.up.wait()
                await self._subscribe()
            except LogDamaged:
                raise
            except (LogError, NatsError, TimeoutError) as error:
                if not self._follow and self._loop.time() > give_up_s:
                    raise LogError(f"the log cannot be read: {error}", where=self._log.where) from error
                await asyncio.sleep(RETRY_WAIT_S)
            else:
                return

    async def _subscribe(self) -> None:
        seen = max(self._log.seen, self._last)
        state = (await self._log.info()).state
        if state.last_seq < seen:
            what = f"the log ends at {state.last_seq}, but {seen} was already acknowledged or read"
            raise LogDamaged(what, where=self._log.where, mend="restore it from its journal")
        if not self._pattern and self._last + 1 < state.first_seq:
            raise self._missing(state.first_seq)
        client, inbox = self._log.client, self._log.client.new_inbox()
        self._lost, self._delivered, self._flow_reply, self._heard_s = False, 0, "", self._loop.time()
        # No limit here: what may be under way is bounded by the server's flow control.
        self._subscription = await client.subscribe(
            inbox, cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        consumer: ConsumerInfo = await self._log.js.add_consumer(self._log.stream, self._consumer(inbox))
        delivered = consumer.delivered.consumer_seq if consumer.delivered is not None else 0
        self._at_end = self._at_end or (not consumer.num_pending and not delivered)
        self._watch = self._loop.call_later(HEARTBEAT_S, self._check_heartbeat)

    def _consumer(self, inbox: str) -> ConsumerConfig:
        return ConsumerConfig(
            name=inbox.rpartition(".")[2], deliver_subject=inbox, filter_subject=self._pattern or None,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._last + 1,
            ack_policy=AckPolicy.NONE, max_deliver=1, mem_storage=True, num_replicas=1,
            flow_control=True, idle_heartbeat=HEARTBEAT_S, inactive_threshold=CONSUMER_KEPT_S,
        )  # fmt: skip

    async def _on_message(self, message: Msg) -> None:
        if self._lost:
            return  # Of a delivery that was given up.
        self._heard_s = self._loop.time()
        place = place_of(message.reply)
        if place is not None:
            self._take(place, message)
        else:
            await self._obey(message)

    def _take(self, place: Place, message: Msg) -> None:
        """Into the buffer if it is the next one; else the delivery is given up, or the log is damaged."""
        if place.delivery != self._delivered + 1:
            return self.reconnect()
        if place.seq <= self._last:
            where = self._log.where
            return self.fail(LogDamaged(f"message {place.seq} came again after {self._last}", where=where))
        if not self._pattern and place.seq != self._last + 1:
            if self._gap_after == self._last:
                return self.fail(self._missing(place.seq))
            self._gap_after = self._last
            return self.reconnect()
        self._delivered, self._last = place.delivery, place.seq
        self._log.seen = max(self._log.seen, place.seq)
        self._at_end = place.pending == 0
        headers = {name: value for name, value in (message.headers or {}).items() if name.startswith("Tg-")}
        self._buffer.append(Message(place.seq, message.subject, message.data, headers))
        return self._wake()

    async def _obey(self, message: Msg) -> None:
        """What the server says beside the messages: alive, slow down, or gone."""
        headers = message.headers or {}
        if headers.get("Status") != "100":
            return self.reconnect()
        reply = message.reply or headers.get("Nats-Consumer-Stalled", "")
        if not reply:
            return None
        if self._buffer:
            self._flow_reply = reply
            return None
        return await self._answer(reply)

    async def _answer(self, reply: str) -> None:
        with contextlib.suppress(NatsError):
            await self._log.client.publish(reply)

    def _check_heartbeat(self) -> None:
        if self._loop.time() - self._heard_s > SILENCE_MAX_S:
            return self.reconnect()
        self._watch = self._loop.call_later(HEARTBEAT_S, self._check_heartbeat)
        return None

    def _missing(self, until: int) -> LogDamaged:
        what = f"messages {self._last + 1} to {until - 1} are not in the log"
        return LogDamaged(what, where=self._log.where, mend="read them from the archived journal")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
