"""The TCP transport: strangers, damage, silence and sudden ends."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from events.base import NS_PER_MS, NS_PER_S, SliceId
from kvstore.tiers.memory import memory_tier
from kvstore.tiers.shelf import Shelf
from kvstore.transfer import server as server_module
from kvstore.transfer.base import Attempt, TransferFailed, TransferFault, TransferPlan
from kvstore.transfer.carry import Carrier
from kvstore.transfer.limits import Cancel, Link, MonotonicClock
from kvstore.transfer.server import SliceServer
from kvstore.transfer.tcp import Direction, TcpTransport
from kvstore.transfer.wire import Get, Hello, LineBroken, Put, Wire
from tests.kvstore.tiers.kinds import NAMESPACE, OTHER_NAMESPACE
from tests.kvstore.transfer.test_contract import CHUNK, KEY, SLICE_BYTES, A, B, content, eventually, read

CLOCK = MonotonicClock()


@pytest.fixture
def tier() -> Shelf:
    """What the server offers: A is there."""
    shelf = memory_tier(bytes_max=1 << 20)
    shelf.put(A, content(A))
    return shelf


@pytest.fixture
def server(tier: Shelf) -> Iterator[SliceServer]:
    serving = SliceServer(tier, key=KEY, namespace=NAMESPACE, chunk_bytes=CHUNK, stall_ns=100 * NS_PER_MS)
    yield serving
    serving.close()


def transport(
    address: tuple[str, int], tier: Shelf, *, pushes: bool = False, key: bytes = KEY, namespace: bytes = NAMESPACE
) -> TcpTransport:
    direction = Direction.PUSH if pushes else Direction.PULL
    return TcpTransport(address, tier, direction=direction, key=key, namespace=namespace, chunk_bytes=CHUNK)


def move(
    way: TcpTransport, slice_id: SliceId = A, *, timeout_ns: int = 5 * NS_PER_S, cancel: Cancel | None = None
) -> int:
    attempt = Attempt(
        slice_id,
        deadline_ns=CLOCK.now_ns() + timeout_ns,
        clock=CLOCK,
        cancel=cancel or Cancel(),
        link=Link(0, burst_bytes=1, clock=CLOCK),
    )
    try:
        return way.move(attempt)
    finally:
        way.close()


def fault(call: Callable[[], object]) -> TransferFault:
    with pytest.raises(TransferFailed) as caught:
        call()
    return caught.value.fault


def mine() -> Shelf:
    return memory_tier(bytes_max=1 << 20)


@pytest.mark.parametrize("other", [{"key": b"x" * 32}, {"namespace": OTHER_NAMESPACE}], ids=["key", "namespace"])
def test_a_stranger_gets_and_gives_nothing(server: SliceServer, tier: Shelf, other: dict[str, bytes]) -> None:
    target, source = mine(), mine()
    source.put(B, content(B))
    assert fault(lambda: move(transport(server.address, target, **other))) is TransferFault.REFUSED
    assert fault(lambda: move(transport(server.address, source, pushes=True, **other), B)) is TransferFault.REFUSED
    assert not target.holds(A)
    assert not tier.holds(B)


def test_another_version_is_refused_in_words(server: SliceServer) -> None:
    with raw(server.address) as wire:
        wire.send(Hello(version=2, namespace=NAMESPACE, nonce=bytes(16)), lambda: NS_PER_S)
        assert "version" in str(wire.receive(lambda: NS_PER_S)[0])


@contextmanager
def raw(address: tuple[str, int]) -> Iterator[Wire]:
    """A connection without manners."""
    with socket.create_connection(address, timeout=5) as line:
        yield Wire(line, client=True)


def test_who_cannot_prove_the_key_is_not_served(server: SliceServer, tier: Shelf) -> None:
    for question in (Get(slice_id=A), Put(slice_id=B, slice_bytes=1)):
        with raw(server.address) as wire:
            wire.send(Hello(version=1, namespace=NAMESPACE, nonce=bytes(16)), lambda: NS_PER_S)
            wire.receive(lambda: NS_PER_S)
            wire.send(question, lambda: NS_PER_S)  # Under no key.
            with pytest.raises(LineBroken):
                wire.receive(lambda: NS_PER_S)
    assert not tier.holds(B)


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n" * 10, struct.pack(">II16s", 2**32 - 1, 0, b""), struct.pack(">II16s", 0, 2**32 - 1, b""),
     struct.pack(">II16s", 4, 0, b"") + b"\xff" * 4, b""],
    ids=["http", "huge message", "huge piece", "no message", "nothing"],
)  # fmt: skip
def test_garbage_ends_its_connection_and_no_other(server: SliceServer, garbage: bytes) -> None:
    with socket.create_connection(server.address, timeout=5) as line:
        with suppress(OSError):  # The server may be faster with the end than we with the rest.
            line.sendall(garbage)
            line.shutdown(socket.SHUT_WR)
            assert line.recv(1) == b""
        assert move(transport(server.address, mine())) == SLICE_BYTES


def test_who_says_nothing_is_let_go(server: SliceServer) -> None:
    with socket.create_connection(server.address, timeout=5) as line:
        assert line.recv(1) == b"", "closed after the time for a word"


def test_there_is_a_limit_of_connections(server: SliceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 0)
    assert fault(lambda: move(transport(server.address, mine()))) is TransferFault.PEER_GONE


def test_a_peer_that_is_not_there_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()[:2]
    assert fault(lambda: move(transport(address, mine()))) is TransferFault.PEER_GONE


@contextmanager
def silent() -> Iterator[tuple[str, int]]:
    """A peer that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[:2]


@pytest.mark.parametrize("pushes", [False, True], ids=["pull", "push"])
def test_a_peer_that_never_answers_is_not_waited_for(pushes: bool) -> None:
    source = mine()
    source.put(A, content(A))
    with silent() as address:
        way = transport(address, source if pushes else mine(), pushes=pushes)
        assert fault(lambda: move(way, timeout_ns=30 * NS_PER_MS)) is TransferFault.TIMEOUT


def test_a_word_to_stop_ends_a_wait_on_the_line_at_once() -> None:
    with silent() as address:
        cancel, started = Cancel(), time.monotonic()
        timer = threading.Timer(0.02, cancel.set)
        timer.start()
        assert fault(lambda: move(transport(address, mine()), timeout_ns=60 * NS_PER_S, cancel=cancel)) is (
            TransferFault.CANCELLED
        )
        assert time.monotonic() - started < 30
        timer.join()


class Line:
    """Stands between client and server and passes bytes on; `spoil` may change or end what comes from one side."""

    def __init__(self, address: tuple[str, int], *, spoil: Callable[[int, bytes], bytes | None], upwards: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._to, self._spoil, self._upwards = address, spoil, upwards
        self._lines: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._lines.append(client)
                server = socket.create_connection(self._to)
                self._lines.append(server)
                for source, target, spoils in (
                    (client, server, self._upwards),
                    (server, client, not self._upwards),
                ):
                    thread = threading.Thread(target=self._pass, args=(source, target, spoils), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, source: socket.socket, target: socket.socket, spoils: bool) -> None:
        seen = 0
        with suppress(OSError):
            while data := source.recv(256):
                out = self._spoil(seen, data) if spoils else data
                seen += len(data)
                if out is None:
                    break
                target.sendall(out)
        for line in (source, target):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for line in (self._listener, *self._lines):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for line in (self._listener, *self._lines):
            line.close()


@contextmanager
def line(
    address: tuple[str, int], spoil: Callable[[int, bytes], bytes | None], *, upwards: bool
) -> Iterator[tuple[str, int]]:
    between = Line(address, spoil=spoil, upwards=upwards)
    try:
        yield between.address
    finally:
        between.close()


def once(at: int, change: Callable[[bytes], bytes | None]) -> Callable[[int, bytes], bytes | None]:
    """Change what passes at that byte, the first time only."""
    done = threading.Event()

    def spoil(seen: int, data: bytes) -> bytes | None:
        if seen <= at < seen + len(data) and not done.is_set():
            done.set()
            return change(data)
        return data

    return spoil


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def ended(data: bytes) -> None:
    return None


MIDDLE = SLICE_BYTES // 2


@pytest.mark.parametrize("pushes", [False, True], ids=["pull", "push"])
@pytest.mark.parametrize(("change", "faults"), [
    (flipped, {TransferFault.DAMAGED, TransferFault.PEER_GONE}),
    (ended, {TransferFault.PEER_GONE}),
])  # fmt: skip
def test_damage_and_a_sudden_end_leave_nothing_and_another_try_mends_them(
    server: SliceServer, tier: Shelf, pushes: bool, change: Callable[[bytes], bytes | None], faults: set[TransferFault]
) -> None:
    near = mine()
    near.put(B, content(B))
    name, target = (B, tier) if pushes else (A, near)
    used = target.bytes_used
    with line(server.address, once(MIDDLE, change), upwards=pushes) as address:
        assert fault(lambda: move(transport(address, near, pushes=pushes), name)) in faults
        assert not target.holds(name)
        assert eventually(lambda: target.bytes_used == used)
        assert move(transport(address, near, pushes=pushes), name) == SLICE_BYTES
    assert read(target, name) == content(name)


def test_a_carrier_gets_a_slice_over_a_bad_line(server: SliceServer) -> None:
    target = mine()
    with line(server.address, once(MIDDLE, flipped), upwards=False) as address:
        way = transport(address, target)
        carrier = Carrier(way, link=Link(0, burst_bytes=1, clock=CLOCK), clock=CLOCK)
        report = carrier.carry(TransferPlan(order="m1", slices=(A,)), Cancel())
        way.close()
    assert (report.slices_done, report.tries, report.first_tries_failed) == (1, 2, 1)
    assert read(target, A) == content(A)


def test_a_server_that_ends_in_the_middle_ends_the_try_and_its_successor_serves(tier: Shelf) -> None:
    """The engine at the other end goes away while a slice is under way."""
    first = SliceServer(tier, key=KEY, namespace=NAMESPACE, chunk_bytes=CHUNK)
    target = mine()
    ends = threading.Thread(target=first.close)

    def spoil(seen: int, data: bytes) -> bytes:
        if seen >= MIDDLE and not ends.ident:
            ends.start()
            ends.join()
        return data

    with line(first.address, spoil, upwards=False) as address:
        fault_or_done: list[object] = []
        try:
            fault_or_done.append(move(transport(address, target)))
        except TransferFailed as error:
            fault_or_done.append(error.fault)
    assert fault_or_done in ([SLICE_BYTES], [TransferFault.PEER_GONE]), "what was sent already may still arrive"
    assert target.bytes_used in (0, SLICE_BYTES)
    second = SliceServer(tier, key=KEY, namespace=NAMESPACE, address=first.address)
    assert move(transport(second.address, mine())) == SLICE_BYTES
    second.close()


def test_closing_ends_every_thread(tier: Shelf) -> None:
    serving = SliceServer(tier, key=KEY, namespace=NAMESPACE)
    with socket.create_connection(serving.address):
        serving.close()
        serving.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "slices" and thread.is_alive()]


@pytest.mark.parametrize(
    "order", [[0, 0], [1], [1, 0], []], ids=["replayed", "left out", "out of order", "of the other direction"]
)
def test_a_frame_counts_once_in_its_place_and_direction(order: list[int]) -> None:
    tape, into = socket.socketpair()
    with tape, into:
        spoken, client, server = Wire(tape, client=True), Wire(tape, client=False), Wire(into, client=False)
        for wire in (spoken, client, server):
            wire.use(bytes(range(32)))
        frames = []
        for wire in (spoken, spoken) if order else (client,):
            wire.send(Get(slice_id=A), lambda: NS_PER_S)
            frames.append(into.recv(4096))
        good = [0] if order == [0, 0] else []
        for index in order or [0]:
            tape.sendall(frames[index])
        for _ in good:
            assert server.receive(lambda: NS_PER_S)[0] == Get(slice_id=A)
        with pytest.raises(LineBroken, match="checksum"):
            server.receive(lambda: NS_PER_S)
