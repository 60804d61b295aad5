"""The SSD tier of a vLLM engine: what was computed once is found again tomorrow, if fetching it is worth it.

vLLM's tiering manager asks it in the scheduler's thread (`lookup`, `submit_*`, `get_finished_jobs`), so nothing here
waits: files are read and written by threads (ssd_jobs.py) of the store in kvstore/tiers/ssd.py. In plain words:

- Looked up: a run of slices is fetched where that is quicker than computing it, by the speed and the queue of the disk
  now (a delegated choice: policies/memory/gate.py); else it is a miss.
- Stored: so much waits to be written at most as `QUEUE_PART` says, as who waits cannot leave DRAM; the rest is written
  later, if it is in DRAM still. What has no room makes some, by the delegate's choice, or is not stored.
- Failed: a slice whose checksum is wrong, or whose file is gone, is forgotten and computed again; it is never served.
  A disk that refuses or hangs is left alone for a while; the engine serves on without it, and `trouble` says why.
"""

import logging
import os
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    LookupResult,
    Medium,
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
)
from vllm.v1.kv_offload.tiering.base import JobResult, ParentManager, SecondaryTierManager, TransferJob

from events.base import NS_PER_MS, NS_PER_S
from events.slice import Tier, TierMeasured
from kvstore.errors import ChecksumMismatch, KVError, NotResident, TierUnavailable
from kvstore.tiers.base import TierStore
from kvstore.tiers.ssd import ssd_tier
from policies.memory.gate import fetch_ns
from services.vllm_plugin.fetching import Gate, Link, Speed
from services.vllm_plugin.memory import Memory
from services.vllm_plugin.prompt import prompt_of
from services.vllm_plugin.ssd_jobs import Job, SsdThreads, file_name, key_of
from services.vllm_plugin.ssd_names import SsdNames

TIER_TYPE: Final = "tidegate-ssd"
"""How vLLM's metrics call it."""
QUEUE_PART: Final = 4
"""One part in so many of the DRAM tier may wait to be written: who waits cannot be evicted there."""
REST_NS: Final = 10 * NS_PER_S
"""How long a disk that refused, or hung, is left alone."""
PATIENCE: Final = 2
"""A fetch is given up on after so many times what it should take, and `fetch_patience_ms` on top."""
HANGS_MAX: Final = 3
"""After so many of them in a row the disk is left alone."""
LATER_MAX: Final = 4_096
"""Slices that are remembered to be written later. The oldest is given up first."""
NAMES_SPARE: Final = 1_024
"""Lines of the names' file beyond twice the slices there, before it is written anew."""

VOID_FILE: Final = "void"
"""Lies beside slices that the next engine must not find: the model was changed while they were written."""
FOREVER_NS: Final = 1 << 62


class Metric:
    """What vLLM's /metrics says of the tier beside vLLM's own."""

    CORRUPT: Final = "tidegate:ssd_slices_corrupt"
    FAILURES: Final = "tidegate:ssd_failures"
    NOT_STORED: Final = "tidegate:ssd_slices_not_stored"
    USABLE: Final = "tidegate:ssd_usable"


METRICS: Final = {
    Metric.CORRUPT: OffloadingCounterMetadata("Slices whose checksum was wrong: forgotten, never served."),
    Metric.FAILURES: OffloadingCounterMetadata("Slices that the SSD tier failed to read or write, for any reason."),
    Metric.NOT_STORED: OffloadingCounterMetadata("Slices that were not written: no room, or the disk is too slow."),
    Metric.USABLE: OffloadingGaugeMetadata("1 while the SSD tier is read and written, 0 while it is left alone."),
}

log = logging.getLogger("tidegate.engine")


class SsdTier(SecondaryTierManager):
    """Over a store; without one (`trouble` says why) it holds nothing and takes nothing."""

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self, spec: Any, view: memoryview, memory: Memory, *, store: TierStore | None, void: Path, trouble: str = ""
    ) -> None:
        super().__init__(offloading_spec=spec, primary_kv_view=view, tier_type=TIER_TYPE)
        self._memory, self.store, self.trouble = memory, store, trouble
        self._void = void
        self.choices = memory.choices(Tier.SSD)
        self._rows = view.cast("B")
        self._queue_max = max(1, view.shape[0] // QUEUE_PART) if view.shape is not None else 1
        self._names = SsdNames(Path(memory.settings.ssd_folder))
        self._names_lines = 0
        self._threads = (
            SsdThreads(store, self._rows, slice_bytes=memory.slice_bytes, readers=memory.settings.ssd_readers)
            if store is not None
            else None
        )
        self._loads: dict[int, Job] = {}
        self._stores: dict[int, Job] = {}
        self._later: dict[bytes, ReqContext] = {}
        self._ended: list[JobResult] = []
        self._rest_reads_ns = self._rest_writes_ns = self._hangs = 0
        self._reads, self._writes = Speed(), Speed()
        self._gate = Gate(memory, self._there)
        self.failures = self.corrupt = self.not_stored = 0
        self._counted = (0, 0, 0)
        self._take_in()

    # What is there.

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """HIT: it is there, and will be fetched for this request."""
        if not self._there(key) or time.monotonic_ns() < self._rest_reads_ns:
            return LookupResult.MISS
        return LookupResult.HIT if self._gate.worth(key, req_context, self._link()) else LookupResult.MISS

    def scheduled(self, req_context: ReqContext) -> None:
        """The request computes now: what was decided for it counts no more."""
        self._gate.forget(req_context)

    def read_queue_bytes(self) -> int:
        """What stands between a new read and the disk."""
        return self._memory.slice_bytes * sum(len(job.keys) - len(job.done) for job in self._loads.values())

    def measured(self, *, hits_total: int, misses_total: int) -> TierMeasured:
        """As a fact."""
        store = self.store
        return TierMeasured(
            engine_id=self._memory.engine_id, tier=Tier.SSD, bytes_max=store.bytes_max if store is not None else 0,
            bytes_used=store.bytes_used if store is not None else 0, slice_bytes=self._memory.slice_bytes,
            read_bytes_per_s=self._reads.bytes_per_s, write_bytes_per_s=self._writes.bytes_per_s,
            read_queue_bytes=self.read_queue_bytes(), write_queue_bytes=self.write_queue_bytes(),
            hits_total=hits_total, misses_total=misses_total, evictions_total=self.choices.evictions,
            failures_total=self.failures, corrupt_total=self.corrupt,
        )  # fmt: skip

    def _link(self) -> Link:
        return Link(self._reads.bytes_per_s, self.read_queue_bytes())

    def write_queue_bytes(self) -> int:
        """What waits to be written."""
        return self._memory.slice_bytes * self._writing()

    def _there(self, key: bytes) -> bool:
        return (
            self.store is not None and self._memory.residency.holds(Tier.SSD, key) and self.store.holds(file_name(key))
        )

    # On its way.

    def submit_store(self, job_metadata: TransferJob) -> None:
        """Write what is not there yet, as far as there is room and the disk keeps up."""
        job_id, prompt = job_metadata.job_id, prompt_of(job_metadata.req_context)
        chunks = dict(zip(job_metadata.keys, map(int, job_metadata.chunk_ids), strict=True))
        new = [(key, chunks[key]) for key in prompt.in_order(chunks) if key not in self.choices]
        writes = self._threads is not None and time.monotonic_ns() >= self._rest_writes_ns
        soon = new[: self._queue_room()] if writes else []
        taken = self._room(soon)
        if writes:
            self._write_later([key for key, _ in new[len(soon) :]], job_metadata.req_context)
        self.not_stored += len(soon) - len(taken) if writes else len(new)
        if not taken or self._threads is None:
            self._ended.append(JobResult(job_id=job_id, success=not new, transfer_bytes=0))
            return
        for key, _ in taken:
            self.choices.stored(key, prompt)
        job = Job(job_id, [key for key, _ in taken], [chunk for _, chunk in taken], job_metadata.req_context)
        self._stores[job_id] = job
        self._threads.write(job)

    def serve_external_requests(self, parent: ParentManager) -> None:
        """Said in every step: time to write what had to wait."""
        room = self._queue_room()
        if not self._later or not room:
            return
        dram = self._memory.residency
        keys = [key for key in self._later if key not in self.choices and dram.holds(Tier.DRAM, key)][:room]
        contexts = {self._later[key].req_id: self._later[key] for key in keys}
        for context in contexts.values():
            self.submit_store(parent.create_store_job([key for key in keys if self._later[key] is context], context))
        last = keys[-1] if len(keys) == room else None
        for key in list(self._later):
            del self._later[key]
            if key == last:
                break

    def _write_later(self, keys: Sequence[bytes], context: ReqContext) -> None:
        for key in keys:
            self._later[key] = context
        for key in list(self._later)[: max(0, len(self._later) - LATER_MAX)]:
            del self._later[key]
            self.not_stored += 1

    def _queue_room(self) -> int:
        return max(0, self._queue_max - self._writing())

    def _room(self, taken: list[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
        """The first ones that there is room for, when some have left for them."""
        if not taken or self.store is None:
            return []
        each = self.store.footprint(self._memory.slice_bytes)
        room = self.store.bytes_max // each - self._slices()
        short = len(taken) - room
        if short > 0:
            leaving = self.choices.evict(short, [key for key, _ in taken])
            if leaving is None:
                return taken[: max(0, room)]
            self._drop(leaving)
        return taken

    def _slices(self) -> int:
        return len(self.choices)

    def _writing(self) -> int:
        return sum(len(job.keys) - len(job.done) - len(job.failed) for job in self._stores.values())

    def submit_load(self, job_metadata: TransferJob) -> None:
        """Fetch these into the DRAM tier."""
        keys = list(job_metadata.keys)
        job = Job(job_metadata.job_id, keys, [int(chunk) for chunk in job_metadata.chunk_ids], job_metadata.req_context)
        if self._threads is None:
            self._ended.append(JobResult(job_id=job.job_id, success=False))
            return
        self.choices.held(keys)
        takes_ns = fetch_ns(len(keys) * self._memory.slice_bytes, self.read_queue_bytes(), self._reads.bytes_per_s)
        job.deadline_ns = job.began_ns + PATIENCE * takes_ns + self._memory.settings.fetch_patience_ms * NS_PER_MS
        self._loads[job.job_id] = job
        self._threads.read(job)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """What ended since the last call, fetches that were given up on among it."""
        if self._threads is not None:
            for job in self._threads.finished():
                self._loaded(job) if self._loads.pop(job.job_id, None) else self._stored(job)
            now_ns = time.monotonic_ns()
            for job in [job for job in self._loads.values() if job.deadline_ns < now_ns]:
                if job.give_up():
                    self._hung(job)
        ended, self._ended = self._ended, []
        return ended

    def drain_jobs(self) -> None:
        """Until no job touches the DRAM tier: writes end, reads are given up."""
        if self._threads is not None:
            for job in [job for job in self._loads.values() if job.give_up()]:
                self._call_off(job)
            self._threads.settle()
            for job in self._threads.finished():
                self._loaded(job) if self._loads.pop(job.job_id, None) else self._stored(job)

    def _stored(self, job: Job) -> None:
        del self._stores[job.job_id]
        self.choices.let_go(job.done)
        self.choices.removed(list(job.failed))
        self._memory.residency.stored(Tier.SSD, job.done)
        self._remember(job)
        for error in job.failed.values():
            self._failed(error)
            self._rest_writes_ns = max(self._rest_writes_ns, time.monotonic_ns() + REST_NS)
        self._writes.moved(job, len(job.done) * self._memory.slice_bytes)
        self._end(job)

    def _loaded(self, job: Job) -> None:
        prompt = prompt_of(job.context)
        self._hangs = 0
        self.choices.let_go(job.keys)
        self.choices.used(job.done, prompt)
        for key, error in job.failed.items():
            self._missed(key, error, job.context)
            if isinstance(error, TierUnavailable):
                self._rest_reads_ns = time.monotonic_ns() + REST_NS
        self._reads.moved(job, len(job.done) * self._memory.slice_bytes)
        self._end(job)

    def _missed(self, key: bytes, error: KVError, context: ReqContext) -> None:
        self._failed(error)
        if isinstance(error, ChecksumMismatch | NotResident):
            self.corrupt += isinstance(error, ChecksumMismatch)
            self.choices.removed([key])
            self._drop([key])
            return
        # It may well be there, but not for this request any more.
        self._gate.refuse(key, context)

    def call_off(self, job_id: int) -> None:
        """Whoever wanted this fetched does not any more; another job goes on."""
        job = self._loads.get(job_id)
        if job is not None and job.give_up():
            self._call_off(job)

    def _call_off(self, job: Job) -> None:
        """Nobody waits for it any more; what has arrived of it counts as little as the rest."""
        del self._loads[job.job_id]
        self.choices.let_go(job.keys)
        job.done.clear()
        self._end(job)

    def _hung(self, job: Job) -> None:
        late = TierUnavailable(where=f"{Tier.SSD}", why="a read hangs", mend="look at that disk")
        for key in job.keys:
            self._missed(key, late, job.context)
        self._hangs += 1
        # So slow it is: else the gate would believe in the speed that was assumed, and every fetch would end here.
        job.ended_ns = time.monotonic_ns()
        self._reads.moved(job, len(job.done) * self._memory.slice_bytes)
        if self._hangs >= HANGS_MAX:
            self._rest_reads_ns = time.monotonic_ns() + REST_NS
        self._call_off(job)

    def _end(self, job: Job) -> None:
        whole = not job.failed and len(job.done) == len(job.keys)
        self._ended.append(
            JobResult(
                job_id=job.job_id,
                success=whole,
                successful_keys=None if whole else tuple(job.done),
                transfer_time=(job.ended_ns - job.began_ns) / NS_PER_S,
                transfer_bytes=len(job.done) * self._memory.slice_bytes,
            )
        )

    def _failed(self, error: KVError) -> None:
        self.failures += 1
        if str(error) != self.trouble:
            self.trouble = str(error)
            log.warning("SSD tier: %s. The engine serves on without it where it has to.", error)

    # What leaves, and what stays over a restart.

    def drop(self, keys: Collection[bytes]) -> list[bytes]:
        """Those of these that nobody reads or writes are gone from now on."""
        gone = [key for key in keys if key in self.choices and not self.busy(key)]
        self.choices.removed(gone)
        self._drop(gone)
        return gone

    def holds(self, key: bytes) -> bool:
        """Whether it is there, whole."""
        return self._there(key)

    def busy(self, key: bytes) -> bool:
        """Whether it is being read or written."""
        return any(key in job.keys for job in (*self._loads.values(), *self._stores.values()))

    def void(self) -> None:
        """Everything here is void: the model computes otherwise now. Nothing is on its way (`drain_jobs`). What is
        stored from here on is void for the next engine, which begins with the model as it was: a mark says so, and
        without one nothing is stored."""
        keys = self._memory.residency.keys(Tier.SSD)
        self._later.clear()
        self.choices.cleared()
        self._memory.residency.cleared(Tier.SSD, "reset")
        if self._threads is not None:
            self._threads.drop(keys)
            try:
                os.close(os.open(self._void, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            except OSError as error:
                self._rest_writes_ns = FOREVER_NS
                self._failed(TierUnavailable(where=f"{Tier.SSD} {self._void}", why=str(error.strerror)))

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:  # noqa: ARG002
        """Chunk by chunk, as they are computed."""
        return RequestOffloadingContext()

    @property
    def usable(self) -> bool:
        """Whether it is read and written now."""
        return self.store is not None and time.monotonic_ns() >= max(self._rest_reads_ns, self._rest_writes_ns)

    def get_stats(self) -> OffloadingConnectorStats:
        """What was counted since the last call, for vLLM's /metrics."""
        stats = OffloadingConnectorStats()
        now = (self.corrupt, self.failures, self.not_stored)
        names = (Metric.CORRUPT, Metric.FAILURES, Metric.NOT_STORED)
        for name, count, before in zip(names, now, self._counted, strict=True):
            stats.increase_counter(name, count - before)
        stats.set_gauge(Metric.USABLE, int(self.usable))
        self._counted = now
        return stats

    def shutdown(self) -> None:
        """End the threads and close the files."""
        if self._threads is not None:
            self._threads.stop()
        if self.store is not None:
            self.store.close()
        with suppress(BufferError):
            self._rows.release()

    def _drop(self, keys: Sequence[bytes]) -> None:
        self._memory.residency.removed(Tier.SSD, keys)
        if self._threads is not None and keys:
            self._threads.drop(keys)

    def _take_in(self) -> None:
        """What an earlier run left is here, under the names that it had."""
        if self.store is None:
            return
        known = self._names.read()
        keys = [] if self._dropped_void(self.store) else [key_of(name) for name, _ in self.store.inventory()]
        for key in keys:
            parent, name = known.get(key, (None, None))
            if name is not None:
                self._memory.naming.learn(key, name)
            self.choices.stored(key, None, parent)
        self.choices.let_go(keys)
        self._memory.residency.stored(Tier.SSD, keys)
        self._names.replace((key, known[key][0], known[key][1]) for key in keys if key in known)
        self._names_lines = len(keys)

    def _dropped_void(self, store: TierStore) -> bool:
        """Whether what lies there is void; it is dropped then, and the mark with the last of it."""
        if not self._void.exists():
            return False
        try:
            for name, _ in store.inventory():
                store.drop(name)
            self._void.unlink()
        except KVError as error:
            self._failed(error)
        except OSError as error:
            self._failed(TierUnavailable(where=f"{Tier.SSD} {self._void}", why=str(error.strerror)))
        return True

    def _remember(self, job: Job) -> None:
        prompt = prompt_of(job.context)
        rows = [(key, prompt.parent(key), self._memory.naming.name(key)) for key in job.done]
        self._names_lines += len(rows)
        if self._threads is None or not rows:
            return
        if self._names_lines > 2 * self._slices() + NAMES_SPARE:
            self._names_lines = self._slices()
            kept = frozenset(self._memory.residency.keys(Tier.SSD))
            self._threads.after_writes(
                lambda: self._names.replace(
                    (key, *known) for key, known in {**self._names.read(), **_by_key(rows)}.items() if key in kept
                )
            )
        else:
            self._threads.after_writes(lambda: self._names.append(rows))


def _by_key(rows: Iterable[tuple[bytes, bytes | None, Any]]) -> dict[bytes, tuple[bytes | None, Any]]:
    return {key: (parent, name) for key, parent, name in rows}


def open_ssd(spec: Any, view: memoryview, memory: Memory, *, namespace: bytes) -> SsdTier:
    """The tier that the settings ask for. A folder that cannot be used is no reason not to serve: the tier says so, and
    stays empty."""
    settings = memory.settings
    void = Path(settings.ssd_folder) / namespace.hex() / VOID_FILE
    try:
        store = ssd_tier(Path(settings.ssd_folder), bytes_max=settings.ssd_bytes, namespace=namespace)
    except TierUnavailable as error:
        log.warning("SSD tier: %s. The engine serves on without it.", error)
        tier = SsdTier(spec, view, memory, store=None, void=void, trouble=str(error))
        tier.failures += 1
        return tier
    return SsdTier(spec, view, memory, store=store, void=void)
