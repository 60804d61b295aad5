"""A simulated engine: paged KV, continuous batching, chunked prefill, prefix cache, preemption. A pure state machine.

It behaves as a vLLM v1 engine with first-come-first-served scheduling does, with whole steps as the unit of time:

- A step decodes every sequence that has its prompt done, then gives what is left of `batch_tokens_max` to prompts:
  those begun first, then those whose slices have come, then waiting ones while `seqs_max` and free blocks allow. A
  prompt enters only if its blocks fit as a whole, but takes them step by step: who entered may find none left.
- When decoding, or a prompt that is begun, runs out of blocks the newest running request is preempted: its blocks are
  freed, it goes back to the head of the queue and recomputes prompt and output so far. No prompt enters in that step.
  Under a directive (`direct`) the rule of `policies.memory.victims` chooses who; the newest only where that rule finds
  nobody.
- A request that is preempted by order (`preempt`) is parked: it holds nothing and is in no queue until it is resumed.
- Full units of a prompt are in the prefix cache from the step on that computes them. Blocks that nobody holds are
  evicted oldest first, of one request the last first. At least the last token of a prompt is computed. Ends of prompts
  and output stay cached too; only the request that made them finds them again, if it was preempted.
- An embedding request is prompt only; its inputs pass through one after another, so it holds no more blocks than one
  step or its longest input takes. Inputs are taken as equally long; each waits for its turn like a request.
- With `steps_ahead` a step is chosen when the one before it begins (vLLM's asynchronous scheduling): who comes, or has
  its slices, during a step enters not the next one but that after it, and blocks of what ends with a step are free to
  that one too, unless nothing was there to choose.
- With slower tiers behind it (`replay.engines.slow_memory`), what is computed (of lazy ones: what device memory evicts)
  is written through to them, and a prompt that goes on there loads that instead of computing it, where that is quicker.
  Meanwhile it holds the blocks of what it loads and cannot be preempted, does not count as running, and others compute.
  It begins only where the blocks that those in the batch will still take are left; under a directive (as with this
  project's plugin in vLLM, not with vLLM's own offloading) whoever enters leaves it its own too, and the newest is who
  entered last, not who began to compute last.
- Time is kept in femtoseconds, so steps add up exactly; outcomes carry the nanosecond by which they are there.

While only decoding goes on, any number of steps is taken at once, in closed form (`DecodeClock`): the result equals
stepping one by one. Nothing here reads a clock: who owns the engine says what time it is, and time never goes back.
"""

from collections.abc import Callable
from functools import partial

from events.base import PPM, EngineId, Event, RequestId, RequestKind
from events.decisions import EngineDirected, TransferCancelled, TransferOrdered
from events.engine import EngineMeasured, EngineRegistered
from events.slice import Tier
from policies.predictors.step_time import FS_PER_NS, decode_grow_fs, step_fs
from replay.engines.base import EngineBuilder, VirtualEngine
from replay.engines.batch import Batch, Peers
from replay.engines.commons import Commons
from replay.engines.job import Finished, FirstToken, Job, Outcome, Refused, SimRequest, Tokens, refused
from replay.engines.slow_memory import SlowMemory
from replay.engines.stride import Stride
from replay.engines.tier_cache import SliceAt, TierCache
from replay.engines.tiers import TierSizes
from replay.faults import TransferFaults, fates


def light_engine(
    registered: EngineRegistered, *, now_ns: int, tiers: TierSizes | None, faults: TransferFaults | None,
    ssd: TierCache | None, peer: Callable[[EngineId], VirtualEngine | None], commons: Commons | None = None,
) -> VirtualEngine:  # fmt: skip
    """The light model as an `EngineBuilder`: engines that tell first and last tokens only."""
    return LightEngine(
        registered, now_ns=now_ns, tell_tokens=False, tiers=tiers, faults=faults, ssd=ssd, peers=peer, commons=commons
    )


def sharing_light_engine() -> EngineBuilder:
    """A builder for one run whose engines share all that any of them has computed, at no cost: a bound. With more KV
    than the run needs it is the one with unlimited, shared KV."""
    return partial(light_engine, commons=Commons())


class LightEngine:
    """See the module. `batch_tokens` and `seqs_max` are the engine's own; decodes always fit a step.
    `tell_tokens` = False leaves `Tokens` outcomes out, for owners that need first and last only.

    `tiers` stand behind its memory (None = nothing does; then `faults` of transfers, `ssd`, what its SSD held before a
    restart, and `peers`, the engines that slices can be copied to, mean nothing). What is in the `commons` need not be
    computed.
    """

    def __init__(
        self, registered: EngineRegistered, *, now_ns: int = 0, tell_tokens: bool = True,
        tiers: TierSizes | None = None, faults: TransferFaults | None = None, ssd: TierCache | None = None,
        peers: Peers = lambda _engine_id: None, commons: Commons | None = None,
    ) -> None:  # fmt: skip
        self.engine_id: EngineId = registered.engine_id
        self._capability = registered.capability
        self._block_tokens, self._block_bytes = registered.block_tokens, registered.block_bytes
        self._batch = Batch(registered)
        """Who runs and who waits, and what they hold."""
        if tiers is not None:
            drawn = fates(faults, self.engine_id) if faults is not None else None
            self._batch.stand_before(tiers, now_ns=now_ns, fates=drawn, ssd=ssd, peers=peers)
        self._batch.commons = commons
        self._slow: SlowMemory | None = self._batch.slow
        self._tell_tokens = tell_tokens
        self._jobs: dict[RequestId, Job] = {}
        self._parked: dict[RequestId, Job] = {}
        self._gone: list[Job] = []
        self._leaving: list[Job] = []
        self._stride: Stride[Job] | None = None
        self._is_idle = False
        self._ahead = registered.capability.steps_ahead > 0
        self._scheduled_fs: int | None = None  # When the step that is to begin was scheduled, if that was before.
        self._at_fs = now_ns * FS_PER_NS
        self._now_ns = now_ns
        self._outcomes: list[Outcome] = []
        self._prompt_tokens = self._output_tokens = 0

    # What its owner calls.

    def submit(self, request: SimRequest, now_ns: int) -> None:
        """Queue a request; it can enter the step that begins at `now_ns` or later. The answer comes out of
        `run_until`. An id may come again once it has ended."""
        assert request.request_id not in self._jobs, "a request is submitted once"
        assert request.prompt_tokens > 0, "a prompt has tokens"
        self._arrive_at(now_ns)
        refusal = refused(request, self._capability, kv_tokens=self._batch.device.blocks * self._block_tokens)
        if refusal is not None:
            self._outcomes.append(Refused(request.request_id, now_ns, refusal))
            return
        job = Job(request, self._block_tokens, self._batch.batch_tokens)
        self._jobs[request.request_id] = job
        self._queue(job)

    def abort(self, request_id: RequestId, now_ns: int) -> bool:
        """End a request without an answer; False if it is not here. Its blocks are free when the step in flight is
        over; nothing more is said about it."""
        self._arrive_at(now_ns)
        job = self._jobs.pop(request_id, None)
        if job is None:
            return False
        job.gone = True
        if request_id not in self._batch.running:
            self._output_tokens += job.emitted
            if self._parked.pop(request_id, None) is None:
                self._batch.waiting.remove(job)
        elif self._stride is None:
            self._drop(job)
        else:
            self._gone.append(job)
        return True

    def preempt(self, request_id: RequestId, now_ns: int) -> bool:
        """Park a request until it is resumed; False if it is not here, or is parked already. What it holds is free
        when the step in flight is over; what that step still makes of it comes out."""
        self._arrive_at(now_ns)
        job = self._jobs.get(request_id)
        if job is None or job.leaving or request_id in self._parked:
            return False
        if request_id not in self._batch.running:
            self._batch.waiting.remove(job)
            self._parked[request_id] = job
        elif self._stride is None:
            self._park(job)
        else:
            job.leaving = True
            self._leaving.append(job)
        return True

    def resume(self, request_id: RequestId, now_ns: int) -> bool:
        """Put a parked request at the end of the queue: it computes its prompt and its output so far anew, as far as
        the prefix cache does not have it. One that has not left yet stays. False if it is neither."""
        self._arrive_at(now_ns)
        job = self._parked.pop(request_id, None)
        if job is not None:
            self._queue(job)
            return True
        job = self._jobs.get(request_id)
        if job is None or not job.leaving:
            return False
        job.leaving = False
        self._leaving.remove(job)
        return True

    def direct(self, directive: EngineDirected) -> None:
        """From the next step on, choose by this; an older one than it goes by already changes nothing."""
        if self._batch.directive is None or directive.version > self._batch.directive.version:
            self._batch.direct(directive)

    def order(self, order: TransferOrdered | TransferCancelled, now_ns: int) -> None:
        """Carry out an order about slices from now on, or begin no more of it. What became of it stands in
        `slice_facts`. An engine without tiers does nothing, and answers nothing."""
        if self._slow is not None:
            self._arrive_at(now_ns)
            self._slow.order(order, now_ns)

    def accept(self, at: SliceAt, tier: Tier, now_ns: int) -> bool:
        """See `replay.engines.carrier.Peer`."""
        return self._slow is not None and self._slow.accept(at, tier, now_ns)

    def slice_facts(self, *, measure: bool) -> list[Event]:
        """What changed in its memory, as of the last `run_until`: with `measure` all of it and what was measured, else
        only where an order has ended since. Nothing without tiers."""
        return self._slow.facts(measure=measure) if self._slow is not None else []

    def ssd(self) -> TierCache | None:
        """What outlives it."""
        return self._slow.tiers.ssd if self._slow is not None else None

    def next_ns(self) -> int | None:
        """When an outcome can next come out, or an order next be answered, if nothing more goes in; None when there is
        nothing to do."""
        outcome_ns = self.next_outcome_ns()
        order_fs = self._slow.next_fs() if self._slow is not None else None
        if order_fs is None:
            return outcome_ns
        order_ns = max(self._now_ns, _ceil_ns(order_fs))
        return order_ns if outcome_ns is None else min(outcome_ns, order_ns)

    def next_outcome_ns(self) -> int | None:
        """As `next_ns`, for owners that look for answers to orders by themselves."""
        if self._outcomes:
            return self._now_ns
        next_fs = self._next_step_fs()
        return _ceil_ns(next_fs) if next_fs is not None else None

    def run_until(self, now_ns: int) -> list[Outcome]:
        """Do all that is done by `now_ns`; what came out, in order of time."""
        assert now_ns >= self._now_ns, "time does not go back"
        self._now_ns = now_ns
        self._advance(now_ns * FS_PER_NS)
        if self._slow is not None:
            self._slow.advance(now_ns * FS_PER_NS)
        if self._tell_tokens:
            for job in self._batch.running.values():
                if job.serial and not job.gone:
                    self._tell(job, self._batch.emitted(job), self._at_fs)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def progress(self) -> list[tuple[RequestId, int]]:
        """Output tokens so far of every request that is in the engine; those that wait, then the parked, last."""
        inside = (*self._batch.running.values(), *self._batch.waiting, *self._parked.values())
        return [(job.request.request_id, self._batch.emitted(job)) for job in inside if not job.gone]

    def measured(self) -> EngineMeasured:
        """What the engine says of itself, as of the last `run_until`. What is parked neither runs nor waits."""
        inside = (*self._batch.running.values(), *self._batch.waiting, *self._parked.values())
        embedding = (job for job in self._batch.running.values() if job.request.kind is RequestKind.EMBEDDING)
        used = self._batch.device.blocks - self._batch.device.room
        return EngineMeasured(
            engine_id=self.engine_id,
            running=len(self._batch.running) - self._batch.aside,
            waiting=len(self._batch.waiting) + self._batch.aside,
            kv_used_ppm=used * PPM // self._batch.device.blocks,
            preemptions_total=self._batch.preemptions,
            prefix_queries_total=self._batch.prefix_queries,
            prefix_hits_total=self._batch.prefix_hits,
            prompt_tokens_total=self._prompt_tokens,
            output_tokens_total=self._output_tokens + sum(self._batch.emitted(job) for job in inside),
            evictions_total=self._batch.device.cache.evictions,
            embedding_bytes=sum(self._batch.held(job) for job in embedding) * self._block_bytes,
            directive_version=self._batch.directive.version if self._batch.directive is not None else 0,
        )

    def check_integrity(self) -> None:
        """Assert that every block is in one place, and every request in one state."""
        self._batch.check_integrity(self._batch.clock.blocks_needed(1) if self._stride is not None else 0)
        inside = len(self._batch.waiting) + len(self._batch.running) + len(self._parked)
        assert len(self._jobs) == inside - len(self._gone), "no request is lost"
        assert all(not job.units and not job.serial for job in self._parked.values()), "what is parked holds nothing"
        assert all(job.request.request_id in self._batch.running for job in self._leaving), "what leaves still runs"

    # Time.

    def _arrive_at(self, now_ns: int) -> None:
        """Something comes from outside: the step in flight is done to its end, but no step after it is begun."""
        assert now_ns >= self._now_ns, "time does not go back"
        self._now_ns = now_ns
        now_fs = now_ns * FS_PER_NS
        self._advance(now_fs - 1)
        self._is_idle = False
        if self._stride is not None:
            self._stride.steps = 1
        elif self._at_fs < now_fs:
            self._at_fs, self._scheduled_fs = now_fs, None

    def _advance(self, limit_fs: int) -> None:
        """Finish every step that ends, and begin every step that begins, by `limit_fs`."""
        while True:
            if self._stride is None:
                if self._at_fs > limit_fs or not (self._batch.waiting or self._batch.running):
                    return
                if self._is_idle:
                    wake_fs = self._wake_fs()
                    if wake_fs > limit_fs:
                        return
                    self._at_fs, self._is_idle = max(self._at_fs, wake_fs), False
                    self._scheduled_fs = None
                self._stride = self._begin()
                if self._stride is None:
                    self._is_idle = True
                    continue
            stride = self._stride
            done = stride.done_by(limit_fs)
            whole = done == stride.steps
            if done:
                self._at_fs = stride.end_fs(done)
                self._batch.device.take(self._batch.clock.blocks_needed(done if not whole else done - 1, ahead=1))
                self._batch.clock.advance(done)
            if not whole:
                stride.start_fs, stride.steps = self._at_fs, stride.steps - done
                stride.first_fs += done * stride.grow_fs
                return
            self._stride = None
            if self._ahead:
                self._scheduled_fs = stride.end_fs(done - 1)
            self._end(stride.chunks)

    def _next_step_fs(self) -> int | None:
        """When the step in flight ends, or the next one begins; None when there is nothing to do."""
        if self._stride is not None:
            return self._stride.end_fs(self._stride.steps)
        if self._is_idle:
            return self._wake_fs()
        return self._at_fs if self._batch.waiting or self._batch.running else None

    def _wake_fs(self) -> int:
        """When all that run wait for slices: when to look again."""
        wake_fs = self._slow.loads.wake_fs() if self._slow is not None else None
        assert wake_fs is not None, "an engine with work does some, or waits for slices"
        return wake_fs

    # One step.

    def _begin(self) -> Stride[Job] | None:
        """Choose what the next step (or steps) work on, and take the blocks of the first. None where all that run wait
        for slices, and nothing else may enter."""
        batch, clock = self._batch, self._batch.clock
        batch.begin(self._at_fs)
        if self._scheduled_fs is None:
            batch.free_ended()
        preempted = batch.make_room()
        batch.device.take(clock.blocks_needed(1))
        batch.known_fs = self._at_fs if self._scheduled_fs is None else self._scheduled_fs
        chunks = batch.choose_chunks(admit=not preempted)
        is_new = batch.free_ended()
        if not chunks and not clock.seqs:
            batch.known_fs = self._at_fs  # A step without work takes no time: the next one is scheduled now.
            chunks = batch.choose_chunks(admit=True)
        if not chunks and not clock.seqs:
            return None
        steps = 1
        # Where the queue was not looked at, or not knowing all, the next step may take more in.
        if not (chunks or preempted or is_new or batch.may_enter_later()):
            steps = min(clock.steps_to_end(), 1 + clock.steps_within(batch.device.room, ahead=1))
        tokens, pairs = clock.seqs, 0
        for job, count in chunks:
            tokens += count
            pairs += job.pairs(count)
        first_fs = step_fs(batch.model, tokens=tokens, qk=pairs // 2, context=clock.context, seqs=clock.seqs)
        stride = Stride(self._at_fs, first_fs, decode_grow_fs(batch.model, clock.seqs), steps, chunks)
        if steps > 1 and batch.is_loading:
            stride.steps = min(steps, 1 + stride.done_by(self._wake_fs() - 1))
        return stride

    def _end(self, chunks: list[tuple[Job, int]]) -> None:
        """A step is over: those whose last token came end, prompts move on."""
        self._batch.move_to(self._at_fs)
        for job in self._batch.clock.pop_ended():
            self._batch.stop_decoding(job)
            self._finish(job)
        for job, count in chunks:
            self._prompt_tokens += count
            self._batch.computed(job, count)
            if job.computed == job.target:
                self._prompt_done(job)
        for job in self._gone:
            self._drop(job)
        self._gone.clear()
        for job in self._leaving:
            self._park(job)
        self._leaving.clear()
        if not self._batch.running:
            self._batch.free_ended()

    # One request.

    def _queue(self, job: Job) -> None:
        """It waits from now on."""
        job.came_fs = self._now_ns * FS_PER_NS
        self._batch.waiting.append(job)

    def _prompt_done(self, job: Job) -> None:
        request = job.request
        del self._batch.prefilling[request.request_id]
        if request.kind is RequestKind.EMBEDDING:
            self._finish(job)
            return
        job.emitted += 1
        if job.emitted == 1:
            job.first_ns = _ceil_ns(self._at_fs)
        if job.emitted == 1 and not job.gone:
            self._outcomes.append(FirstToken(request.request_id, _ceil_ns(self._at_fs)))
        if job.emitted == request.output_tokens:
            self._finish(job)
            return
        self._batch.begin_decode(job)

    def _finish(self, job: Job) -> None:
        request = job.request
        # What it held: output tokens are stored one step after they are made, the last one never is.
        kv_tokens = request.prompt_tokens + max(0, job.emitted - 1)
        self._output_tokens += job.emitted
        self._batch.end(job, stored=kv_tokens, is_known=not self._ahead)
        if job.leaving:
            self._leaving.remove(job)
        if job.gone:
            self._gone.remove(job)
            return
        del self._jobs[request.request_id]
        if self._tell_tokens:
            self._tell(job, job.emitted, self._at_fs)
        self._outcomes.append(
            Finished(
                request.request_id, _ceil_ns(self._at_fs), job.emitted, max(0, job.cached), job.preemptions, kv_tokens
            )
        )

    def _park(self, job: Job) -> None:
        """It gives way by order: nowhere until it is resumed."""
        job.leaving = False
        self._batch.give_up(job)
        self._parked[job.request.request_id] = job

    def _drop(self, job: Job) -> None:
        """An aborted request leaves the batch for good."""
        if job.leaving:
            self._leaving.remove(job)
        self._batch.take_out(job)
        self._output_tokens += job.emitted

    def _tell(self, job: Job, emitted: int, at_fs: int) -> None:
        count = emitted - max(1, job.told)
        if count > 0:
            self._outcomes.append(Tokens(job.request.request_id, count, _ceil_ns(at_fs)))
            job.told = emitted


def _ceil_ns(fs: int) -> int:
    return -(-fs // FS_PER_NS)
