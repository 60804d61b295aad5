"""An engine whose every choice is vLLM's: its real scheduler and KV cache manager, without weights, in virtual time.

vLLM decides who enters a step, how prompts are cut, what stays cached, who is preempted, what is offloaded and loaded.
Ours are the clock, the step's time (`EngineRegistered.step`), the links (`VirtualWorker`), and the loop around it,
which does what vLLM's engine core does:

- A step is scheduled when the one before it has ended. With `overlaps` (vLLM's asynchronous scheduling, what vLLM
  ships) it is scheduled one step ahead: a request that comes during a step enters not the next one but that after it.
- What comes during a step (requests, aborts) is handed over before the next one is scheduled.
- A step in which nothing computes takes no time; the engine then sleeps until a transfer ends or something comes.

An embedding request is one pooling request for each of its inputs (taken as equally long), as vLLM's front end makes
them; it is finished with the last of them. Its KV is not cached. Output is cached as vLLM caches it, but no prompt of a
trace names it, so nobody finds it. Orders to preempt are not taken: vLLM has no such call.

Runs where vLLM is installed. Nothing here reads a clock, and a run is a function of its arguments.
"""

from collections import deque
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Final

from msgspec.structs import replace
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from events.base import NS_PER_S, PPM, EngineId, Event, RequestId, RequestKind
from events.decisions import EngineDirected, TransferCancelled, TransferOrdered
from events.engine import EngineMeasured, EngineRegistered
from events.slice import Tier
from policies.predictors.step_time import FS_PER_NS, step_fs
from replay.engines.base import EngineBuilder, VirtualEngine
from replay.engines.job import Finished, FirstToken, Outcome, Refused, SimRequest, refused
from replay.engines.tier_cache import SliceAt, TierCache
from replay.engines.tiers import TierSizes
from replay.engines.vllm_commons import VllmCommons
from replay.engines.vllm_inside import NO_TOKEN, TOKEN, VECTOR, Inside, Part, Step
from replay.engines.vllm_offload import VirtualWorker
from replay.engines.vllm_order import order_steps, order_transfers
from replay.engines.vllm_plugged import SLICE_TOKENS, Clock, Mind, Plugged, mind_of
from replay.engines.vllm_prompts import Hasher, Prompts
from replay.engines.vllm_setup import scheduler_of
from replay.engines.vllm_slices import VllmSlices
from replay.faults import TransferFaults, fates

IDLE_STEPS_MAX: Final = 8
"""Steps in a row without work, and with nothing on its way to sleep for, while requests are there: more, and vLLM waits
for something that will not come."""


class VllmEngine:
    """See the module. `tiers` is vLLM's own CPU offload; `prompts` may be shared with other engines. With `commons`
    what any engine of the run has computed is there."""

    def __init__(
        self, registered: EngineRegistered, *, now_ns: int = 0, tiers: TierSizes | None = None,
        faults: TransferFaults | None = None, prompts: Prompts | None = None, overlaps: bool = True,
        plugged: Plugged | None = None, commons: VllmCommons | None = None,
    ) -> None:  # fmt: skip
        assert registered.step is not None, "a simulated engine has a step model"
        self.engine_id: EngineId = registered.engine_id
        self._capability, self._model = registered.capability, registered.step
        self._blocks, self._block_bytes = registered.kv_blocks, registered.block_bytes
        self._kv_tokens = registered.kv_blocks * registered.block_tokens
        self._clock, self._plugged = Clock(), plugged
        self._clock.now_fs = now_ns * FS_PER_NS
        self._mind: Mind | None = mind_of(plugged, self._clock) if plugged is not None else None
        self._scheduler = scheduler_of(registered, tiers, overlaps=overlaps, plugged=plugged)
        self._pool = self._scheduler.kv_cache_manager.block_pool
        self._prompts = prompts or Prompts(registered.block_tokens)
        self._commons = commons
        self._worker: VirtualWorker | None = None
        if tiers is not None and self._scheduler.connector is not None:
            order_transfers(self._scheduler.connector.connector_scheduler.manager)
            drawn = fates(faults, self.engine_id) if faults is not None else None
            self._worker = VirtualWorker(
                bytes_per_s=tiers.dram_bytes_per_s, block_bytes=registered.block_bytes, fates=drawn
            )
        self._ahead = 2 if overlaps else 1
        self._jobs: dict[RequestId, Inside] = {}
        self._parts: dict[str, Part] = {}
        self._coming: list[Inside] = []  # vLLM hears of these, and that those are gone, between two steps.
        self._gone: list[Inside] = []
        self._flight: deque[Step] = deque()
        self._serial = self._idle_steps = 0
        self._asleep = False
        self._at_fs = now_ns * FS_PER_NS
        self._now_ns = now_ns
        self._outcomes: list[Outcome] = []
        self._prompt_tokens = self._output_tokens = self._queries = self._hits = 0
        self._preemptions = self._evictions = 0
        self._pool._emit_block_removed_events = self._evicted  # noqa: SLF001 - vLLM tells them for KV events only
        self._slices: VllmSlices | None = None
        if tiers is not None and self._worker is not None:
            self._slices = VllmSlices(
                registered, tiers, self._scheduler, self._worker, self._request_of, tells_dram=plugged is None
            )

    # What its owner calls.

    def submit(self, request: SimRequest, now_ns: int) -> None:
        """Queue a request; it can enter the step that begins at `now_ns` or later. An id may come again once it has
        ended."""
        assert request.request_id not in self._jobs, "a request is submitted once"
        assert request.prompt_tokens > 0, "a prompt has tokens"
        self._arrive_at(now_ns)
        refusal = refused(request, self._capability, kv_tokens=self._kv_tokens)
        if refusal is not None:
            self._outcomes.append(Refused(request.request_id, now_ns, refusal))
            return
        job = self._jobs[request.request_id] = Inside(request)
        self._coming.append(job)

    def abort(self, request_id: RequestId, now_ns: int) -> bool:
        """End a request without an answer; False if it is not here. Nothing more is said about it."""
        self._arrive_at(now_ns)
        job = self._jobs.pop(request_id, None)
        if job is None:
            return False
        if job in self._coming:
            self._coming.remove(job)
        else:
            self._gone.append(job)
        return True

    def preempt(self, request_id: RequestId, now_ns: int) -> bool:  # noqa: ARG002
        """False: vLLM cannot be asked to."""
        self._arrive_at(now_ns)
        return False

    def resume(self, request_id: RequestId, now_ns: int) -> bool:  # noqa: ARG002
        """False: nothing was ever parked."""
        self._arrive_at(now_ns)
        return False

    def direct(self, directive: EngineDirected) -> None:
        """From the next step on, choose by this; vLLM's own classes know no directive, and go on as before."""
        if self._mind is not None:
            self._mind.direct(directive)

    def order(self, order: TransferOrdered | TransferCancelled, now_ns: int) -> None:
        """Carry out an order about slices; vLLM's own classes take none, and it is not answered."""
        if self._mind is not None:
            self._arrive_at(now_ns)
            self._clock.now_fs = now_ns * FS_PER_NS
            self._mind.order(order)

    def accept(self, at: SliceAt, tier: Tier, now_ns: int) -> bool:  # noqa: ARG002
        """vLLM's own classes take nothing from peers."""
        return False

    def slice_facts(self, *, measure: bool) -> list[Event]:
        """What changed in its memory, as of the last `run_until`: with `measure` all of it and what was measured.
        Nothing without tiers."""
        if self._slices is None:
            return []
        said = self._slices.facts(self._now_ns * FS_PER_NS, measure=measure)
        if self._mind is not None and (measure or said):
            said += self._mind.facts()
        return said

    def ssd(self) -> TierCache | None:
        """It has none."""
        return None

    def next_ns(self) -> int | None:
        """When something can next come out of it, if nothing more goes in; None when there is nothing to do."""
        if self._outcomes:
            return self._now_ns
        if self._flight:
            return _ceil_ns(self._flight[0].end_fs)
        if not self._jobs and not self._gone and (self._mind is None or not self._mind.has_orders()):
            return None  # Stores may still be on their way; nobody waits for them.
        wake_fs = self._wake_fs()
        return max(self._now_ns, _ceil_ns(wake_fs)) if wake_fs is not None else None

    def run_until(self, now_ns: int) -> list[Outcome]:
        """Do all that is done by `now_ns`; what came out, in order of time."""
        assert now_ns >= self._now_ns, "time does not go back"
        self._now_ns = now_ns
        self._advance(now_ns * FS_PER_NS)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def progress(self) -> list[tuple[RequestId, int]]:
        """Output tokens so far of every request that is in the engine, in the order in which they came."""
        return [(request_id, self._emitted(job)) for request_id, job in self._jobs.items()]

    def measured(self) -> EngineMeasured:
        """What the scheduler says of itself, as of the last `run_until`; what it has not heard of yet waits."""
        running, waiting = self._scheduler.get_request_counts()
        used = self._blocks - self._pool.get_num_free_blocks()
        return EngineMeasured(
            engine_id=self.engine_id,
            running=running,
            waiting=waiting + len(self._coming),
            kv_used_ppm=used * PPM // self._blocks,
            preemptions_total=self._preemptions,
            prefix_queries_total=self._queries,
            prefix_hits_total=self._hits,
            prompt_tokens_total=self._prompt_tokens,
            output_tokens_total=self._output_tokens,
            evictions_total=self._evictions,
            embedding_bytes=self._embedding_blocks() * self._block_bytes,
            directive_version=self._mind.directive_version() if self._mind is not None else 0,
        )

    def check_integrity(self) -> None:
        """Assert that every block is in one place, and that every request is known on both sides."""
        held = sum(block.ref_cnt > 0 and not block.is_null for block in self._pool.blocks)
        assert held + self._pool.get_num_free_blocks() == self._blocks, "every block is held or free"
        handed = sum(job.left for job in (*self._jobs.values(), *self._gone))
        assert len(self._parts) == handed, "what has ended is gone, and the rest is there"
        assert all(name in self._scheduler.requests for name in self._parts), "vLLM has what we wait for"

    # Time.

    def _arrive_at(self, now_ns: int) -> None:
        """Something comes from outside: what is in flight goes on, but no step that begins at this very moment has been
        scheduled."""
        assert now_ns >= self._now_ns, "time does not go back"
        self._now_ns = now_ns
        now_fs = now_ns * FS_PER_NS
        self._advance(now_fs - 1)
        if not self._flight:
            self._at_fs = max(self._at_fs, now_fs)
        self._asleep = False

    def _advance(self, limit_fs: int) -> None:
        """End every step that ends, and schedule every one that vLLM would schedule, by `limit_fs`."""
        while True:
            if len(self._flight) < self._ahead and self._at_fs <= limit_fs and self._has_work():
                self._begin()
            elif self._flight and self._flight[0].end_fs <= limit_fs:
                self._end(self._flight.popleft())
            elif self._asleep and not self._flight and (wake_fs := self._wake_fs()) is not None and wake_fs <= limit_fs:
                self._at_fs, self._asleep = max(self._at_fs, wake_fs), False
            else:
                return

    def _has_work(self) -> bool:
        if self._asleep:
            return False
        return bool(self._coming or self._gone) or bool(self._scheduler.has_requests())

    def _wake_fs(self) -> int | None:
        """When to look again, with no step in flight."""
        if not self._asleep:
            return self._at_fs
        return self._worker.next_fs() if self._worker is not None else None

    # One step.

    def _begin(self) -> None:
        """Have vLLM schedule a step; it computes when the one before it has ended."""
        self._clock.now_fs = self._at_fs
        self._take_back()
        for job in self._coming:
            self._hand_over(job)
        self._coming.clear()
        if self._worker is not None:
            order_steps(self._scheduler)
        output = self._scheduler.schedule()
        begin_fs = max(self._at_fs, self._flight[-1].end_fs) if self._flight else self._at_fs
        if self._worker is not None and output.kv_connector_metadata is not None:
            begin_fs = self._worker.begin_step(output.kv_connector_metadata, begin_fs)
        self._preemptions += len(output.preempted_req_ids or ())
        for new in output.scheduled_new_reqs:
            self._entered(self._parts[new.req_id])
        step = Step(output)
        step.end_fs = begin_fs + self._takes_fs(step)
        self._flight.append(step)
        if any(one.names for one in self._flight):
            self._idle_steps = 0
            return
        while self._flight:
            self._end(self._flight.popleft())
        self._rest()

    def _takes_fs(self, step: Step) -> int:
        """How long the step computes; and what it makes."""
        pairs = context = seqs = 0
        parts, made = self._parts, step.made
        for name, count in step.output.num_scheduled_tokens.items():
            part = parts[name]
            request = part.request
            end = request.num_computed_tokens
            if count == 1 and end > part.prompt_tokens:
                context += end
                seqs += 1
                made.append(TOKEN)
                continue
            pairs += end * end - (end - count) * (end - count)
            step.prompt_tokens += count
            if request.is_prefill_chunk:
                made.append(NO_TOKEN)
            elif request.pooling_params is None:
                made.append(TOKEN)
            else:
                if not step.vectors:
                    step.vectors += [None] * len(step.names)
                step.vectors[len(made)] = VECTOR
                made.append(NO_TOKEN)
        if not made:
            return 0
        return step_fs(self._model, tokens=seqs + step.prompt_tokens, qk=pairs // 2, context=context, seqs=seqs)

    def _end(self, step: Step) -> None:
        """A step is over: vLLM hears what it made, and says who has ended."""
        self._at_fs = self._clock.now_fs = step.end_fs
        self._take_back()
        said = self._worker.ended(step.end_fs) if self._worker is not None else None
        if step.names:
            runner = ModelRunnerOutput(
                req_ids=step.names, req_id_to_index={name: place for place, name in enumerate(step.names)},
                sampled_token_ids=step.made, pooler_output=step.vectors or None, kv_connector_output=said,
            )  # fmt: skip
        else:
            runner = ModelRunnerOutput.with_kv_conn_output_only(said)
        self._prompt_tokens += step.prompt_tokens
        for core in self._scheduler.update_from_output(step.output, runner).values():
            for output in core.outputs:
                self._output_tokens += len(output.new_token_ids)
                if output.prefill_stats is not None:
                    self._prefilled(output)
                if output.finish_reason is not None:
                    self._part_ended(output.request_id)

    def _rest(self) -> None:
        """A step had no work, and none is in flight: the next one is worth looking at when a transfer ends, or at once
        if stores begin with it."""
        self._idle_steps += 1
        assert self._idle_steps <= IDLE_STEPS_MAX, "vLLM has requests, and nothing that they wait for"
        if self._worker is not None and not self._worker.has_deferred:
            self._asleep = self._worker.next_fs() is not None
        if self._asleep:
            self._idle_steps = 0  # What is on its way ends; each end is worth a look, and slices may leave with it.

    # One request.

    def _hand_over(self, job: Inside) -> None:
        """vLLM hears of it."""
        request = job.request
        if request.kind is RequestKind.EMBEDDING:
            whole, odd = divmod(request.prompt_tokens, request.inputs)
            for number in range(min(request.inputs, request.prompt_tokens)):
                tokens = self._prompts.tokens(f"{request.request_id} {number}", whole + (number < odd))
                self._add(job, tokens, None, None)
            return
        full = request.prefix[: request.prompt_tokens // request.unit_tokens]
        tokens = self._prompts.tokens(request.request_id, request.prompt_tokens, full, request.unit_tokens)
        known = self._prompts.hashes(full, request.unit_tokens)
        if self._commons is not None:
            self._commons.put_into(self._pool, known)
        self._add(job, tokens, self._sampling(request), Hasher(self._prompts.hasher, known))

    def _sampling(self, request: SimRequest) -> SamplingParams:
        tokens = max(1, request.output_tokens)
        if self._plugged is None:
            return _sampling(tokens)
        hints = self._plugged.hints(request, self._now_ns)
        return SamplingParams(max_tokens=tokens, ignore_eos=True, extra_args=hints)

    def _add(self, job: Inside, tokens: list[int], sampling: SamplingParams | None, hasher: Hasher | None) -> None:
        self._serial += 1
        name = str(self._serial)
        request = Request(
            name, tokens, sampling, None if sampling is not None else _POOLING, block_hasher=hasher,
            arrival_time=self._now_ns / NS_PER_S, priority=job.request.priority,
        )  # fmt: skip
        self._parts[name] = Part(job, request)
        job.names.append(name)
        job.left += 1
        self._scheduler.add_request(request)

    def _take_back(self) -> None:
        """vLLM hears of those that were aborted."""
        for job in self._gone:
            for name in job.names:
                if self._parts.pop(name, None) is not None:
                    self._scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        self._gone.clear()

    def _prefilled(self, output: Any) -> None:
        """The first that comes of a part."""
        part = self._parts[output.request_id]
        job = part.job
        if self._commons is not None:
            self._commons.computed(part.request.block_hashes)
        if job.request.kind is RequestKind.LLM:
            job.cached = output.prefill_stats.num_cached_tokens
            self._outcomes.append(FirstToken(job.request.request_id, _ceil_ns(self._at_fs)))

    def _part_ended(self, name: str) -> None:
        part = self._parts.pop(name)
        job, request = part.job, part.job.request
        job.preemptions += part.request.num_preemptions
        job.left -= 1
        if job.left:
            return
        del self._jobs[request.request_id]
        emitted = part.request.num_output_tokens
        kv_tokens = request.prompt_tokens + max(0, emitted - 1)
        self._outcomes.append(
            Finished(request.request_id, _ceil_ns(self._at_fs), emitted, job.cached, job.preemptions, kv_tokens)
        )

    # Amounts.

    def _emitted(self, job: Inside) -> int:
        parts = (self._parts.get(name) for name in job.names)
        return sum(part.request.num_output_tokens for part in parts if part is not None)

    def _embedding_blocks(self) -> int:
        managers = self._scheduler.kv_cache_manager.coordinator.single_type_managers
        jobs = (job for job in self._jobs.values() if job.request.kind is RequestKind.EMBEDDING)
        return sum(len(one.req_to_blocks.get(name, ())) for job in jobs for name in job.names for one in managers)

    def _entered(self, part: Part) -> None:
        """vLLM says that a request is new in a step: to its second model runner (`use_v2_model_runner`, where there is
        Triton) also of one that was preempted, which was counted when it first began."""
        if part.request.num_preemptions:
            return
        stats = part.request.prefill_stats
        self._queries += part.prompt_tokens
        self._hits += stats.num_cached_tokens
        if self._slices is not None:
            self._slices.entered(part.job.request, stats)

    def _evicted(self, hashes: list[bytes]) -> None:
        self._evictions += len(hashes)
        if self._slices is not None:
            self._slices.evicted(hashes)

    def _request_of(self, name: str) -> SimRequest | None:
        part = self._parts.get(name)
        return part.job.request if part is not None else None


def vllm_builder(
    *, slice_tokens: int = SLICE_TOKENS, shared: bool = False, plugged: Plugged | None = None
) -> EngineBuilder:
    """Makes engines for one run: vLLM as it is shipped, with its own CPU offload where tiers say how that evicts. Where
    tiers leave it to the directive, the `plugged` classes are in it: they choose who gives way and what leaves DRAM,
    store lazily where tiers are lazy, and carry out orders, in slices of `slice_tokens` tokens (the unit of the run's
    prompts). ValueError where there are none, and where vLLM's own CPU offload should be lazy. `shared`: all have what
    any of them has computed. What a forerunner held in an SSD, and peers, mean nothing to them."""
    commons = VllmCommons() if shared else None
    classes = replace(plugged, slice_tokens=slice_tokens) if plugged is not None else None

    def build(
        registered: EngineRegistered, *, now_ns: int, tiers: TierSizes | None, faults: TransferFaults | None,
        ssd: TierCache | None, peer: Callable[[EngineId], VirtualEngine | None],
    ) -> VirtualEngine:  # fmt: skip
        del ssd, peer
        directed = tiers is not None and not tiers.eviction
        if directed and classes is None:
            raise ValueError("tiers that evict by the directive need classes that follow it plugged into vLLM")
        return VllmEngine(
            registered, now_ns=now_ns, tiers=tiers, faults=faults, prompts=_prompts(registered.block_tokens),
            plugged=classes if directed else None, commons=commons,
        )  # fmt: skip

    return build


vllm_engine: Final = vllm_builder()
"""For runs without tiers, or with vLLM's own."""


@cache
def _prompts(block_tokens: int) -> Prompts:
    """Of this process: hashes are kept from run to run."""
    return Prompts(block_tokens)


_POOLING: Final = PoolingParams(task="embed", skip_reading_prefix_cache=True)


@lru_cache(maxsize=8_192)
def _sampling(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True)


def _ceil_ns(fs: int) -> int:
    return -(-fs // FS_PER_NS)
