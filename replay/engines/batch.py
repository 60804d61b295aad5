"""Who is in a simulated engine's batch, and what each of them holds: entering, computing, giving way, leaving.

`LightEngine` says when; this says who and how much. `at_fs` is the time of the step that begins or ends.
"""

from collections import deque
from collections.abc import Callable, Iterator

from events.base import EngineId, RequestId, RequestKind
from events.decisions import EngineDirected
from events.engine import EngineRegistered
from policies.predictors.step_time import FS_PER_NS, prefill_ns, step_ns
from replay.engines.carrier import Peer
from replay.engines.commons import Commons
from replay.engines.decode_clock import DecodeClock
from replay.engines.device import DeviceMemory
from replay.engines.job import Job
from replay.engines.pressure import give_way, weigh
from replay.engines.slow_memory import SlowMemory
from replay.engines.tier_cache import TierCache
from replay.engines.tiers import TierSizes
from replay.faults import Fate

Peers = Callable[[EngineId], Peer | None]


class Batch:
    """`waiting` in order, `running` by when they entered; of those `prefilling` compute their prompts, others decode
    (they are in the `clock`), the rest waits for slices. `slow` is what stands behind the device memory, if anything
    does; `commons` what other engines have, in a bound. Of who came after `known_fs` the step that is chosen
    does not know: it was scheduled then."""

    def __init__(self, registered: EngineRegistered) -> None:
        assert registered.step is not None, "a simulated engine has a step model"
        assert registered.kv_blocks > 0, "a simulated engine has KV blocks"
        self.model = registered.step
        self.batch_tokens = registered.capability.batch_tokens_max
        self.seqs_max = min(registered.capability.seqs_max, self.batch_tokens)
        self._block_tokens = registered.block_tokens
        self.device = DeviceMemory(registered, self._unit_cost_ns)
        self.slow: SlowMemory | None = None
        self.commons: Commons | None = None
        self.clock: DecodeClock[Job] = DecodeClock(registered.block_tokens)
        self.waiting: deque[Job] = deque()
        self.running: dict[RequestId, Job] = {}
        self.prefilling: dict[RequestId, Job] = {}
        self.directive: EngineDirected | None = None
        self.at_fs = self.known_fs = 0
        self.preemptions = self.prefix_queries = self.prefix_hits = 0

    def stand_before(
        self, sizes: TierSizes, *, now_ns: int, fates: Iterator[Fate] | None, ssd: TierCache | None, peers: Peers
    ) -> None:
        """Put tiers behind the device memory, before anything is in it."""
        self.device.watch()
        self.slow = SlowMemory(
            sizes, self.device, self.model, batch_tokens=self.batch_tokens, cost_ns=self._unit_cost_ns, now_ns=now_ns,
            fates=fates, restarted=ssd, peers=peers,
        )  # fmt: skip

    @property
    def loading(self) -> int:
        """Running requests that wait for slices."""
        return len(self.slow.loads) if self.slow is not None else 0

    def direct(self, directive: EngineDirected) -> None:
        """Go by this from the next step on."""
        self.directive = directive
        self.device.cache.direct(directive)
        if self.slow is not None:
            self.slow.direct(directive)

    def begin(self, at_fs: int) -> None:
        """A step begins: those that wait no longer for slices go on with what they got."""
        self.move_to(at_fs)
        if self.slow is not None:
            self._take_loaded(self.slow)

    def move_to(self, at_fs: int) -> None:
        """It is so late now."""
        self.at_fs = at_fs
        self.device.cache.now_ns = at_fs // FS_PER_NS

    # Entering.

    def choose_chunks(self, *, admit: bool) -> list[tuple[Job, int]]:
        """Prompt tokens of this step, per request; the head of the queue enters while it fits."""
        left = self.batch_tokens - self.clock.seqs
        chunks: list[tuple[Job, int]] = []
        for job in self.prefilling.values():
            count = min(left, job.target - job.computed)
            if not count:
                return chunks
            chunks.append((job, count))
            left -= count
        while admit and left and self.waiting and len(self.running) < self.seqs_max:
            job = self.waiting[0]
            if self.comes_late(job):
                break
            if not self._enter(job, self.batch_tokens - left):
                break
            if job.request.request_id in self.prefilling:
                count = min(left, job.target - job.computed)
                chunks.append((job, count))
                left -= count
        return chunks

    def comes_late(self, job: Job) -> bool:
        """Whether the step was chosen before it came."""
        return job.came_fs > self.known_fs

    def _enter(self, job: Job, tokens: int) -> bool:
        """Take the head of the queue into the batch, which has `tokens` tokens in this step, if its blocks fit."""
        job.target = job.request.prompt_tokens + job.emitted
        keys = job.full_keys()
        units = self.device.cache.match(job.unit_blocks, keys) if keys else []
        need = self.held(job) - len(units) * job.unit_blocks
        # What a directive keeps makes no room for a newcomer, unless nothing else could go on.
        if need > self.device.room_beside(units, kept=not self.running):
            return False
        self.waiting.popleft()
        self.device.cache.hold(units)
        self.device.take(need)
        job.units = units
        job.computed = len(units) * job.request.unit_tokens
        self.running[job.request.request_id] = job
        if self.commons is not None:
            job.computed = max(job.computed, self.commons.leading(keys) * job.request.unit_tokens)
            self._cache_units(job)
        if self.slow is None or not self.slow.enter(job, step_ns=self._step_ns(tokens)):
            self._begin_prefill(job)
        return True

    def _step_ns(self, tokens: int) -> int:
        """What a step of so many tokens takes now, or of as many as fit if others wait; none takes no time."""
        clock = self.clock
        tokens = self.batch_tokens if self.waiting else tokens
        return step_ns(self.model, tokens=tokens, context=clock.context, seqs=clock.seqs) if tokens else 0

    def _begin_prefill(self, job: Job) -> None:
        """What is cached of its prompt is there; the rest is computed."""
        if job.cached < 0:
            job.cached = job.computed
            self.prefix_queries += job.request.prompt_tokens
            self.prefix_hits += job.computed
        self.prefilling[job.request.request_id] = job

    def _take_loaded(self, slow: SlowMemory) -> None:
        slow.advance(self.at_fs)
        ended = False
        for job, count in slow.loads.take_ended():
            job.computed += count * job.request.unit_tokens
            self._cache_units(job)
            slow.brought_up(job)
            self._begin_prefill(job)
            ended = True
        if ended:  # Who waited goes on at its place in line: it came before those that entered meanwhile.
            self.prefilling = {name: job for name, job in self.running.items() if name in self.prefilling}

    # Computing.

    def computed(self, job: Job, tokens: int) -> None:
        """So many tokens more of its prompt are there. Units that are complete now are cached, and written through."""
        job.computed += tokens
        self._cache_units(job)
        if self.slow is not None:
            self.slow.computed(job)

    def begin_decode(self, job: Job) -> None:
        """Its prompt is there, and so is its first token."""
        job.joined = self.clock.step
        job.serial = self.clock.join(job, stored=job.target, left=job.request.output_tokens - job.emitted)

    def stop_decoding(self, job: Job) -> None:
        """It makes no more tokens, for now or for good."""
        self.clock.leave(job.serial, stored=self.stored(job))
        job.emitted = self.emitted(job)
        job.serial = 0

    def _cache_units(self, job: Job) -> None:
        """Put the units that are now complete into the cache; one that is there already is shared instead."""
        request, cache = job.request, self.device.cache
        full = min(job.computed, request.prompt_tokens) // request.unit_tokens
        keys = request.prefix[len(job.units) : full]
        if not keys or not job.unit_blocks:
            return
        parent = job.units[-1] if job.units else cache.root(job.unit_blocks)
        for key in keys:
            parent, new = cache.add(parent, key)
            if not new:
                self.device.free += parent.blocks
            job.units.append(parent)
        if self.commons is not None:
            self.commons.add(keys)

    # Giving way and leaving.

    def make_room(self) -> bool:
        """Preempt until every decoding sequence has its next block; whether any was. They go back to the head of the
        queue."""
        preempted, device = False, self.device
        while (short := self.clock.blocks_needed(1) - device.free - device.cache.evictable) > 0:
            for job in self._victims(short):
                self.give_up(job)
                self.waiting.appendleft(job)
            preempted = True
        return preempted

    def _victims(self, short: int) -> list[Job]:
        """Who is preempted so that `short` blocks more are free: by the rule under a directive, else the newest."""
        if self.directive is not None and self.directive.eviction:
            now_ns, clock = self.at_fs // FS_PER_NS, self.clock
            pace_ns = step_ns(self.model, tokens=clock.seqs, context=clock.context, seqs=clock.seqs)
            weighed = [
                weigh(
                    job, self.model, now_ns=now_ns, pace_ns=pace_ns, batch_tokens=self.batch_tokens,
                    emitted=self.emitted(job), stored=self.stored(job), held=self.held(job),
                )
                for job in self.running.values()
            ]  # fmt: skip
            chosen = give_way(weighed, short, self.directive)
            if chosen:
                return [self.running[request_id] for request_id in chosen]
        return [next(reversed(self.running.values()))]

    def give_up(self, job: Job) -> None:
        """A running request leaves the batch, to come back."""
        self.take_out(job)
        job.preemptions += 1
        self.preemptions += 1

    def take_out(self, job: Job) -> None:
        """A running request leaves the batch, wherever it stands."""
        kv_blocks = self.held(job)
        if job.serial:
            self.stop_decoding(job)
        self.prefilling.pop(job.request.request_id, None)
        if self.slow is not None:
            self.slow.loads.cancel(job)
        self.leave(job, kv_blocks=kv_blocks)

    def leave(self, job: Job, *, kv_blocks: int) -> None:
        """Give back the `kv_blocks` blocks that a running request holds."""
        self.device.free += kv_blocks - self.shared(job)
        self.device.cache.release(job.units)
        job.units = []
        job.computed = job.offered = 0
        del self.running[job.request.request_id]

    # Amounts.

    def emitted(self, job: Job) -> int:
        """Output tokens made so far."""
        return job.emitted + (self.clock.step - job.joined if job.serial else 0)

    def stored(self, job: Job) -> int:
        """Tokens of KV of a running request between two steps."""
        if not job.serial:
            return job.computed
        return job.request.prompt_tokens + self.emitted(job) - 1

    def held(self, job: Job) -> int:
        """Blocks that a request holds between two steps, or would if it entered now; shared ones included."""
        if job.serial:
            return self.blocks_of(self.stored(job))
        if job.request.kind is RequestKind.EMBEDDING:
            return min(self.blocks_of(job.window), self.device.blocks)
        return self.blocks_of(job.target)

    def shared(self, job: Job) -> int:
        """Blocks of a request that are the prefix cache's."""
        return len(job.units) * job.unit_blocks

    def blocks_of(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self._block_tokens)

    def _unit_cost_ns(self, unit_blocks: int, depth: int) -> int:
        tokens = unit_blocks * self._block_tokens
        prompt, cached = (depth + 1) * tokens, depth * tokens
        return prefill_ns(self.model, prompt=prompt, cached=cached, batch_tokens=self.batch_tokens)

    def check_integrity(self, in_flight: int) -> None:
        """Assert that every block is in one place (`in_flight` of them were taken by the step in flight), and that
        every running request is in one state."""
        device = self.device
        device.cache.check_integrity()
        private = sum(self.held(job) - self.shared(job) for job in self.running.values())
        assert device.free >= 0, "no block is given twice"
        assert device.free + device.cache.blocks + private + in_flight == device.blocks, "no block is lost"
        states = self.clock.seqs + len(self.prefilling) + self.loading
        assert states == len(self.running), "running is prefill, decode or waiting for slices"
        assert len(self.running) <= self.seqs_max, "sequences keep to their limit"
        assert all(not job.units and not job.serial for job in self.waiting), "what waits holds nothing"
        if self.slow is not None:
            self.slow.check_integrity()
