"""vLLM's own scheduler, told which request waits least well, who gives way, and what to leave to those that load.

`--scheduler-cls services.vllm_plugin.scheduler.TidegateScheduler`. Everything else is vLLM's. Requests with hints wait
in the order of their slack; those without keep their place. When vLLM finds no room for a running request it would
preempt its newest one: here the delegate names who gives way (policies/memory/delegate.py), and vLLM preempts it by its
own priority rule, with all of its own book-keeping. For that the one named gets the worst priority for as long as vLLM
looks; it has its own again before it is put among those that wait. Where the delegate names nobody, and vLLM does not
go by priorities, it is the newest by when it entered: vLLM's newest is the last that began to compute, which would be
one that came early and loaded long.

A request that loads cannot preempt, so it cannot take back what others take meanwhile: it would wait, with all that it
loaded, until one of them ends. Whoever enters leaves it the blocks of its rest, as headroom (vLLM's watermark).

Whatever fails here is logged and counted, and vLLM goes on as it would alone.
"""

import logging
import os
import sys
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import Queue
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequestType, FinishReason
from vllm.v1.kv_offload.base import make_offload_key
from vllm.v1.request import RequestStatus

from events.base import EngineId, RequestId
from events.slice import SlicesHit, Tier, TierMeasured
from policies.memory.delegate_ops import GaveWay, VictimAsked
from policies.memory.victims import Running
from services.vllm_plugin import hints, settings
from services.vllm_plugin.agent import Agent
from services.vllm_plugin.bridge import bridge
from services.vllm_plugin.naming import naming
from services.vllm_plugin.pace import pace
from services.vllm_plugin.weighing import Holds, Rates, Seen, by_slack, slack_ns, weigh

ORDERED_MAX: Final = 1_024
"""Waiting requests that are put in order, the first of vLLM's line: the gateway sends no more than are soon due."""
GIVES_WAY: Final = 1 << 64
"""A priority that is worse than any that a client can give."""
STEP_WEIGHT: Final = 8
"""One part in so many of the measured step is the last one."""
FAILURES_SAID_MAX: Final = 10
"""Failures of our own that are logged with where they came from; the rest are counted."""

# Whole hashes in KV events: with the short ones that are the default no slice could be told from another for certain.
os.environ.setdefault("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", "0")

logger = logging.getLogger("tidegate.engine")


class TidegateScheduler(AsyncScheduler):
    """See the module. Made once, in the engine core's process; starts the agent."""

    policy: SchedulingPolicy

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seen: WeakKeyDictionary[Any, Seen] = WeakKeyDictionary()
        self._named_as: WeakValueDictionary[RequestId, Any] = WeakValueDictionary()
        self._unstarted: WeakSet[Any] = WeakSet()
        self._victims: deque[Any] = deque()
        self._named: tuple[Any, int, SchedulingPolicy] | None = None
        self._aborted: list[Any] = []
        self._failures = 0
        self._step_ns = self._ended_ns = 0
        self._preemptions = self._hits = self._misses = 0
        self._entries = 0
        self._found_core = False
        # The one place where vLLM says that it found no room for a request, before it looks for a victim.
        self._allocate = self.kv_cache_manager.allocate_slots
        self._watermark: int = self.kv_cache_manager.watermark_blocks
        self.kv_cache_manager.allocate_slots = self._allocate_slots
        config = self.vllm_config.kv_transfer_config
        self._settings = settings.of(config.kv_connector_extra_config if config is not None else {})
        bridge.engine_id = EngineId(self._settings.engine_id)
        bridge.measure(self._measured)
        events = self.kv_event_publisher.get_publisher_config()
        self._agent = Agent(self._settings, bridge, events_config=events, slice_bytes=self._slice_bytes())
        self._agent.start()

    def add_request(self, request: Any) -> None:
        """vLLM has a new request."""
        # Asked for "full" reports, vLLM says again of what is cached that it is stored; a copy more, it would seem.
        request.kv_cache_report_mode = "incremental"
        super().add_request(request)
        self._or_plain(lambda: self._see(request))

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """One step."""
        self._or_plain(self._before_step)
        try:
            output = super().schedule(throttle_prefills)
        finally:
            self._unname()
            self._victims.clear()
        self._or_plain(lambda: self._tell_hits(output))
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """A step is done."""
        outputs: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)
        self._or_plain(self._after_step)
        for request in self._take_aborted():
            added = outputs.setdefault(request.client_index, EngineCoreOutputs())
            added.outputs.append(EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ABORT))
        return outputs

    def has_requests(self) -> bool:
        """Whether there is anything to make a step for: orders, too. Asked by the engine core alone, so this is where
        its input queue is found: nothing else hands it to a scheduler, and an idle core waits on nothing else."""
        if not self._found_core:
            self._found_core = True
            self._or_plain(partial(self._wake_by, sys._getframe(1).f_locals.get("self")))  # noqa: SLF001
        return bool(super().has_requests()) or bridge.something_to_do

    def shutdown(self) -> None:
        """The engine ends."""
        self._agent.stop()
        super().shutdown()

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self._unname()
        super()._preempt_request(request, *args, **kwargs)
        self._preemptions += 1
        self._or_plain(
            lambda: bridge.choose(GaveWay(at_ns=time.monotonic_ns(), request_id=self._seen_of(request).name))
        )

    # Who waits.

    def _see(self, request: Any) -> None:
        if request in self._seen:
            return
        told = hints.of(request.kv_transfer_params)
        # Several answers to one prompt (n > 1) are several requests in vLLM, with the same hints.
        first = self._named_as.get(told.request_id)
        taken = not told.request_id or (first is not None and not first.is_finished())
        name = RequestId(request.request_id) if taken else told.request_id
        self._named_as[name] = request
        self._seen[request] = Seen(name, told, time.monotonic_ns() + told.slack_ns if told.slack_ns else 0)
        self._unstarted.add(request)

    def _seen_of(self, request: Any) -> Seen:
        return self._seen.get(request) or Seen(RequestId(request.request_id))

    def _before_step(self) -> None:
        found = [self._named_as.get(name) for name in bridge.aborts()]
        if ids := [request.request_id for request in found if request is not None and not request.is_finished()]:
            self._aborted += self.finish_requests(ids, RequestStatus.FINISHED_ABORTED)
        # With a priority policy of vLLM's own the line is a heap, and stays as it is.
        if isinstance(self.waiting, deque) and len(self.waiting) > 1:
            self._order(self.waiting)

    def _order(self, waiting: "deque[Any]") -> None:
        now_ns = time.monotonic_ns()
        first = [waiting[place] for place in range(min(len(waiting), ORDERED_MAX))]
        slacks = [self._slack_ns(request, now_ns) for request in first]
        ordered = by_slack(first, slacks)
        if ordered != first:
            for _ in first:
                waiting.popleft()
            waiting.extendleft(reversed(ordered))

    def _slack_ns(self, request: Any, now_ns: int) -> int | None:
        seen = self._seen_of(request)
        if not seen.hinted:
            return None
        return slack_ns(seen, request.num_output_tokens, now_ns=now_ns, step_ns=self._step_ns)

    def _take_aborted(self) -> list[Any]:
        taken, self._aborted = self._aborted, []
        return taken

    # Who gives way.

    def _allocate_slots(self, request: Any, num_new_tokens: int, *args: Any, **kwargs: Any) -> Any:
        if request.status is not RequestStatus.RUNNING and not request.num_computed_tokens:
            return self._enter(request, num_new_tokens, *args, **kwargs)
        blocks = self._allocate(request, num_new_tokens, *args, **kwargs)
        if blocks is None and request.status is RequestStatus.RUNNING:
            tokens = request.num_computed_tokens + num_new_tokens + kwargs.get("num_lookahead_tokens", 0)
            self._or_plain(lambda: self._name_victim(request, min(tokens, self.max_model_len)))
        return blocks

    def _enter(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Its first blocks: those of what it loads, or of its first chunk. Only if all of it fits beside what is owed
        to those that load."""
        self._or_plain(lambda: self._leave(request, kwargs))
        try:
            blocks = self._allocate(request, *args, **kwargs)
        finally:
            self.kv_cache_manager.watermark_blocks = self._watermark
        if blocks is not None:
            self._entries += 1
            self._seen_of(request).entered = self._entries
        return blocks

    def _leave(self, request: Any, kwargs: dict[str, Any]) -> None:
        # One whose load failed as a whole enters anew, and owes itself nothing.
        others = self._inflight_prefills - {request}
        aside = [one for one in others if one.status is not RequestStatus.RUNNING]
        owed = sum(self._request_remaining_blocks(one) for one in aside)
        if owed:
            self.kv_cache_manager.watermark_blocks = owed + self._watermark * kwargs["has_scheduled_reqs"]
            # What loads leaves this to all that are in flight already; it is asked for once.
            kwargs.update(has_scheduled_reqs=True, reserved_blocks=max(0, kwargs["reserved_blocks"] - owed))

    def _name_victim(self, request: Any, tokens: int) -> None:
        """Have vLLM preempt the next of those chosen; choose when there are none left."""
        self._unname()
        while self._victims and self._victims[0].status is not RequestStatus.RUNNING:
            self._victims.popleft()
        if not self._victims:
            self._victims.extend(self._choose(request, tokens) or self._newest())
        if self._victims:
            victim = self._victims.popleft()
            self._named = (victim, victim.priority, self.policy)
            victim.priority, self.policy = GIVES_WAY, SchedulingPolicy.PRIORITY

    def _unname(self) -> None:
        if self._named is not None:
            victim, priority, policy = self._named
            victim.priority, self.policy, self._named = priority, policy, None

    def _newest(self) -> list[Any]:
        """The last to enter; nobody where that is whom vLLM would take, or where vLLM goes by priorities."""
        if self.policy is not SchedulingPolicy.FCFS:
            return []
        newest = max(self.running, key=lambda one: self._seen_of(one).entered)
        return [newest] if newest is not self.running[-1] else []

    def _choose(self, request: Any, tokens: int) -> list[Any]:
        managers = self.kv_cache_manager.coordinator.single_type_managers
        held = [len(manager.req_to_blocks.get(request.request_id, ())) for manager in managers]
        wanted = sum(
            max(0, -(-tokens // manager.block_size) - has) for manager, has in zip(managers, held, strict=True)
        )
        need = max(1, wanted - self.kv_cache_manager.block_pool.get_num_free_blocks())
        by_name = {self._seen_of(one).name: one for one in self.running}
        rates, now_ns = self._rates(), time.monotonic_ns()
        rows = tuple(self._weigh(one, rates, now_ns, spares=need if one is request else 0) for one in self.running)
        choice = bridge.choose(
            VictimAsked(at_ns=now_ns, need_blocks=need, running=rows, for_request=self._seen_of(request).name)
        )
        return [by_name[RequestId(name)] for name in choice.chosen] if choice is not None else []

    def _weigh(self, request: Any, rates: Rates, now_ns: int, *, spares: int) -> Running:
        seen = self._seen_of(request)
        return weigh(request, seen, self._holds(request, seen, rates), rates, now_ns=now_ns, spares=spares)

    def _holds(self, request: Any, seen: Seen, rates: Rates) -> Holds:
        """Blocks that others hold too stand before all others: who shares a block shares all before it."""
        blocks = shared = 0
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            mine = manager.req_to_blocks.get(request.request_id, ())
            blocks += len(mine)
            shared += bisect_left(mine, True, key=lambda block: block.ref_cnt <= 1)
        if rates.dram is None:
            return Holds(blocks, shared, 0)
        # Slices leave a tier from the end of a prompt, so those of it that are there are its first.
        named = seen.hints.slices
        hashed = min(request.num_computed_tokens, len(request.block_hashes) * self.hash_block_size)
        slices = len(named) or hashed // rates.slice_tokens
        name = named.__getitem__ if named else partial(self._slice_name, request, rates.slice_tokens)
        stored = bisect_left(range(slices), True, key=lambda place: not bridge.holds(Tier.DRAM, name(place)))
        return Holds(blocks, shared, stored)

    def _slice_name(self, request: Any, slice_tokens: int, place: int) -> str:
        last = (place + 1) * slice_tokens // self.hash_block_size - 1
        return naming.name(make_offload_key(request.block_hashes[last], 0))

    def _rates(self) -> Rates:
        return Rates(
            step_ns=self._step_ns, token_ns=pace.recompute_ns(1), block_tokens=self.block_size,
            slice_tokens=self._settings.slice_tokens, dram=bridge.measured.get(Tier.DRAM),
        )  # fmt: skip

    # What is told.

    def _after_step(self) -> None:
        now_ns = time.monotonic_ns()
        if self._ended_ns and self.running:
            step_ns = now_ns - self._ended_ns
            self._step_ns += (step_ns - self._step_ns) // STEP_WEIGHT if self._step_ns else step_ns
        self._ended_ns = now_ns if self.running else 0
        for request in [one for one in self._unstarted if one.num_output_tokens]:
            self._seen_of(request).first_ns = now_ns
            self._unstarted.discard(request)

    def _tell_hits(self, output: Any) -> None:
        """Of the requests that begin now: which of their slices the device's own cache had. The last token is always
        computed, so a slice that ends with it is neither hit nor missed."""
        for new in output.scheduled_new_reqs:
            request = self.requests.get(new.req_id)
            if request is None or request.prefill_stats is None or request.num_preemptions:
                continue
            told = self._seen_of(request).hints
            there = request.prefill_stats.num_local_cached_tokens // self._settings.slice_tokens
            self._hits += there
            self._misses += max((request.num_prompt_tokens - 1) // self._settings.slice_tokens - there, 0)
            hit = told.slices[: request.prefill_stats.num_local_cached_tokens // told.slice_tokens]
            if hit:
                bridge.tell(SlicesHit(engine_id=bridge.engine_id, tier=Tier.HBM, slices=hit))

    def _measured(self) -> TierMeasured:
        """Of the device's cache, now: what requests hold, or what is cached, whichever is more (nearly all of the one
        is in the other). Asked by the agent's thread: reads numbers only."""
        pool = self.kv_cache_manager.block_pool
        slice_bytes = self._slice_bytes()
        block_bytes = slice_bytes * self.block_size // self._settings.slice_tokens
        used = max(pool.num_gpu_blocks - pool.get_num_free_blocks(), len(pool.cached_block_hash_to_block))
        return TierMeasured(
            engine_id=bridge.engine_id, tier=Tier.HBM, bytes_max=pool.num_gpu_blocks * block_bytes,
            bytes_used=used * block_bytes, slice_bytes=slice_bytes, hits_total=self._hits, misses_total=self._misses,
        )  # fmt: skip

    def _slice_bytes(self) -> int:
        groups = self.kv_cache_config.kv_cache_groups
        block_bytes = sum(group.kv_cache_spec.page_size_bytes * len(group.layer_names) for group in groups)
        return int(block_bytes * self._settings.slice_tokens // self.block_size)

    def _wake_by(self, core: Any) -> None:
        queue = getattr(core, "input_queue", None)
        if isinstance(queue, Queue):
            bridge.wakes_by(lambda: queue.put_nowait((EngineCoreRequestType.WAKEUP, None)))

    def _or_plain(self, step: Callable[[], object]) -> None:
        """Do it, or leave it to vLLM: nothing of ours may end an engine."""
        try:
            step()
        except Exception:
            self._failures += 1
            if self._failures <= FAILURES_SAID_MAX:
                logger.exception("failed, vLLM goes on alone (%d times so far)", self._failures)
