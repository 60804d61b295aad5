"""What every transport promises (kvstore/transfer/base.py): whole or not at all, within its limits."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from events.base import NS_PER_MS, NS_PER_S, SliceId
from kvstore.tiers.base import TierStore
from kvstore.tiers.memory import memory_tier
from kvstore.tiers.slicefile import HEADER_BYTES
from kvstore.tiers.ssd import ssd_tier
from kvstore.transfer.base import Attempt, TransferFailed, TransferFault, TransportEngine
from kvstore.transfer.limits import Cancel, Link
from kvstore.transfer.local import LocalTransport
from kvstore.transfer.server import SliceServer
from kvstore.transfer.tcp import Direction, TcpTransport
from tests.kvstore.tiers.kinds import NAMESPACE
from tests.kvstore.transfer.clocks import FakeClock

KEY = b"k" * 32
CHUNK = 1000
SLICE_BYTES = 4 * CHUNK
A, B, C = (SliceId(letter * 32) for letter in "abc")


class Way:
    """A source with slices, a target, and a transport from one to the other."""

    def __init__(self, source: TierStore, target: TierStore, transport: TransportEngine) -> None:
        self.source, self.target, self.transport = source, target, transport
        self.clock, self.cancel = FakeClock(), Cancel()
        self.link = Link(0, burst_bytes=1, clock=self.clock)

    def attempt(self, slice_id: SliceId, *, timeout_ns: int = 10 * NS_PER_S) -> Attempt:
        deadline_ns = self.clock.ns + timeout_ns
        return Attempt(slice_id, deadline_ns=deadline_ns, clock=self.clock, cancel=self.cancel, link=self.link)

    def move(self, slice_id: SliceId, *, timeout_ns: int = 10 * NS_PER_S) -> int:
        return self.transport.move(self.attempt(slice_id, timeout_ns=timeout_ns))

    def fails(self, slice_id: SliceId, *, timeout_ns: int = 10 * NS_PER_S) -> TransferFault:
        """The fault; and then nothing came."""
        used = self.target.bytes_used
        with pytest.raises(TransferFailed) as caught:
            self.move(slice_id, timeout_ns=timeout_ns)
        assert caught.value.name == slice_id
        assert not self.target.holds(slice_id)
        assert eventually(lambda: self.target.bytes_used == used), "what came in vain is given back"
        return caught.value.fault


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes true: the other side of a connection notices its end in a thread of its own."""
    cancel, end_ns = Cancel(), time.monotonic_ns() + 5 * NS_PER_S
    while not holds() and time.monotonic_ns() < end_ns:
        cancel.wait(NS_PER_MS)
    return holds()


def content(name: str, length: int = SLICE_BYTES) -> bytes:
    return Random(name).randbytes(length)


def local(folder: Path) -> Iterator[Way]:
    source, target = memory_tier(bytes_max=1 << 20), memory_tier(bytes_max=3 * SLICE_BYTES)
    yield Way(source, target, LocalTransport(source, target, chunk_bytes=CHUNK))


def local_from_ssd(folder: Path) -> Iterator[Way]:
    source = ssd_tier(folder, bytes_max=1 << 20, namespace=NAMESPACE)
    target = memory_tier(bytes_max=3 * SLICE_BYTES)
    yield Way(source, target, LocalTransport(source, target, chunk_bytes=CHUNK))
    source.close()


def pull(folder: Path) -> Iterator[Way]:
    source, target = memory_tier(bytes_max=1 << 20), memory_tier(bytes_max=3 * SLICE_BYTES)
    server = SliceServer(source, key=KEY, namespace=NAMESPACE, chunk_bytes=CHUNK)
    transport = TcpTransport(server.address, target, direction=Direction.PULL, key=KEY, namespace=NAMESPACE)
    yield Way(source, target, transport)
    transport.close()
    server.close()


def push(folder: Path) -> Iterator[Way]:
    source, target = memory_tier(bytes_max=1 << 20), memory_tier(bytes_max=3 * SLICE_BYTES)
    server = SliceServer(target, key=KEY, namespace=NAMESPACE)
    transport = TcpTransport(
        server.address, source, direction=Direction.PUSH, key=KEY, namespace=NAMESPACE, chunk_bytes=CHUNK
    )
    yield Way(source, target, transport)
    transport.close()
    server.close()


@pytest.fixture(params=[local, local_from_ssd, pull, push], ids=lambda kind: kind.__name__)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Way]:
    make: Callable[[Path], Iterator[Way]] = request.param
    yield from make(tmp_path)


def read(tier: TierStore, name: SliceId) -> bytes:
    out = bytearray(tier.bytes_of(name))
    tier.read_into(name, out)
    return bytes(out)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, SLICE_BYTES])
def test_a_slice_arrives_whole_whatever_its_length(way: Way, length: int) -> None:
    way.source.put(A, content(A, length))
    assert way.move(A) == length
    assert read(way.target, A) == content(A, length)
    assert way.source.holds(A), "it was copied"


def test_one_connection_carries_many(way: Way) -> None:
    for name in (A, B, C):
        way.source.put(name, content(name))
        assert way.move(name) == SLICE_BYTES
    assert [read(way.target, name) for name in (A, B, C)] == [content(name) for name in (A, B, C)]


def test_what_is_there_is_not_moved_again(way: Way) -> None:
    way.source.put(A, content(A))
    way.move(A)
    assert way.move(A) == 0


def test_what_the_source_has_not_is_said(way: Way) -> None:
    assert way.fails(A) is TransferFault.NOT_RESIDENT
    way.source.put(A, content(A))
    assert way.move(A) == SLICE_BYTES, "and the way is still open"


def test_a_full_target_is_said_and_works_again_after_a_drop(way: Way) -> None:
    way.source.put(A, content(A))
    way.target.put(B, bytes(2 * SLICE_BYTES + 1))
    assert way.fails(A) is TransferFault.NO_ROOM
    way.target.drop(B)
    assert way.move(A) == SLICE_BYTES
    assert read(way.target, A) == content(A)


def test_a_closed_tier_is_said(way: Way) -> None:
    way.source.put(A, content(A))
    way.target.close()
    with pytest.raises(TransferFailed) as caught:
        way.move(A)
    assert caught.value.fault is TransferFault.UNAVAILABLE


def test_a_word_to_stop_before_the_start(way: Way) -> None:
    way.source.put(A, content(A))
    way.cancel.set()
    assert way.fails(A) is TransferFault.CANCELLED


def test_a_word_to_stop_in_the_middle_leaves_nothing(way: Way) -> None:
    way.source.put(A, content(A))
    way.link = Link(CHUNK, burst_bytes=CHUNK, clock=way.clock)
    way.clock.at(1500 * NS_PER_MS, way.cancel.set)
    assert way.fails(A) is TransferFault.CANCELLED
    assert way.clock.ns == 1_000_000_000 + 1500 * NS_PER_MS, "at once, not after the wait"


def test_the_link_sets_the_pace(way: Way) -> None:
    """Four pieces of 1,000 bytes at 1,000 bytes a second, the first one free: three seconds."""
    way.link = Link(CHUNK, burst_bytes=CHUNK, clock=way.clock)
    way.source.put(A, content(A))
    way.move(A)
    assert way.clock.ns - 1_000_000_000 == 3 * NS_PER_S
    assert read(way.target, A) == content(A)


def test_a_link_that_is_too_slow_is_not_waited_for(way: Way) -> None:
    way.link = Link(CHUNK, burst_bytes=CHUNK, clock=way.clock)
    way.source.put(A, content(A))
    assert way.fails(A, timeout_ns=2500 * NS_PER_MS) is TransferFault.TIMEOUT
    assert way.clock.ns - 1_000_000_000 == 2 * NS_PER_S, "the fourth piece could not come in time"
    assert way.link.queue_bytes() == 0, "and takes no room from others"
    assert way.move(A, timeout_ns=100 * NS_PER_S) == SLICE_BYTES


def test_many_threads_share_one_way(way: Way) -> None:
    names = [SliceId(f"{number:032x}") for number in range(3)]
    for name in names:
        way.source.put(name, content(name))
    faults: list[TransferFault] = []

    def work() -> None:
        for name in names:
            try:
                way.move(name)
            except TransferFailed as error:
                faults.append(error.fault)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(faults) <= {TransferFault.UNAVAILABLE}, "another thread is at it"
    assert [read(way.target, name) for name in names] == [content(name) for name in names]
    assert way.target.bytes_used == 3 * SLICE_BYTES


def test_a_damaged_slice_is_not_moved(tmp_path: Path) -> None:
    for way in local_from_ssd(tmp_path):
        way.source.put(A, content(A))
        path = tmp_path / NAMESPACE.hex() / f"{A}.slice"
        data = bytearray(path.read_bytes())
        data[HEADER_BYTES] ^= 1
        path.write_bytes(data)
        assert way.fails(A) is TransferFault.NOT_RESIDENT
