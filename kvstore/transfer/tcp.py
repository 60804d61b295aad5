"""Transport over TCP: slices are pulled from, or pushed to, the tier that a SliceServer offers.

Both sides are given the pool's transfer key and the namespace of the KV; who has another one is refused. A slice is
shown in the target after its last piece was checked, so whoever dies in the middle leaves nothing behind.
"""

import hmac
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from events.base import NS_PER_S, SliceId
from kvstore.errors import KVError
from kvstore.tiers.base import TierStore
from kvstore.transfer.base import CHUNK_BYTES, Assembly, Attempt, KVChunk, TransferFailed, TransferFault, chunks
from kvstore.transfer.local import fault_of
from kvstore.transfer.wire import (
    KEY_BYTES,
    NONCE_BYTES,
    VERSION,
    Failed,
    Get,
    Go,
    Hello,
    LeftNs,
    LineBroken,
    No,
    Offer,
    Piece,
    Put,
    Refused,
    Stored,
    Welcome,
    Wire,
    proof,
    session_key,
)

CONNECTIONS_IDLE_MAX = 4


class Direction(StrEnum):
    """From the peer to our tier, or from our tier to the peer."""

    PULL = "pull"
    PUSH = "push"


class TcpTransport:
    """See TransportEngine. Connections are made when needed; `CONNECTIONS_IDLE_MAX` that work are kept."""

    def __init__(
        self,
        address: tuple[str, int],
        tier: TierStore,
        *,
        direction: Direction,
        key: bytes,
        namespace: bytes,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        assert len(key) == KEY_BYTES, "the pool's transfer key"
        self._address, self._tier, self._direction = address, tier, direction
        self._key, self._namespace, self._chunk_bytes = key, namespace, chunk_bytes
        self._idle: list[Wire] = []
        self._closed = False

    def move(self, attempt: Attempt) -> int:
        """See TransportEngine."""
        pull = self._direction is Direction.PULL
        try:
            if pull and self._tier.holds(attempt.slice_id):
                return 0
            with self._line(attempt) as wire:
                return self._pull(wire, attempt) if pull else self._push(wire, attempt)
        except LineBroken as error:
            raise attempt.failed(_cancelled(attempt) or error.fault, error.why) from error
        except TransferFailed:
            raise
        except KVError as error:
            raise attempt.failed(fault_of(error), str(error)) from error

    @contextmanager
    def _line(self, attempt: Attempt) -> Iterator[Wire]:
        """A connection that works; after any error it is not used again."""
        wire = self._idle.pop() if self._idle else self._connected(attempt)
        try:
            with attempt.cancel.waking(wire.wake):
                yield wire
        except BaseException:
            wire.close()
            raise
        if self._closed or len(self._idle) >= CONNECTIONS_IDLE_MAX:
            wire.close()
        else:
            self._idle.append(wire)

    def _connected(self, attempt: Attempt) -> Wire:
        try:
            line = socket.create_connection(self._address, timeout=attempt.left_ns() / NS_PER_S)
        except TimeoutError as error:
            raise attempt.failed(TransferFault.TIMEOUT, "the peer does not answer") from error
        except OSError as error:
            raise attempt.failed(TransferFault.PEER_GONE, str(error)) from error
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = Wire(line, client=True)
        try:
            with attempt.cancel.waking(wire.wake):
                self._greet(wire, attempt)
        except BaseException:
            wire.close()
            raise
        return wire

    def _greet(self, wire: Wire, attempt: Attempt) -> None:
        nonce = secrets.token_bytes(NONCE_BYTES)
        wire.send(Hello(version=VERSION, namespace=self._namespace, nonce=nonce), attempt.left_ns)
        match wire.receive(attempt.left_ns)[0]:
            case Refused(why=why):
                raise attempt.failed(TransferFault.REFUSED, why)
            case Welcome() as welcome:
                key = session_key(self._key, namespace=self._namespace, client=nonce, server=welcome.nonce)
                if not hmac.compare_digest(welcome.proof, proof(key)):
                    raise attempt.failed(TransferFault.REFUSED, "the peer has another key")
                wire.use(key)
            case other:
                raise _unexpected(other)

    def _pull(self, wire: Wire, attempt: Attempt) -> int:
        wire.send(Get(slice_id=attempt.slice_id), attempt.left_ns)
        match wire.receive(attempt.left_ns)[0]:
            case Failed() as failed:
                raise attempt.failed(failed.fault, failed.why)
            case Offer(slice_bytes=size):
                pass
            case other:
                raise _unexpected(other)
        asked = False

        def write(memory: memoryview) -> None:
            nonlocal asked
            asked = True
            wire.send(Go(), attempt.left_ns)
            receive_slice(wire, attempt.slice_id, memory, left_ns=attempt.left_ns, pace=attempt.pace)

        try:
            stored = self._tier.fill(attempt.slice_id, size, write)
        finally:
            if not asked:
                wire.send(No(), attempt.left_ns)
        if not stored and not self._tier.holds(attempt.slice_id):
            raise attempt.failed(TransferFault.UNAVAILABLE, "another thread stores or drops it")
        return size if stored else 0

    def _push(self, wire: Wire, attempt: Attempt) -> int:
        with self._tier.lend(attempt.slice_id) as view:
            wire.send(Put(slice_id=attempt.slice_id, slice_bytes=view.nbytes), attempt.left_ns)
            answer = wire.receive(attempt.left_ns)[0]
            if isinstance(answer, Go):
                send_slice(wire, attempt.slice_id, view, self._chunk_bytes, left_ns=attempt.left_ns, pace=attempt.pace)
                answer = wire.receive(attempt.left_ns)[0]
            size = view.nbytes
        match answer:
            case Stored(new=new):
                return size if new else 0
            case Failed() as failed:
                raise attempt.failed(failed.fault, failed.why)
            case other:
                raise _unexpected(other)

    def close(self) -> None:
        """See TransportEngine."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


def send_slice(
    wire: Wire,
    slice_id: SliceId,
    data: memoryview,
    chunk_bytes: int,
    *,
    left_ns: LeftNs,
    pace: Callable[[int], None] = lambda _: None,
) -> None:
    """All pieces of a slice, each after the pace allowed it."""
    for chunk in chunks(slice_id, data, chunk_bytes=chunk_bytes, summed=False):
        pace(chunk.data.nbytes)
        piece = Piece(
            slice_id=slice_id, index=chunk.index, count=chunk.count, offset=chunk.offset, slice_bytes=data.nbytes
        )
        wire.send(piece, left_ns, chunk.data)


def receive_slice(
    wire: Wire,
    slice_id: SliceId,
    memory: memoryview,
    *,
    left_ns: LeftNs,
    pace: Callable[[int], None] = lambda _: None,
) -> None:
    """All pieces of a slice into `memory`. LineBroken if something else comes."""
    assembly = Assembly(slice_id, memory, where="tcp")
    while not assembly.complete:
        message, data = wire.receive(left_ns)
        if not isinstance(message, Piece):
            raise _unexpected(message)
        pace(data.nbytes)
        assembly.take(
            KVChunk(
                slice_id=message.slice_id,
                index=message.index,
                count=message.count,
                offset=message.offset,
                slice_bytes=message.slice_bytes,
                data=data,
            )
        )


def _cancelled(attempt: Attempt) -> TransferFault | None:
    return TransferFault.CANCELLED if attempt.cancel.is_set() else None


def _unexpected(message: object) -> LineBroken:
    return LineBroken(TransferFault.REFUSED, f"{type(message).__name__.lower()} was not expected here")
