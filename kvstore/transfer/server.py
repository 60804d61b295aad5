"""Offers a tier to peers over TCP: one thread a connection, all of them bounded in number and in time.

A connection is closed that asks nothing for `idle_ns`, or whose next word or slice takes too long.
"""

import secrets
import socket
import threading
import time
from contextlib import suppress

from events.base import NS_PER_S, SliceId
from kvstore.errors import KVError
from kvstore.tiers.base import TierStore
from kvstore.transfer.base import CHUNK_BYTES, TransferFailed, TransferFault
from kvstore.transfer.local import fault_of
from kvstore.transfer.tcp import receive_slice, send_slice
from kvstore.transfer.wire import (
    NONCE_BYTES,
    VERSION,
    Failed,
    Get,
    Go,
    Hello,
    LeftNs,
    LineBroken,
    Message,
    Offer,
    Put,
    Refused,
    Stored,
    Welcome,
    Wire,
    proof,
    session_key,
)

CONNECTIONS_MAX = 16
STALL_NS = 10 * NS_PER_S
"""For a word."""
SLICE_NS = 60 * NS_PER_S
"""For all pieces of a slice."""
IDLE_NS = 300 * NS_PER_S
ACCEPT_AGAIN_S = 0.1


class SliceServer:
    """Serves from the moment it is made until `close`. `address` is where (port 0 takes a free one)."""

    def __init__(
        self,
        tier: TierStore,
        *,
        key: bytes,
        namespace: bytes,
        address: tuple[str, int] = ("127.0.0.1", 0),
        stall_ns: int = STALL_NS,
        idle_ns: int = IDLE_NS,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._tier, self._key, self._namespace = tier, key, namespace
        self._stall_ns, self._idle_ns, self._chunk_bytes = stall_ns, idle_ns, chunk_bytes
        self._listener = socket.create_server(address)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._lock = threading.Lock()
        self._wires: dict[Wire, threading.Thread] = {}
        self._closing = threading.Event()
        self._accepting = threading.Thread(target=self._accept, name="slices", daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                line, _ = self._listener.accept()
            except OSError:
                # Closed; or no descriptors are left: then others must end first.
                self._closing.wait(ACCEPT_AGAIN_S)
                continue
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire = Wire(line, client=False)
            thread = threading.Thread(target=self._serve, args=(wire,), name="slices", daemon=True)
            with self._lock:
                full = self._closing.is_set() or len(self._wires) >= CONNECTIONS_MAX
                if not full:
                    self._wires[wire] = thread
            if full:
                wire.close()
            else:
                thread.start()

    def _serve(self, wire: Wire) -> None:
        try:
            with suppress(LineBroken):
                if self._greeted(wire):
                    while True:
                        self._answer(wire, wire.receive(_within(self._idle_ns))[0])
        finally:
            with self._lock:
                del self._wires[wire]
            wire.close()

    def _word(self) -> LeftNs:
        return _within(self._stall_ns)

    def _greeted(self, wire: Wire) -> bool:
        left_ns = self._word()
        hello = wire.receive(left_ns)[0]
        if not isinstance(hello, Hello) or hello.version != VERSION:
            wire.send(Refused(why="the peer speaks another version"), left_ns)
            return False
        if hello.namespace != self._namespace:
            wire.send(Refused(why="the peer has KV of another model, dtype or layout"), left_ns)
            return False
        nonce = secrets.token_bytes(NONCE_BYTES)
        key = session_key(self._key, namespace=self._namespace, client=hello.nonce, server=nonce)
        wire.send(Welcome(nonce=nonce, proof=proof(key)), left_ns)
        wire.use(key)
        return True

    def _answer(self, wire: Wire, message: Message) -> None:
        match message:
            case Get(slice_id=slice_id):
                self._give(wire, slice_id)
            case Put(slice_id=slice_id, slice_bytes=size):
                wire.send(self._taken(wire, slice_id, size), self._word())
            case _:
                raise LineBroken(TransferFault.REFUSED, "not a question")

    def _give(self, wire: Wire, slice_id: SliceId) -> None:
        try:
            with self._tier.lend(slice_id) as view:
                wire.send(Offer(slice_bytes=view.nbytes), self._word())
                if isinstance(wire.receive(self._word())[0], Go):
                    send_slice(wire, slice_id, view, self._chunk_bytes, left_ns=_within(SLICE_NS))
        except KVError as error:
            wire.send(Failed(fault=fault_of(error), why=str(error)), self._word())

    def _taken(self, wire: Wire, slice_id: SliceId, size: int) -> Message:
        def write(memory: memoryview) -> None:
            wire.send(Go(), self._word())
            receive_slice(wire, slice_id, memory, left_ns=_within(SLICE_NS))

        try:
            new = self._tier.fill(slice_id, size, write)
        except TransferFailed as error:
            raise LineBroken(error.fault, str(error)) from error  # Pieces may still be on their way.
        except KVError as error:
            return Failed(fault=fault_of(error), why=str(error))
        if not new and not self._tier.holds(slice_id):
            return Failed(fault=TransferFault.UNAVAILABLE, why="it is being stored or dropped")
        return Stored(new=new)

    def close(self) -> None:
        """Serve nobody any more; returns when all threads have ended. Twice is fine."""
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        with self._lock:
            serving = dict(self._wires)
        for wire in serving:
            wire.wake()
        for thread in serving.values():
            thread.join()


def _within(limit_ns: int) -> LeftNs:
    """What is left of that time from now on; LineBroken when nothing is."""
    end_ns = time.monotonic_ns() + limit_ns

    def left_ns() -> int:
        left = end_ns - time.monotonic_ns()
        if left <= 0:
            raise LineBroken(TransferFault.TIMEOUT, "the peer takes too long")
        return left

    return left_ns
