"""Lazy stores: a slice goes to DRAM when its blocks are next to be evicted from the device, not when it is computed.

Written through, a DRAM that is about as large as the device holds what the device holds. Lazy, the two hold different
slices (exclusive storage by demotion: Wong and Wilkes, USENIX ATC 2002). vLLM keeps blocks that no request holds in a
queue, and takes the first of it when it needs some. After each step the first `ahead` blocks of the queue are looked
at, as vLLM's own SimpleCPUOffloadConnector does with `lazy_offload`; slices that end there, are whole on the device and
not in DRAM are stored. What a request has on the device leaves DRAM, be it loaded or found there.

A store is a job of vLLM's offloading scheduler like any other, for a request that is nobody's. Its blocks are not held:
they are fenced, as vLLM does it for requests that have ended. When one of them is taken again before its copy is done,
the step that takes it waits for the copy; so what is copied is never what somebody else has written since.

What is evicted without having been seen ahead (a load takes as many blocks as it brings, at once) is stored as it goes:
the step that takes its blocks waits for that copy too, for LATE_BYTES_MAX at most. The rest is lost, and counted.

Which slice a block ends is known from the step that computed it (or loaded it) on. That a block still holds that KV is
asked of the block itself, by its hash, when that is noted and right before it is stored. A slice may end in two blocks:
vLLM computes the last token of a prompt anew, so a prompt of whole slices that comes twice leaves its last one twice.

Example: four blocks a slice, ahead 8. A request of two slices ends; its blocks are put behind all others of the queue,
the last one first. Others take blocks; when seven are left before them, the second slice is stored, then the first.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import TransferJob
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import RequestOffloadState, TransferJobStatus
from vllm.v1.core.kv_cache_utils import get_block_hash
from vllm.v1.kv_offload.base import GPULoadStoreSpec, ReqContext, RequestOffloadingContext
from vllm.v1.request import RequestStatus

from services.vllm_plugin.manager import TidegateManager
from services.vllm_plugin.prompt import Prompt

AHEAD_STEPS: Final = 4
"""Looked at is what so many steps of prompts can take, where the settings say nothing. What is seen ahead is on the
device and in DRAM, so more of it is less of everything else."""
LOOKS: Final = 8
"""The queue is looked at again when one part in so many of `ahead` is new there: so for each block that comes near its
head, about so many are looked at."""
BYTES_IN_FLIGHT_MAX: Final = 1 << 30
"""On their way to DRAM at once: some 20 ms of a PCIe 5 link."""
LATE_BYTES_MAX: Final = 1 << 29
"""That one step waits for: some 10 ms."""
JOB_BYTES_MAX: Final = 1 << 28
"""In one job, which a step that takes one of its blocks waits for as a whole."""


class _End(NamedTuple):
    """What is known of a block that ends a slice: the slice's key, blocks and their hashes, its place in a prompt of
    `length` slices, and the slice before it."""

    key: bytes
    blocks: tuple[int, ...]
    hashes: tuple[bytes, ...]
    place: int
    length: int
    before: bytes | None


class _Nobody:
    """In place of the request that a store is made for. It has ended: its blocks are fenced, and nobody asks for it."""

    kv_transfer_params = None

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id

    def is_finished(self) -> bool:
        return True


class LazyStores:
    """Makes the store jobs in place of `scheduler` (vLLM's OffloadingConnectorScheduler), whose manager is `manager`,
    from the blocks of `pool`. `ahead` blocks are looked at, at most. Works in the scheduler's thread."""

    def __init__(self, scheduler: Any, manager: TidegateManager, pool: Any, *, ahead: int) -> None:
        self._scheduler, self._manager, self._pool = scheduler, manager, pool
        manager.is_lazy = True
        [self._group] = scheduler.config.kv_group_configs
        self._slice_tokens = self._group.tokens_per_chunk
        self._slice_blocks = scheduler.config.blocks_per_chunk
        slice_bytes = manager.memory.slice_bytes
        self._flying_max = max(1, BYTES_IN_FLIGHT_MAX // slice_bytes)
        self._late_max, self._job_max = max(1, LATE_BYTES_MAX // slice_bytes), max(1, JOB_BYTES_MAX // slice_bytes)
        # On a small device that is all there is: else it would be looked at too seldom, or never.
        self._ahead = min(ahead, len(pool.blocks))
        self._again_after = max(1, self._ahead // LOOKS)
        self._ends: list[_End | None] = [None] * len(pool.blocks)
        self._late: list[_End] = []
        self._known: dict[str, int] = {}
        self._flying: dict[int, int] = {}
        self._seen = 0
        self._is_behind = False
        self._made = 0
        # The one place where vLLM makes its stores of whole slices, and the one where it evicts a block.
        scheduler._build_store_jobs = self.store_jobs  # noqa: SLF001
        self._evict = pool._maybe_evict_cached_block  # noqa: SLF001
        pool._maybe_evict_cached_block = self._evicting  # noqa: SLF001

    def store_jobs(self, output: Any) -> dict[int, TransferJob]:
        """The end of scheduling a step: the stores to begin with the next one."""
        made = self._store_late()
        self._learn(output)
        near = min(self._ahead, self._pool.get_num_free_blocks())
        self._seen -= len(self._scheduler._current_batch_allocated_block_ids)  # noqa: SLF001
        if near - self._seen < self._again_after and not self._is_behind:
            return made
        self._seen = near
        return made | self._look()

    # What the device holds.

    def _learn(self, output: Any) -> None:
        """Slices that this step computes, or that were loaded for it, and the last ones of requests that have ended."""
        again = output.scheduled_cached_reqs.resumed_req_ids
        # Who was preempted has other blocks now. vLLM's second model runner is told of such requests as of new ones.
        for request_id in (*(new.req_id for new in output.scheduled_new_reqs), *again):
            self._known.pop(request_id, None)
        for request_id in output.finished_req_ids or ():
            self._learn_of(request_id, 0)
            self._known.pop(request_id, None)
        for request_id, count in output.num_scheduled_tokens.items():
            self._learn_of(request_id, count)

    def _learn_of(self, request_id: str, scheduled: int) -> None:
        status = self._scheduler._req_status.get(request_id)  # noqa: SLF001
        if status is None:
            return
        known, tokens = self._known.get(request_id, 0), _computed(status.req, scheduled)
        if tokens < (known + 1) * self._slice_tokens:
            return
        [state] = status.group_states
        tokens = self._scheduler._calc_num_offloadable_tokens(status, tokens)  # noqa: SLF001
        count = status.storable_chunks(self._group, state, tokens)
        if count <= known:
            return
        self._known[request_id] = count
        ends = (self._end(status.req.block_hashes, state, place) for place in range(known, count))
        # The blocks of one that has ended, or was preempted before, may be somebody else's by now.
        there = [end for end in ends if self._is_whole(end)]
        for end in there:
            self._ends[end.blocks[-1]] = end
        self._manager.computed(status.req_context, slices=sum(end.place >= state.num_hit_chunks for end in there))
        self._manager.held(status.req_context, [end.key for end in there])

    def _end(self, hashes: Any, state: Any, place: int) -> _End:
        size, hashed, keys = self._slice_blocks, self._group.hashes_per_chunk, state.offload_keys
        blocks = tuple(state.block_ids[place * size : (place + 1) * size])
        every = hashed // size
        return _End(
            keys[place], blocks, tuple(hashes[place * hashed + every - 1 : (place + 1) * hashed : every]), place,
            len(keys), keys[place - 1] if place else None,
        )  # fmt: skip

    # What leaves it now.

    def _evicting(self, block: Any) -> bool:
        """In place of vLLM's own, said when somebody takes a block: its slice, if it was whole, is stored late. Said
        also of blocks that somebody holds, when their KV failed to load: that is of no use to anybody."""
        end, self._ends[block.block_id] = self._ends[block.block_id], None
        if end is not None and (block.ref_cnt or not self._is_whole(end)):
            end = None
        evicted = bool(self._evict(block))
        if end is not None and not self._manager.in_dram(end.key) and not self._is_there(end):
            if len(self._late) < self._late_max:
                self._late.append(end)
            else:
                self._manager.lost += 1
        return evicted

    def _store_late(self) -> dict[int, TransferJob]:
        """What was evicted since the last step: this one waits for it."""
        late, self._late = self._late, []
        made = self._store_all(late)
        self._manager.lost += sum(not self._manager.in_dram(key) for key in {end.key: None for end in late})
        self._scheduler._current_batch_jobs_to_flush.update(made)  # noqa: SLF001
        return made

    # What leaves it next.

    def _look(self) -> dict[int, TransferJob]:
        jobs = self._scheduler._jobs  # noqa: SLF001
        self._flying = {job: slices for job, slices in self._flying.items() if job in jobs}
        room = self._flying_max - sum(self._flying.values())
        leaving = list(islice(self._leaving(), max(0, room) + 1))
        self._is_behind = len(leaving) > room
        return self._store_all(leaving[: max(0, room)])

    def _store_all(self, leaving: list[_End]) -> dict[int, TransferJob]:
        """As many of these as DRAM has room for, each once, less those that came there since they were seen."""
        made: dict[int, TransferJob] = {}
        new: dict[bytes, _End] = {}
        for end in leaving:
            if not self._manager.in_dram(end.key):
                new.setdefault(end.key, end)
        for run in self._runs(list(new.values())):
            job = self._store(run)
            if job is None:
                break  # All of DRAM is being read or written, or has to stay.
            made.update(job)
        return made

    def _leaving(self) -> Iterator[_End]:
        """Slices that are about to lose their last block, the next one first, and that DRAM has not."""
        ends, in_dram = self._ends, self._manager.in_dram
        for block in islice(self._pool.free_block_queue.iter_blocks_after(None), self._ahead):
            end = ends[block.block_id]
            if end is None or in_dram(end.key):
                continue
            if self._is_whole(end):
                yield end
            else:
                ends[block.block_id] = None

    def _is_whole(self, end: _End) -> bool:
        """Whether its blocks hold what they held when it was noted."""
        blocks = self._pool.blocks
        for number, said in zip(end.blocks, end.hashes, strict=True):
            found = blocks[number].block_hash
            if found is None or get_block_hash(found) != said:
                return False
        return True

    def _is_there(self, end: _End) -> bool:
        """Whether a slice that ended in a block that is not cached any more ends in another one, too."""
        return self._pool.get_cached_block(end.hashes[-1], [self._group.group_idx]) is not None

    def _runs(self, leaving: list[_End]) -> Iterator[list[_End]]:
        """Slices that follow each other in one prompt, in its order: blocks are freed from its end."""
        run: list[_End] = []
        for end in leaving:
            if run and (run[0].before != end.key or run[0].length != end.length or len(run) == self._job_max):
                yield run
                run = []
            run.insert(0, end)
        if run:
            yield run

    def _store(self, run: list[_End]) -> dict[int, TransferJob] | None:
        """A job of vLLM's for these; None where DRAM has no room that may be made."""
        scheduler = self._scheduler
        self._made += 1
        context = ReqContext(req_id=f"tidegate-lazy-{self._made}")
        first = run[0]
        context.set_state(Prompt([end.key for end in run], first=first.place, length=first.length, before=first.before))
        for end in run:
            context.set_offload_key_position(end.key, (end.place + 1) * self._slice_tokens)
        output = self._manager.keep(context)
        if output is None:
            return None
        blocks = [number for end in run for number in end.blocks]
        job_id = scheduler._generate_job_id()  # noqa: SLF001
        status = RequestOffloadState(
            config=scheduler.config, req=_Nobody(context.req_id), req_context=context,
            offloading_context=RequestOffloadingContext(),
        )  # fmt: skip
        status.finished_signaled = True
        status.transfer_jobs.add(job_id)
        scheduler._req_status[context.req_id] = status  # noqa: SLF001
        for number in blocks:
            scheduler._block_id_to_pending_jobs.setdefault(number, set()).add(job_id)  # noqa: SLF001
        scheduler._jobs[job_id] = TransferJobStatus(  # noqa: SLF001
            req_id=context.req_id, pending_count=scheduler.config.num_workers, keys=set(output.keys_to_store),
            is_store=True, fenced_block_ids=blocks,
        )  # fmt: skip
        self._flying[job_id] = len(run)
        source = GPULoadStoreSpec(
            blocks, group_sizes=[len(blocks)], block_indices=[first.place * self._slice_blocks]
        )  # fmt: skip
        return {job_id: TransferJob(req_id=context.req_id, src_spec=source, dst_spec=output.store_spec)}


def ahead_of(said: int, *, block_tokens: int, batch_tokens: int) -> int:
    """How many blocks of the queue are looked at: what the settings say, or (0) by AHEAD_STEPS of `batch_tokens`."""
    return said or AHEAD_STEPS * -(-batch_tokens // block_tokens)


def _computed(request: Any, scheduled: int) -> int:
    """Tokens of a request whose KV is there after this step, as vLLM counts them for its own stores."""
    if request.status is RequestStatus.FINISHED_ABORTED:
        return int(request.num_computed_tokens)
    if request.is_finished():
        # The slot of the last token is never cached: nothing was computed from it.
        return max(int(request.num_prompt_tokens), int(request.num_tokens) - 1)
    return int(request.num_computed_tokens) + scheduled
