"""Who copies between device memory and DRAM for vLLM's offloading connector, in virtual time: one link per direction.

It does what vLLM's worker does, in its order (vllm 0.32, kv_connector/v1/offloading/worker.py): stores of a step begin
with the next one, after loads nothing waits for them; a step whose blocks are still being stored waits until they are.
A link carries one job after the other, and a job takes its bytes at the link's speed. Time is in femtoseconds.

A job that fails (`replay.faults`) is sent again at once, up to TRIES_MAX times; vLLM has no failed offload jobs, so the
last try succeeds. One that stalls is there when the stall is over, and others pass it.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.v1.outputs import KVConnectorOutput

from policies.predictors.step_time import FS_PER_NS
from replay.engines.links import FS_PER_S
from replay.engines.tiers import TRIES_MAX
from replay.engines.vllm_order import Numbered
from replay.faults import FINE, Fate


class VirtualWorker:
    """`loaded_bytes`, `stored_bytes` went over the links; `stalled_fs` were steps held up by stores."""

    def __init__(self, *, bytes_per_s: int, block_bytes: int, fates: Iterator[Fate] | None = None) -> None:
        self._bytes_per_s, self._block_bytes, self._fates = bytes_per_s, block_bytes, fates
        self._load_free_fs = self._store_free_fs = 0
        self._to_come: list[tuple[int, int, str, int]] = []
        self._ends_fs: dict[int, int] = {}
        self._deferred: list[tuple[int, int]] = []
        self.loaded_bytes = self.stored_bytes = self.stalled_fs = self.loads = self.stores = 0

    @property
    def has_deferred(self) -> bool:
        """Whether stores wait for the next step to begin."""
        return bool(self._deferred)

    def next_fs(self) -> int | None:
        """When the next job ends."""
        return self._to_come[0][0] if self._to_come else None

    def waiting_bytes(self, now_fs: int) -> tuple[int, int]:
        """What is still to go over each link: up to device memory, and down from it."""
        return (
            max(0, self._load_free_fs - now_fs) * self._bytes_per_s // FS_PER_S,
            max(0, self._store_free_fs - now_fs) * self._bytes_per_s // FS_PER_S,
        )

    def begin_step(self, metadata: Any, now_fs: int) -> int:
        """A step with these jobs begins; when it can compute."""
        flush = metadata.jobs_to_flush or ()
        deferred, self._deferred = self._deferred, []
        for job, blocks in deferred:
            self._store(job, blocks, now_fs)
        for job, entry in metadata.store_jobs.items():
            blocks = len(entry.src_spec.block_ids)
            if job in flush:
                self._store(job, blocks, now_fs)
            else:
                self._deferred.append((job, blocks))
        for job, entry in metadata.load_jobs.items():
            self._load(job, len(entry.dst_spec.block_ids), entry.req_id, now_fs)
        begin_fs = max((self._ends_fs[job] for job in flush if job in self._ends_fs), default=now_fs)
        self.stalled_fs += max(0, begin_fs - now_fs)
        return max(begin_fs, now_fs)

    def ended(self, now_fs: int) -> KVConnectorOutput | None:
        """What has ended by then, as vLLM's worker says it at the end of a step; None = nothing."""
        if not self._to_come or self._to_come[0][0] > now_fs:
            return None
        said, loaded = OffloadingWorkerMetadata(), Numbered()
        while self._to_come and self._to_come[0][0] <= now_fs:
            _, job, request_id, bytes_ = heappop(self._to_come)
            del self._ends_fs[job]
            said.mark_completed(job)
            stats = said.transfer_stats.load if request_id else said.transfer_stats.store
            stats.record(bytes_, bytes_ / self._bytes_per_s)
            if request_id:
                loaded.add(request_id)
        return KVConnectorOutput(finished_recving=loaded or None, kv_connector_worker_meta=said)

    def _load(self, job: int, blocks: int, request_id: str, now_fs: int) -> None:
        self._load_free_fs, end_fs = self._carry(blocks, max(now_fs, self._load_free_fs))
        self.loaded_bytes += blocks * self._block_bytes
        self.loads += 1
        self._ends(job, end_fs, request_id, blocks)

    def _store(self, job: int, blocks: int, now_fs: int) -> None:
        self._store_free_fs, end_fs = self._carry(blocks, max(now_fs, self._store_free_fs))
        self.stored_bytes += blocks * self._block_bytes
        self.stores += 1
        self._ends(job, end_fs, "", blocks)

    def _ends(self, job: int, end_fs: int, request_id: str, blocks: int) -> None:
        self._ends_fs[job] = end_fs
        heappush(self._to_come, (end_fs, job, request_id, blocks * self._block_bytes))

    def _carry(self, blocks: int, begin_fs: int) -> tuple[int, int]:
        """When the link is free again, and when the job has ended."""
        took_fs = -(-blocks * self._block_bytes * FS_PER_S // self._bytes_per_s)
        free_fs = begin_fs
        for _ in range(TRIES_MAX):
            fate = next(self._fates) if self._fates is not None else FINE
            free_fs += took_fs
            if not fate.fails:
                return free_fs, free_fs + fate.stall_ns * FS_PER_NS
        return free_fs, free_fs
