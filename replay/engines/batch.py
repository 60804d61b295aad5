"""Who is in a simulated engine's batch, and what each of them holds: entering, computing, giving way, leaving.

`LightEngine` says when; this says who and how much. `at_fs` is the time of the step that begins or ends.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence

from events.base import EngineId, RequestId, RequestKind
from events.decisions import EngineDirected
from events.engine import EngineRegistered
from policies.predictors.step_time import FS_PER_NS, prefill_ns, step_ns
from replay.engines.carrier import Peer
from replay.engines.commons import Commons
from replay.engines.decode_clock import DecodeClock
from replay.engines.device import DeviceMemory
from replay.engines.job import Job
from replay.engines.prefix_cache import Unit
from replay.engines.pressure import give_way, weigh
from replay.engines.slow_memory import SlowMemory
from replay.engines.tier_cache import TierCache
from replay.engines.tiers import TierSizes
from replay.faults import Fate

Peers = Callable[[EngineId], Peer | None]


class Batch:
    """`waiting` in order, `running` by when they entered; of those `prefilling` compute their prompts, others decode
    (they are in the `clock`), the rest waits for slices or has got them (`loaded`) and waits for a step. `slow` is what
    stands behind the device memory, if anything does; `commons` what other engines have, in a bound. Of who came after
    `known_fs` the step that is chosen does not know: it was scheduled then. Nor does it that some have `ended`."""

    def __init__(self, registered: EngineRegistered) -> None:
        assert registered.step is not None, "a simulated engine has a step model"
        assert registered.kv_blocks > 0, "a simulated engine has KV blocks"
        self.model = registered.step
        self.batch_tokens = registered.capability.batch_tokens_max
        self.seqs_max = min(registered.capability.seqs_max, self.batch_tokens)
        self.device_lru = registered.capability.device_lru
        self._block_tokens = registered.block_tokens
        self.device = DeviceMemory(registered, self._unit_cost_ns)
        self.slow: SlowMemory | None = None
        self.commons: Commons | None = None
        self.clock: DecodeClock[Job] = DecodeClock(registered.block_tokens)
        self.waiting: deque[Job] = deque()
        self.running: dict[RequestId, Job] = {}
        self.prefilling: dict[RequestId, Job] = {}
        self.loaded: deque[Job] = deque()
        self.ended: list[tuple[Job, int, int]] = []
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
    def aside(self) -> int:
        """Running requests that wait for slices, or for a step since they have them: vLLM does not count them."""
        return len(self.loaded) + (len(self.slow.loads) if self.slow is not None else 0)

    @property
    def is_stock(self) -> bool:
        """Whether loads are looked after as vLLM alone does it, without this project's plugin."""
        return self.slow is not None and self.slow.has_own

    @property
    def is_loading(self) -> bool:
        """Whether any waits for slices."""
        return self.slow is not None and len(self.slow.loads) > 0

    def direct(self, directive: EngineDirected) -> None:
        """Go by this from the next step on."""
        self.directive = directive
        if not self.device_lru:
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
        """Prompt tokens of this step, per request: those begun, those whose slices are there, further inputs of
        embeddings, then the head of the queue while it fits. A request may come twice."""
        left = self.batch_tokens - self.clock.seqs
        chunks: list[tuple[Job, int]] = []
        for job in self.prefilling.values():
            if not left:
                return chunks
            if count := min(left, job.begun()):
                chunks.append((job, self._chunk(job, count)))
                left -= count
        while admit and left and len(self.running) - self.aside + len(self.ended) < self.seqs_max:
            entered = self._next(self.batch_tokens - left)
            if entered is None:
                break
            if entered.request.request_id in self.prefilling:
                count = min(left, entered.to_come())
                chunks.append((entered, self._chunk(entered, count)))
                left -= count
        return chunks

    def _chunk(self, job: Job, count: int) -> int:
        """It computes so many tokens of its prompt in this step: they have blocks, and count as cached, from now on."""
        if job.request.kind is RequestKind.EMBEDDING:
            job.slots += count
            return count
        self.device.take(self._chunk_blocks(job, count))
        job.slots = max(job.slots, job.computed + count)
        self._cache_units(job, job.computed + count)
        return count

    def _chunk_blocks(self, job: Job, count: int) -> int:
        """New blocks for its next `count` prompt tokens."""
        if job.request.kind is RequestKind.EMBEDDING:
            return 0
        return max(0, self.blocks_of(job.computed + count) - self.blocks_of(job.slots))

    def _next(self, tokens: int) -> Job | None:
        """Who enters the step next, which has `tokens` tokens; None where nobody does."""
        if self.loaded and not self.comes_late(self.loaded[0]):
            job = self.loaded[0]
            if self.blocks_of(job.target) - self.held(job) > self.device.room:
                return None
            self.loaded.popleft()
            if self.is_stock:
                self.running[job.request.request_id] = self.running.pop(job.request.request_id)
            self._begin_prefill(job)
            return job
        for job in self.prefilling.values():
            if job.request.kind is RequestKind.EMBEDDING and job.to_come():
                return job
        if not self.waiting or self.comes_late(self.waiting[0]):
            return None
        job = self.waiting[0]
        return job if self._enter(job, tokens) else None

    def comes_late(self, job: Job) -> bool:
        """Whether the step was chosen before it came."""
        return job.came_fs > self.known_fs

    def may_enter_later(self) -> bool:
        """Whether somebody waits who could enter a later step than the one that is chosen, though nothing ends."""
        return any(self.comes_late(line[0]) for line in (self.loaded, self.waiting) if line)

    def _enter(self, job: Job, tokens: int) -> bool:
        """Take the head of the queue into the batch, which has `tokens` tokens in this step, if its prompt fits as a
        whole. It takes the blocks of what it loads; those of what it computes it takes step by step."""
        job.target = job.request.prompt_tokens + job.emitted
        keys = job.full_keys()
        units = self.device.cache.match(job.unit_blocks, keys) if keys else []
        rest = self._left_behind(job, units, keys)
        mine = len(units) * job.unit_blocks + (rest.blocks if rest is not None else 0)
        # What a directive keeps makes no room for a newcomer, unless nothing else could go on.
        room = self.device.room_beside(units, kept=not self.running) - (rest.blocks if rest is not None else 0)
        if self.needed(job) - mine > room - self._owed():
            return False
        found = None
        if self.slow is not None and (rest is None or rest is not job.rest):
            found = self.slow.found(job, len(units), step_ns=self._step_ns(tokens))
        loads = found.blocks() if found is not None else 0
        if loads:
            rest = None
        if loads and loads > room - self._promised():
            return False
        self.waiting.popleft()
        self.device.cache.hold(units)
        job.units, job.computed = units, len(units) * job.request.unit_tokens
        if rest is not None:
            self.device.cache.take_back(rest)
            job.computed += rest.blocks * self._block_tokens
        job.rest = None
        self.running[job.request.request_id] = job
        if self.slow is not None:
            self.slow.enter(job, found)  # What it loads must not be what makes room.
        self.device.take(loads if job.request.kind is RequestKind.LLM else self.needed(job))
        job.slots = job.computed + loads * self._block_tokens
        if self.commons is not None:
            job.computed = max(job.computed, self.commons.leading(keys) * job.request.unit_tokens)
            self.device.take(max(0, self.blocks_of(job.computed) - self.blocks_of(job.slots)))
            job.slots = max(job.slots, job.computed)
            self._cache_units(job, job.computed)
        if not loads:
            self._begin_prefill(job)
        return True

    def _left_behind(self, job: Job, units: list[Unit], keys: Sequence[Hashable]) -> Unit | None:
        """What is there behind these units: what it left when it was preempted, or what is left of the next unit."""
        cache, rest = self.device.cache, job.rest
        if rest is not None and job.rest_behind == len(units) and cache.has(rest):
            return rest
        if len(units) == len(keys):
            return None
        return cache.bitten(units[-1] if units else cache.root(job.unit_blocks), keys[len(units)])

    def _promised(self) -> int:
        """Blocks that requests in the batch will still take to compute their prompts: who loads leaves them, since it
        cannot be preempted meanwhile."""
        begun = (job for job in self.running.values() if not job.serial)
        return sum(self.needed(job) - self.held(job) for job in begun)

    def _owed(self) -> int:
        """Those of them that are for requests that load, or have loaded: every newcomer leaves these. Else it computes
        with them, and who came before it waits, with what it loaded, until somebody ends."""
        if not self.aside or self.is_stock:
            return 0
        aside = (job for job in self.running.values() if not self._is_computing(job))
        return sum(self.needed(job) - self.held(job) for job in aside)

    def _step_ns(self, tokens: int) -> int:
        """What a step of so many tokens takes now, or of as many as fit if others wait behind the head of the queue.
        None takes no time."""
        clock = self.clock
        tokens = self.batch_tokens if len(self.waiting) > 1 else tokens
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
        for job, blocks in slow.loads.take_ended():
            job.computed += blocks * self._block_tokens
            self._cache_units(job, job.computed)
            slow.brought_up(job)
            job.came_fs = self.at_fs
            self.loaded.append(job)

    # Computing.

    def computed(self, job: Job, tokens: int) -> None:
        """So many tokens more of its prompt are there. Units that are complete now are written through."""
        job.computed += tokens
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

    def _cache_units(self, job: Job, tokens: int) -> None:
        """Put the units that its first `tokens` tokens complete into the cache; one that is there already is shared
        instead."""
        request, cache = job.request, self.device.cache
        full = min(tokens, request.prompt_tokens) // request.unit_tokens
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
        """Preempt until every decoding sequence has its next block, and who computes its prompt those of its next part;
        whether any was. They go back to the head of the queue."""
        preempted = False
        while (short := self._wanted() - self.device.room) > 0:
            for job in self._victims(short):
                self.give_up(job)
                self.waiting.appendleft(job)
            preempted = True
        return preempted

    def _wanted(self) -> int:
        """Blocks that the next step takes for those that run."""
        left, wanted = self.batch_tokens - self.clock.seqs, self.clock.blocks_needed(1)
        for job in self.prefilling.values():
            count = min(left, job.begun())
            wanted += self._chunk_blocks(job, count)
            left -= count
        return wanted

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
                for job in self.running.values() if self._is_computing(job)
            ]  # fmt: skip
            chosen = give_way(weighed, short, self.directive)
            if chosen:
                return [self.running[request_id] for request_id in chosen]
        return [next(job for job in reversed(self.running.values()) if self._is_computing(job))]

    def _is_computing(self, job: Job) -> bool:
        """Whether it decodes or computes its prompt; else it waits for slices, and cannot be preempted."""
        return job.serial > 0 or job.request.request_id in self.prefilling

    def give_up(self, job: Job) -> None:
        """A running request leaves the batch, to come back."""
        self.take_out(job)
        job.preemptions += 1
        self.preemptions += 1

    def take_out(self, job: Job) -> None:
        """A running request leaves the batch, wherever it stands."""
        kv_blocks, stored = self.held(job), self.stored(job)
        if job.serial:
            self.stop_decoding(job)
        self.prefilling.pop(job.request.request_id, None)
        if job in self.loaded:
            self.loaded.remove(job)
        if self.slow is not None:
            self.slow.loads.cancel(job)
        del self.running[job.request.request_id]
        self._give_back(job, kv_blocks, stored)

    def end(self, job: Job, *, stored: int, is_known: bool) -> None:
        """A running request has made all it should, and has `stored` tokens of KV. Its blocks are free at once if that
        `is_known`, else when the next step is chosen."""
        kv_blocks = self.held(job) if job.request.kind is RequestKind.EMBEDDING else self.blocks_of(stored)
        del self.running[job.request.request_id]
        if self.slow is not None:
            self.slow.advance(self.at_fs)
            self.slow.ended(job)
        if is_known:
            self._give_back(job, kv_blocks, stored)
        else:
            self.ended.append((job, kv_blocks, stored))

    def free_ended(self) -> bool:
        """It is known that they ended: their blocks are free; whether there were any."""
        ended, self.ended = self.ended, []
        for job, kv_blocks, stored in ended:
            self._give_back(job, kv_blocks, stored)
        return bool(ended)

    def _give_back(self, job: Job, kv_blocks: int, stored: int) -> None:
        """Its `kv_blocks` blocks are free. What is `stored` in full ones stays in the cache."""
        shared = self.shared(job)
        rest = stored // self._block_tokens - shared if job.request.kind is RequestKind.LLM else 0
        job.rest, job.rest_behind = None, len(job.units)
        if rest > 0:
            job.rest = self.device.cache.leave(rest)
        self.device.free += kv_blocks - shared - max(0, rest)
        self.device.cache.release(job.units)
        job.units = []
        job.computed = job.offered = job.slots = 0

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
        """Blocks that a running request holds between two steps; shared ones included."""
        if job.serial:
            return self.blocks_of(self.stored(job))
        return self.needed(job) if job.request.kind is RequestKind.EMBEDDING else self.blocks_of(job.slots)

    def needed(self, job: Job) -> int:
        """Blocks that its prompt takes, and the output that it computes anew."""
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
        private += sum(kv_blocks - self.shared(job) for job, kv_blocks, _ in self.ended)
        assert device.free >= 0, "no block is given twice"
        assert device.free + device.cache.blocks + private + in_flight == device.blocks, "no block is lost"
        states = self.clock.seqs + len(self.prefilling) + self.aside
        assert states == len(self.running), "running is prefill, decode or waiting for slices"
        assert len(self.running) - self.aside <= self.seqs_max, "sequences keep to their limit"
        assert all(not job.units and not job.serial for job in self.waiting), "what waits holds nothing"
        if self.slow is not None:
            self.slow.check_integrity()
