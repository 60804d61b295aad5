"""A simulated engine: paged KV, continuous batching, chunked prefill, prefix cache, preemption. A pure state machine.

It behaves as a vLLM v1 engine with first-come-first-served scheduling does, with whole steps as the unit of time:

- A step decodes every sequence that has its prompt done, then gives what is left of `batch_tokens_max` to prompts:
  those begun first, then waiting ones while `seqs_max` and free blocks allow. A prompt enters only if its blocks
  fit as a whole.
- When decoding runs out of blocks the newest running request is preempted: its blocks are freed, it goes back to
  the head of the queue and recomputes prompt and output so far. No prompt enters in that step. Under a directive
  (`direct`) the rule of `policies.memory.victims` chooses who; the newest only where that rule finds nobody.
- A request that is preempted by order (`preempt`) is parked: it holds nothing and is in no queue until it is resumed.
- Full units of a prompt stay in the prefix cache when computed. Blocks that nobody holds are evicted oldest first.
  At least the last token of a prompt is computed. Output is not cached, and two requests that compute the same unit
  at the same time keep one of the two (vLLM keeps both until they end).
- An embedding request is prompt only; its inputs pass through one after another, so it holds no more blocks than one
  step or its longest input takes. Inputs are taken as equally long.
- Time is kept in femtoseconds, so steps add up exactly; outcomes carry the nanosecond by which they are there.

While only decoding goes on, any number of steps is taken at once, in closed form (`DecodeClock`): the result equals
stepping one by one. Nothing here reads a clock: who owns the engine says what time it is, and time never goes back.
"""

from collections import deque

from events.base import PPM, EngineId, RequestId, RequestKind
from events.decisions import EngineDirected
from events.engine import EngineMeasured, EngineRegistered
from policies.memory.victims import Chosen, choose
from policies.predictors.step_time import FS_PER_NS, prefill_ns, step_fs, step_ns
from replay.engines.decode_clock import DecodeClock
from replay.engines.job import Finished, FirstToken, Job, Outcome, Refused, SimRequest, Tokens, refused
from replay.engines.prefix_cache import PrefixCache, Unit
from replay.engines.pressure import weigh
from replay.engines.stride import Stride


class LightEngine:
    """See the module. `batch_tokens` and `seqs_max` are the engine's own; decodes always fit a step.
    `tell_tokens` = False leaves `Tokens` outcomes out, for owners that need first and last only.
    """

    def __init__(self, registered: EngineRegistered, *, now_ns: int = 0, tell_tokens: bool = True) -> None:
        assert registered.step is not None, "a simulated engine has a step model"
        assert registered.kv_blocks > 0, "a simulated engine has KV blocks"
        self.engine_id: EngineId = registered.engine_id
        self._model = registered.step
        self._capability = registered.capability
        self._block_tokens, self._block_bytes = registered.block_tokens, registered.block_bytes
        self._blocks = self._free = registered.kv_blocks
        self._batch_tokens = registered.capability.batch_tokens_max
        self._seqs_max = min(registered.capability.seqs_max, self._batch_tokens)
        self._tell_tokens = tell_tokens
        self._cache = PrefixCache(self._unit_cost_ns)
        self._clock: DecodeClock[Job] = DecodeClock(registered.block_tokens)
        self._jobs: dict[RequestId, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: dict[RequestId, Job] = {}
        self._prefilling: dict[RequestId, Job] = {}
        self._parked: dict[RequestId, Job] = {}
        self._gone: list[Job] = []
        self._leaving: list[Job] = []
        self._directive: EngineDirected | None = None
        self._stride: Stride[Job] | None = None
        self._at_fs = now_ns * FS_PER_NS
        self._now_ns = now_ns
        self._outcomes: list[Outcome] = []
        self._preemptions = self._prefix_queries = self._prefix_hits = 0
        self._prompt_tokens = self._output_tokens = 0

    # What its owner calls.

    def submit(self, request: SimRequest, now_ns: int) -> None:
        """Queue a request; it can enter the step that begins at `now_ns` or later. The answer comes out of
        `run_until`. An id may come again once it has ended."""
        assert request.request_id not in self._jobs, "a request is submitted once"
        assert request.prompt_tokens > 0, "a prompt has tokens"
        self._arrive_at(now_ns)
        refusal = refused(request, self._capability, kv_tokens=self._blocks * self._block_tokens)
        if refusal is not None:
            self._outcomes.append(Refused(request.request_id, now_ns, refusal))
            return
        job = Job(request, self._block_tokens, self._batch_tokens)
        self._jobs[request.request_id] = job
        self._waiting.append(job)

    def abort(self, request_id: RequestId, now_ns: int) -> bool:
        """End a request without an answer; False if it is not here. Its blocks are free when the step in flight is
        over; nothing more is said about it."""
        self._arrive_at(now_ns)
        job = self._jobs.pop(request_id, None)
        if job is None:
            return False
        job.gone = True
        if request_id not in self._running:
            self._output_tokens += job.emitted
            if self._parked.pop(request_id, None) is None:
                self._waiting.remove(job)
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
        if request_id not in self._running:
            self._waiting.remove(job)
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
            self._waiting.append(job)
            return True
        job = self._jobs.get(request_id)
        if job is None or not job.leaving:
            return False
        job.leaving = False
        self._leaving.remove(job)
        return True

    def direct(self, directive: EngineDirected) -> None:
        """From the next step on, choose by this; an older one than it goes by already changes nothing."""
        if self._directive is not None and directive.version <= self._directive.version:
            return
        self._directive = directive
        self._cache.direct(directive)

    def next_ns(self) -> int | None:
        """When something can next come out if nothing more goes in; None when there is nothing to do."""
        if self._outcomes:
            return self._now_ns
        if self._stride is not None:
            return _ceil_ns(self._stride.end_fs(self._stride.steps))
        if self._waiting or self._running:
            return _ceil_ns(self._at_fs)
        return None

    def run_until(self, now_ns: int) -> list[Outcome]:
        """Do all that is done by `now_ns`; what came out, in order of time."""
        assert now_ns >= self._now_ns, "time does not go back"
        self._now_ns = now_ns
        self._advance(now_ns * FS_PER_NS)
        if self._tell_tokens:
            for job in self._running.values():
                if job.serial and not job.gone:
                    self._tell(job, self._emitted(job), self._at_fs)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def progress(self) -> list[tuple[RequestId, int]]:
        """Output tokens so far of every request that is in the engine; those that wait, then the parked, last."""
        inside = (*self._running.values(), *self._waiting, *self._parked.values())
        return [(job.request.request_id, self._emitted(job)) for job in inside if not job.gone]

    def measured(self) -> EngineMeasured:
        """What the engine says of itself, as of the last `run_until`. What is parked neither runs nor waits."""
        inside = (*self._running.values(), *self._waiting, *self._parked.values())
        embedding = (job for job in self._running.values() if job.request.kind is RequestKind.EMBEDDING)
        used = self._blocks - self._free - self._cache.evictable
        return EngineMeasured(
            engine_id=self.engine_id,
            running=len(self._running),
            waiting=len(self._waiting),
            kv_used_ppm=used * PPM // self._blocks,
            preemptions_total=self._preemptions,
            prefix_queries_total=self._prefix_queries,
            prefix_hits_total=self._prefix_hits,
            prompt_tokens_total=self._prompt_tokens,
            output_tokens_total=self._output_tokens + sum(self._emitted(job) for job in inside),
            evictions_total=self._cache.evictions,
            embedding_bytes=sum(self._held(job) for job in embedding) * self._block_bytes,
            directive_version=self._directive.version if self._directive is not None else 0,
        )

    def check_integrity(self) -> None:
        """Assert that every block is in one place, and every request in one state."""
        self._cache.check_integrity()
        in_flight = self._clock.blocks_needed(1) if self._stride is not None else 0
        private = sum(self._held(job) - self._shared(job) for job in self._running.values())
        assert self._free >= 0, "no block is given twice"
        assert self._free + self._cache.blocks + private + in_flight == self._blocks, "no block is lost"
        assert self._clock.seqs + len(self._prefilling) == len(self._running), "running is prefill or decode"
        assert len(self._running) <= self._seqs_max, "sequences keep to their limit"
        inside = len(self._waiting) + len(self._running) + len(self._parked)
        assert len(self._jobs) == inside - len(self._gone), "no request is lost"
        outside = (*self._waiting, *self._parked.values())
        assert all(not job.units and not job.serial for job in outside), "what waits or is parked holds nothing"
        assert all(job.request.request_id in self._running for job in self._leaving), "what leaves still runs"

    # Time.

    def _arrive_at(self, now_ns: int) -> None:
        """Something comes from outside: the step in flight is done to its end, but no step after it is begun."""
        assert now_ns >= self._now_ns, "time does not go back"
        self._now_ns = now_ns
        now_fs = now_ns * FS_PER_NS
        self._advance(now_fs - 1)
        if self._stride is not None:
            self._stride.steps = 1
        elif not self._waiting and not self._running:
            self._at_fs = max(self._at_fs, now_fs)

    def _advance(self, limit_fs: int) -> None:
        """Finish every step that ends, and begin every step that begins, by `limit_fs`."""
        while True:
            if self._stride is None:
                if self._at_fs > limit_fs or not (self._waiting or self._running):
                    return
                self._stride = self._begin()
            stride = self._stride
            done = stride.done_by(limit_fs)
            whole = done == stride.steps
            if done:
                self._at_fs = stride.end_fs(done)
                self._take(self._clock.blocks_needed(done if not whole else done - 1, ahead=1))
                self._clock.advance(done)
            if not whole:
                stride.start_fs, stride.steps = self._at_fs, stride.steps - done
                stride.first_fs += done * stride.grow_fs
                return
            self._stride = None
            self._end(stride.chunks)

    # One step.

    def _begin(self) -> Stride[Job]:
        """Choose what the next step (or steps) work on, and take the blocks of the first."""
        self._cache.now_ns = self._at_fs // FS_PER_NS
        preempted = self._make_room()
        clock = self._clock
        self._take(clock.blocks_needed(1))
        chunks = self._choose_chunks(admit=not preempted)
        assert chunks or clock.seqs, "an engine with work does some"
        steps = 1
        # After a preemption the queue was not looked at: it may fit at the next step.
        if not chunks and not preempted:
            steps = min(clock.steps_to_end(), 1 + clock.steps_within(self._free + self._cache.evictable, ahead=1))
        tokens, pairs = clock.seqs, 0
        for job, count in chunks:
            tokens += count
            pairs += self._pairs(job, count)
        first_fs = step_fs(self._model, tokens=tokens, qk=pairs // 2, context=clock.context, seqs=clock.seqs)
        return Stride(self._at_fs, first_fs, self._model.context_fs * clock.seqs, steps, chunks)

    def _end(self, chunks: list[tuple[Job, int]]) -> None:
        """A step is over: those whose last token came end, prompts move on."""
        self._cache.now_ns = self._at_fs // FS_PER_NS
        for job in self._clock.pop_ended():
            self._stop_decoding(job)
            self._finish(job)
        for job, count in chunks:
            job.computed += count
            self._prompt_tokens += count
            self._cache_units(job)
            if job.computed == job.target:
                self._prompt_done(job)
        for job in self._gone:
            self._drop(job)
        self._gone.clear()
        for job in self._leaving:
            self._park(job)
        self._leaving.clear()

    def _make_room(self) -> bool:
        """Preempt until every decoding sequence has its next block; whether any was."""
        preempted = False
        while (short := self._clock.blocks_needed(1) - self._free - self._cache.evictable) > 0:
            for job in self._give_way(short):
                self._preempt(job)
            preempted = True
        return preempted

    def _give_way(self, short: int) -> list[Job]:
        """Who is preempted so that `short` blocks more are free: by the rule under a directive, else the newest."""
        if self._directive is not None and self._directive.eviction:
            now_ns, clock = self._at_fs // FS_PER_NS, self._clock
            pace_ns = step_ns(self._model, tokens=clock.seqs, context=clock.context, seqs=clock.seqs)
            weighed = [
                weigh(
                    job, self._model, now_ns=now_ns, pace_ns=pace_ns, batch_tokens=self._batch_tokens,
                    emitted=self._emitted(job), stored=self._stored(job), held=self._held(job),
                )
                for job in self._running.values()
            ]  # fmt: skip
            found = choose(weighed, need_blocks=short, urgent=None, protect_ppm=self._directive.protect_ppm)
            if isinstance(found, Chosen):
                return [self._running[one.request_id] for one in found.victims]
        return [next(reversed(self._running.values()))]

    def _choose_chunks(self, *, admit: bool) -> list[tuple[Job, int]]:
        """Prompt tokens of this step, per request; the head of the queue enters while it fits."""
        left = self._batch_tokens - self._clock.seqs
        chunks: list[tuple[Job, int]] = []
        for job in self._prefilling.values():
            count = min(left, job.target - job.computed)
            if not count:
                return chunks
            chunks.append((job, count))
            left -= count
        while admit and left and self._waiting and len(self._running) < self._seqs_max:
            job = self._waiting[0]
            if not self._enter(job):
                break
            count = min(left, job.target - job.computed)
            chunks.append((job, count))
            left -= count
        return chunks

    def _enter(self, job: Job) -> bool:
        """Take the head of the queue into the batch if its blocks fit."""
        job.target = job.request.prompt_tokens + job.emitted
        units = self._match(job)
        need = self._held(job) - len(units) * job.unit_blocks
        # What a directive keeps makes no room for a newcomer, unless nothing else could go on.
        if need > self._free + self._cache.evictable_beside(units, kept=not self._running):
            return False
        self._waiting.popleft()
        self._cache.hold(units)
        self._take(need)
        job.units = units
        job.computed = len(units) * job.request.unit_tokens
        if job.cached < 0:
            job.cached = job.computed
            self._prefix_queries += job.request.prompt_tokens
            self._prefix_hits += job.computed
        self._running[job.request.request_id] = job
        self._prefilling[job.request.request_id] = job
        return True

    # One request.

    def _prompt_done(self, job: Job) -> None:
        request = job.request
        del self._prefilling[request.request_id]
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
        job.joined = self._clock.step
        job.serial = self._clock.join(job, stored=job.target, left=request.output_tokens - job.emitted)

    def _stop_decoding(self, job: Job) -> None:
        self._clock.leave(job.serial, stored=self._stored(job))
        job.emitted = self._emitted(job)
        job.serial = 0

    def _finish(self, job: Job) -> None:
        request = job.request
        # What it held: output tokens are stored one step after they are made, the last one never is.
        kv_tokens = request.prompt_tokens + max(0, job.emitted - 1)
        self._output_tokens += job.emitted
        self._leave(job, kv_blocks=self._blocks_of(kv_tokens) if job.emitted else self._held(job))
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

    def _preempt(self, job: Job) -> None:
        """It gives way within the engine: back to the head of the queue."""
        self._give_up(job)
        self._waiting.appendleft(job)

    def _park(self, job: Job) -> None:
        """It gives way by order: nowhere until it is resumed."""
        job.leaving = False
        self._give_up(job)
        self._parked[job.request.request_id] = job

    def _give_up(self, job: Job) -> None:
        """A running request leaves the batch, to come back."""
        self._take_out(job)
        job.preemptions += 1
        self._preemptions += 1

    def _drop(self, job: Job) -> None:
        """An aborted request leaves the batch for good."""
        if job.leaving:
            self._leaving.remove(job)
        self._take_out(job)
        self._output_tokens += job.emitted

    def _take_out(self, job: Job) -> None:
        kv_blocks = self._held(job)
        if job.serial:
            self._stop_decoding(job)
        self._prefilling.pop(job.request.request_id, None)
        self._leave(job, kv_blocks=kv_blocks)

    def _leave(self, job: Job, *, kv_blocks: int) -> None:
        """Give back the `kv_blocks` blocks that a running request holds."""
        self._free += kv_blocks - self._shared(job)
        self._cache.release(job.units)
        job.units = []
        job.computed = 0
        del self._running[job.request.request_id]

    def _tell(self, job: Job, emitted: int, at_fs: int) -> None:
        count = emitted - max(1, job.told)
        if count > 0:
            self._outcomes.append(Tokens(job.request.request_id, count, _ceil_ns(at_fs)))
            job.told = emitted

    # Amounts.

    def _emitted(self, job: Job) -> int:
        return job.emitted + (self._clock.step - job.joined if job.serial else 0)

    def _stored(self, job: Job) -> int:
        """Tokens of KV of a running request between two steps."""
        if not job.serial:
            return job.computed
        return job.request.prompt_tokens + self._emitted(job) - 1

    def _held(self, job: Job) -> int:
        """Blocks that a request holds between two steps, or would if it entered now; shared ones included."""
        if job.serial:
            return self._blocks_of(self._stored(job))
        if job.request.kind is RequestKind.EMBEDDING:
            return min(self._blocks_of(job.window), self._blocks)
        return self._blocks_of(job.target)

    def _shared(self, job: Job) -> int:
        return len(job.units) * job.unit_blocks

    def _unit_cost_ns(self, unit_blocks: int, depth: int) -> int:
        tokens = unit_blocks * self._block_tokens
        prompt, cached = (depth + 1) * tokens, depth * tokens
        return prefill_ns(self._model, prompt=prompt, cached=cached, batch_tokens=self._batch_tokens)

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)

    def _pairs(self, job: Job, count: int) -> int:
        """Twice the query-key pairs of a chunk."""
        if job.request.kind is RequestKind.EMBEDDING:
            return count * (job.request.prompt_tokens // job.request.inputs)
        end = job.computed + count
        return end * end - job.computed * job.computed

    # Blocks.

    def _take(self, blocks: int) -> None:
        if blocks > self._free:
            self._free += self._cache.evict(blocks - self._free)
        self._free -= blocks

    def _match(self, job: Job) -> list[Unit]:
        if not job.unit_blocks or not job.request.prefix:
            return []
        full = min(job.target - 1, job.request.prompt_tokens) // job.request.unit_tokens
        return self._cache.match(job.unit_blocks, job.request.prefix[:full])

    def _cache_units(self, job: Job) -> None:
        """Put the units that are now complete into the cache; one that is there already is shared instead."""
        request = job.request
        full = min(job.computed, request.prompt_tokens) // request.unit_tokens
        keys = request.prefix[len(job.units) : full]
        if not keys or not job.unit_blocks:
            return
        parent = job.units[-1] if job.units else self._cache.root(job.unit_blocks)
        for key in keys:
            parent, new = self._cache.add(parent, key)
            if not new:
                self._free += parent.blocks
            job.units.append(parent)


def _ceil_ns(fs: int) -> int:
    return -(-fs // FS_PER_NS)
