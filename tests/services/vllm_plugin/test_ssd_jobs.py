"""The threads of an SSD tier: a job ends once, by all of its slices or by being given up, and tells the truth."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from events.base import SliceId
from kvstore.errors import KVError, NotResident
from kvstore.tiers.memory import memory_tier
from services.vllm_plugin.ssd_jobs import Job, SsdThreads, file_name

BYTES = 8
A, B = b"a" * 36, b"b" * 36


@contextmanager
def threads(store: Any, *, readers: int = 1) -> Iterator[SsdThreads]:
    made = SsdThreads(store, memoryview(bytearray(4 * BYTES)), slice_bytes=BYTES, readers=readers)
    try:
        yield made
    finally:
        made.stop()


class Leaving:
    """A store that refuses a slice without an error: an older stay of it cannot be removed."""

    def put(self, slice_id: SliceId, data: memoryview) -> bool:
        return False

    def drop(self, slice_id: SliceId) -> None:
        raise NotResident(where="ssd", name=slice_id)


def test_slice_that_the_store_did_not_take_is_not_said_to_be_there() -> None:
    with threads(Leaving()) as work:
        job = Job(1, [A], [0], None)
        work.write(job)
        work.settle()
        [ended] = work.finished()
    assert ended.done == []
    assert isinstance(ended.failed[A], KVError)


def test_slice_that_could_not_be_dropped_is_not_taken_for_the_one_that_is_written() -> None:
    store = memory_tier(bytes_max=1 << 10)
    store.put(file_name(A), b"old" + bytes(BYTES - 3))
    with threads(store) as work:
        work.write(Job(1, [A], [0], None))
        work.settle()
        [ended] = work.finished()
    found = bytearray(b"?" * BYTES)
    store.read_into(file_name(A), found)
    assert ended.done == [A]
    assert found == bytes(BYTES)


class Slow:
    """Where finished jobs go; the first one is put there only when it may."""

    def __init__(self, real: Any) -> None:
        self.real, self.may, self.putting = real, threading.Event(), threading.Event()

    def put(self, job: Job) -> None:
        self.putting.set()
        assert self.may.wait(10)
        self.real.put(job)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_who_cannot_give_up_a_job_finds_it_among_the_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory_tier(bytes_max=1 << 10)
    store.put(file_name(A), bytes(BYTES))
    with threads(store) as work:
        slow = Slow(work._finished)
        monkeypatch.setattr(work, "_finished", slow)
        job = Job(1, [A], [0], None)
        work.read(job)
        assert slow.putting.wait(10)
        found: list[list[Job]] = []
        asking = threading.Thread(target=lambda: found.append([] if job.give_up() else work.finished()))
        asking.start()
        slow.may.set()
        asking.join(10)
    assert found == [[job]]


def test_threads_that_hang_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.vllm_plugin.ssd_jobs.STOP_TIMEOUT_S", 0.5)
    free = threading.Event()

    class Hanging:
        def read_into(self, slice_id: SliceId, out: bytearray) -> int:
            free.wait(60)
            return BYTES

    work = SsdThreads(Hanging(), memoryview(bytearray(4 * BYTES)), slice_bytes=BYTES, readers=4)  # type: ignore[arg-type]
    work.read(Job(1, [A, B, A, B], [0, 1, 2, 3], None))
    waited: list[float] = []
    join = threading.Thread.join

    def joined(thread: threading.Thread, timeout: float) -> None:
        waited.append(timeout)
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", joined)
    work.stop()
    free.set()
    assert len(waited) == 5
    assert sum(waited) < 1.5, "the writer and the first reader have half a second each, the others what is left of it"
