"""The SSD tier's slow half: threads that read, write and drop files, so that the scheduler's thread never waits.

Writes and drops go through one thread in the order in which they were asked for: what has to leave has left when what
takes its room comes. Reads go through several. A read lands in a buffer of the thread's own and is copied where it was
wanted only if it still is: a disk that hangs can be given up on at any time, and its late bytes go nowhere.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from events.base import SliceId
from kvstore.errors import ChecksumMismatch, KVError, NotResident, TierUnavailable
from kvstore.tiers.base import TierStore

STOP_TIMEOUT_S: Final = 5.0
"""How long the end of an engine waits for a disk."""
_FAILURES: Final = (KVError, OSError, ValueError)
"""A store says KVError; whatever else a system comes up with must not end a thread that others wait for."""
Task = Callable[[bytearray], None]


class Job:
    """Slices on their way, `context` whose. `failed` says of each that did not arrive why. `deadline_ns` (0 = none) is
    when waiting for it is no use any more, on the monotonic clock."""

    def __init__(self, job_id: int, keys: Sequence[bytes], chunks: Sequence[int], context: Any) -> None:
        self.job_id, self.keys, self.chunks, self.context = job_id, keys, chunks, context
        self.began_ns = self.ended_ns = time.monotonic_ns()
        self.deadline_ns = 0
        self.failed: dict[bytes, KVError] = {}
        self.done: list[bytes] = []
        self.lock = threading.Lock()
        self._given_up = False

    def wanted(self) -> bool:
        """Whether somebody waits for it still."""
        return not self._given_up

    def give_up(self) -> bool:
        """Wait no longer for it: its chunks are not touched from now on. False: it has ended."""
        with self.lock:
            self._given_up = len(self.done) + len(self.failed) < len(self.keys)
            return self._given_up

    def arrived(self, key: bytes, error: KVError | None) -> bool:
        """Under `lock`: one slice has arrived, or not (`error`). Whether that was the last."""
        if error is None:
            self.done.append(key)
        else:
            self.failed[key] = error
        self.ended_ns = time.monotonic_ns()
        return len(self.done) + len(self.failed) == len(self.keys)


class SsdThreads:
    """Works for one scheduler's thread. `rows` is the DRAM tier's memory, chunk after chunk of `slice_bytes`."""

    def __init__(self, store: TierStore, rows: memoryview, *, slice_bytes: int, readers: int) -> None:
        self._store, self._rows, self._slice_bytes = store, rows, slice_bytes
        self._finished: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._writes: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._readers = readers
        self._threads = [
            threading.Thread(target=self._work, args=(tasks,), name=f"tidegate-ssd-{number}", daemon=True)
            for number, tasks in enumerate([self._writes, *[self._reads] * readers])
        ]
        for thread in self._threads:
            thread.start()

    def read(self, job: Job) -> None:
        """Into the job's chunks, by several threads at once."""
        for key, chunk in zip(job.keys, job.chunks, strict=True):
            self._reads.put(lambda buffer, key=key, chunk=chunk: self._read(job, key, chunk, buffer))  # type: ignore[misc]

    def write(self, job: Job) -> None:
        """From the job's chunks. They must stay as they are until the job is among the finished."""
        for key, chunk in zip(job.keys, job.chunks, strict=True):
            self._writes.put(lambda _, key=key, chunk=chunk: self._write(job, key, chunk))  # type: ignore[misc]

    def drop(self, keys: Sequence[bytes]) -> None:
        """After the writes that were asked for before, and before those that come."""
        self._writes.put(lambda _: self._drop(keys))

    def after_writes(self, task: Callable[[], None]) -> None:
        """Do this in the writing thread, when all that was asked for before is done."""
        self._writes.put(lambda _: task())

    def finished(self) -> list[Job]:
        """Jobs that ended since the last call; one that was given up is not among them."""
        ended: list[Job] = []
        while not self._finished.empty():
            job = self._finished.get()
            if job.wanted():
                ended.append(job)
        return ended

    def settle(self) -> None:
        """Until all writes and drops that were asked for are done."""
        done = threading.Event()
        self.after_writes(done.set)
        done.wait()

    def stop(self) -> None:
        """Finish the write at hand, begin nothing more; who hangs is left behind after STOP_TIMEOUT_S for all."""
        self._writes.put(None)
        for _ in range(self._readers):
            self._reads.put(None)
        until_s = time.monotonic() + STOP_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    def _work(self, tasks: "queue.SimpleQueue[Task | None]") -> None:
        buffer = bytearray(self._slice_bytes)
        while (task := tasks.get()) is not None:
            task(buffer)

    def _read(self, job: Job, key: bytes, chunk: int, buffer: bytearray) -> None:
        if not job.wanted():
            return
        try:
            length = self._store.read_into(file_name(key), buffer)
        except _FAILURES as error:
            self._end(job, key, _typed(error))
            return
        if length != self._slice_bytes:
            self._end(job, key, ChecksumMismatch(where="ssd", name=file_name(key), why="length"))
            return
        with job.lock:
            if not job.wanted():
                return
            self._row(chunk)[:] = buffer
        self._end(job, key, None)

    def _write(self, job: Job, key: bytes, chunk: int) -> None:
        name = file_name(key)
        try:
            if not self._store.put(name, self._row(chunk)):
                # Nobody knows of a slice there: it could not be dropped when it should have been, and may be void.
                self._store.drop(name)
                self._store.put(name, self._row(chunk))
        except _FAILURES as error:
            self._end(job, key, _typed(error))
            return
        self._end(job, key, None)

    def _drop(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            try:
                self._store.drop(file_name(key))
            except NotResident:
                continue
            except KVError:
                # It stays a file that nobody asks for; the tier counts the failure, and drops it at its next start.
                continue

    def _end(self, job: Job, key: bytes, error: KVError | None) -> None:
        with job.lock:
            # Under the lock: who finds that a job has ended finds it among the finished.
            if job.arrived(key, error):
                self._finished.put(job)

    def _row(self, chunk: int) -> memoryview:
        return self._rows[chunk * self._slice_bytes : (chunk + 1) * self._slice_bytes]


def _typed(error: Exception) -> KVError:
    return error if isinstance(error, KVError) else TierUnavailable(where="ssd", why=str(error))


def file_name(key: bytes) -> SliceId:
    """What a slice is called on the disk: vLLM's key says it all, so a restarted engine finds it by that alone."""
    return SliceId(key.hex())


def key_of(name: SliceId) -> bytes:
    """The other way."""
    return bytes.fromhex(name)
