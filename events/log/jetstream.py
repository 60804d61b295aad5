"""The log on NATS JetStream: one stream per pool. See `events.log.base.Log` for what is promised."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Self

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import RawStreamMsg, StreamInfo
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from events.base import LogDamaged, LogError, PoolId
from events.log import stream_settings
from events.log.base import Fence, FenceBroken, Message
from events.log.jetstream_reader import Reader
from events.log.nats_client import NatsClient, connect
from events.subjects import log_of, stream_of

__all__ = ["JetStreamLog", "NatsClient", "connect"]

APPEND_TIMEOUT_S = 5.0
API_TIMEOUT_S = 5.0
NAME_IN_USE = 10058
NO_STREAM = 10059
UNAVAILABLE = 503
FENCE_BROKEN = 10071
FULL = frozenset({10023, 10047, 10077, 10122})
"""Server out of room, out of memory, stream at its limit, account at its limit."""
HEADER_PREFIX = "Tg-"
MSG_ID = "Nats-Msg-Id"
RESTORE = "restore it from its journal"


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    error: _Error | None = None


_decode_ack = msgspec.json.Decoder(_Ack).decode


class JetStreamLog:
    """A pool's stream, through a client that stays the caller's. Made by `open`.

    An append waits for a lost connection up to its timeout; one that was in flight when the connection went
    fails at once with LogError, its outcome unknown. `seen` is the highest seq that was acknowledged or read
    here: a stream that ends before it is damaged.
    """

    def __init__(self, client: NatsClient, pool: PoolId, *, append_timeout_s: float) -> None:
        self.pool = pool
        self._acks: Subscription | None = None
        self.client = client
        self.stream = stream_of(pool)
        self.where = f"{client.where} {self.stream}"
        self.js = client.jetstream(timeout=API_TIMEOUT_S)
        self.seen = 0
        self._prefix = log_of(pool)[:-1]
        self._append_timeout_s = append_timeout_s
        self._inbox = client.new_inbox() + "."
        self._appends = 0
        self._waiting: dict[str, asyncio.Future[_Ack]] = {}
        self._readers: dict[Reader, None] = {}

    @classmethod
    async def open(
        cls, client: NatsClient, pool: PoolId, *, create: bool = True, replicas: int = 1, bytes_max: int = 0,
        append_timeout_s: float = APPEND_TIMEOUT_S,
    ) -> Self:  # fmt: skip
        """The log of a pool, made if it is not there and `create`. LogError when JetStream is off, the log is not
        there, or its stream has settings that could lose history."""
        log = cls(client, pool, append_timeout_s=append_timeout_s)
        info = await log._find_or_create(create=create, replicas=replicas, bytes_max=bytes_max)
        stream_settings.check(info.config, pool, where=log.where)
        log.seen = info.state.last_seq
        log._acks = await client.subscribe(
            f"{log._inbox}*", cb=log._on_ack, pending_msgs_limit=0, pending_bytes_limit=0
        )
        client.listen(log._on_connection)
        return log

    async def append(
        self, subject: str, body: bytes, *, msg_id: str = "", fence: Fence | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:  # fmt: skip
        assert subject.startswith(self._prefix), "a pool's log holds the subjects of its pool"
        sent = dict(headers) if headers else {}
        assert all(name.startswith(HEADER_PREFIX) for name in sent), "headers of the log begin with Tg-"
        if msg_id:
            sent[MSG_ID] = msg_id
        if fence is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(fence.last_seq)
            sent["Nats-Expected-Last-Subject-Sequence-Subject"] = fence.pattern
        ack = await self._publish(subject, body, sent or None)
        seq = ack.seq
        if ack.error is not None:
            # The server looks at the fence before the id, so an append said again breaks its own fence.
            seq = await self._said_before(msg_id, fence) if ack.error.err_code == FENCE_BROKEN else 0
            if not seq:
                raise self._refusal(ack.error, fence)
        self.seen = max(self.seen, seq)
        return seq

    async def read(
        self, *, after: int = 0, pattern: str = ">", follow: bool = False
    ) -> AsyncGenerator[list[Message], None]:
        everything = pattern in (">", log_of(self.pool))
        reader = Reader(self, after=after, pattern="" if everything else pattern, follow=follow)
        self._readers[reader] = None
        try:
            async for batch in reader.batches():
                yield batch
        finally:
            del self._readers[reader]
            await reader.stop()

    async def last(self, pattern: str = ">") -> Message | None:
        raw = await self._stored(subject=log_of(self.pool) if pattern == ">" else pattern)
        return _as_message(raw) if raw is not None else None

    async def get(self, seq: int) -> Message | None:
        raw = await self._stored(seq=seq) if seq > 0 else None
        return _as_message(raw) if raw is not None else None

    async def info(self) -> StreamInfo:
        """What the server says of the stream. LogDamaged when it is gone, LogError when nobody answers."""
        try:
            return await self.js.stream_info(self.stream)
        except NotFoundError:
            raise LogDamaged("the stream is gone", where=self.where, mend=RESTORE) from None
        except (NatsError, TimeoutError) as error:
            raise self._failed("the stream cannot be asked", error) from error

    async def close(self) -> None:
        self.client.unlisten(self._on_connection)
        self._fail_waiting("the log was closed")
        for reader in list(self._readers):
            reader.fail(LogError("the log was closed", where=self.where))
        if self._acks is not None and not self.client.is_closed:
            await self._acks.unsubscribe()

    async def _find_or_create(self, *, create: bool, replicas: int, bytes_max: int) -> StreamInfo:
        try:
            try:
                return await self.js.stream_info(self.stream)
            except NotFoundError:
                if not create:
                    mend = "see the pool's name, or start Tidegate for it first"
                    raise LogError(f"pool {self.pool!r} has no log", where=self.where, mend=mend) from None
            wanted = stream_settings.settings(self.pool, replicas=replicas, bytes_max=bytes_max)
            try:
                return await self.js.add_stream(wanted)
            except APIError as error:
                if error.err_code != NAME_IN_USE:
                    raise
                return await self.js.stream_info(self.stream)  # Somebody else was faster, with other settings.
        except (NatsError, TimeoutError) as error:
            raise self._failed("the log cannot be opened", error) from error

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str] | None) -> _Ack:
        if not self.client.is_connected:
            await self._connected()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_Ack] = loop.create_future()
        self._appends += 1
        token = str(self._appends)
        timer = loop.call_later(self._append_timeout_s, _give_up, answer)
        self._waiting[token] = answer
        try:
            await self.client.publish(subject, body, reply=self._inbox + token, headers=headers)
            return await answer
        except MaxPayloadError:
            what = f"a message of {len(body)} bytes is more than the server takes ({self.client.max_payload})"
            raise LogError(what, where=self.where, mend="raise max_payload") from None
        except (NatsError, TimeoutError) as error:
            raise self._failed("the log did not acknowledge", error) from error
        finally:
            timer.cancel()
            del self._waiting[token]

    async def _connected(self) -> None:
        if self.client.is_closed:
            raise LogError("the connection is closed", where=self.where)
        try:
            async with asyncio.timeout(self._append_timeout_s):
                await self.client.up.wait()
        except TimeoutError as error:
            raise self._failed("NATS is away", error) from error

    async def _on_ack(self, message: Msg) -> None:
        answer = self._waiting.get(message.subject[len(self._inbox) :])
        if answer is None or answer.done():
            return
        if not message.data:
            answer.set_exception(LogError("no stream takes it", where=self.where, mend="is JetStream running?"))
            return
        try:
            answer.set_result(_decode_ack(message.data))
        except msgspec.DecodeError as error:
            answer.set_exception(LogError(f"not an acknowledgement: {error}", where=self.where))

    def _on_connection(self) -> None:
        if not self.client.is_connected:
            self._fail_waiting("the connection was lost before the acknowledgement")
        for reader in self._readers:
            reader.reconnect()

    def _fail_waiting(self, what: str) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LogError(what, where=self.where, mend="say it again with the same msg_id"))

    def _refusal(self, error: _Error, fence: Fence | None) -> LogError:
        if error.err_code == FENCE_BROKEN and fence is not None:
            return FenceBroken(f"{fence.pattern} is not at {fence.last_seq}: {error.description}", where=self.where)
        if error.err_code in FULL or error.code == UNAVAILABLE:
            mend = "free disk space or raise the stream's and the server's limits"
            return LogError(f"the log takes nothing more: {error.description}", where=self.where, mend=mend)
        return LogError(f"refused: {error.description} ({error.err_code})", where=self.where)

    def _failed(self, what: str, error: Exception) -> LogError:
        match error:
            case ServiceUnavailableError() | APIError(err_code=10039 | 10076):
                text, mend = "JetStream is not available", "start nats-server with JetStream (-js)"
            case APIError():
                text, mend = f"{error.description} ({error.err_code})", ""
            case NatsTimeoutError() | TimeoutError():
                text, mend = self.client.why(), ""
            case _:
                text, mend = str(error), ""
        return LogError(f"{what}: {text}", where=self.where, mend=mend)

    async def _said_before(self, msg_id: str, fence: Fence | None) -> int:
        """Seq of the newest message under the fence if it is this very one; else 0."""
        newest = await self._stored(subject=fence.pattern) if fence is not None and msg_id else None
        if newest is None or (newest.headers or {}).get(MSG_ID) != msg_id:
            return 0
        return newest.seq or 0

    async def _stored(self, *, seq: int | None = None, subject: str | None = None) -> RawStreamMsg | None:
        # Asked of the stream's leader: a replica may be behind, and owners are fenced by this answer.
        try:
            return await self.js.get_msg(self.stream, seq=seq, subject=subject)
        except NotFoundError as error:
            if error.err_code == NO_STREAM:
                raise LogDamaged("the stream is gone", where=self.where, mend=RESTORE) from None
            return None
        except (NatsError, TimeoutError) as error:
            raise self._failed("the log cannot be read", error) from error


def _as_message(raw: RawStreamMsg) -> Message:
    assert raw.seq is not None, "a stored message has a seq"
    assert raw.subject is not None, "a stored message has a subject"
    headers = {name: value for name, value in (raw.headers or {}).items() if name.startswith(HEADER_PREFIX)}
    return Message(raw.seq, raw.subject, raw.data or b"", headers)


def _give_up(answer: asyncio.Future[_Ack]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
