"""The memory of a vLLM engine beyond its device: vLLM's tiering manager, with facts, names, pins and orders.

What vLLM does is left as it is: chunks go down to every tier when they are computed (or, lazy.py, when the device is
about to evict them), and come up when a request begins with them. Added is what vLLM has no place for:

- Facts: what is stored, removed, hit and measured is told through the bridge, in the log's names.
- Pins: what a request was found to begin with stays in DRAM until it is loaded. Else slices that come up from the SSD
  for its end could push out those of its beginning, for ever, where DRAM is small.
- Orders of the log (carrier.py) are taken up at the end of each step.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    LoadStoreSpec,
    LookupResult,
    OffloadingCounterMetadata,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager
from vllm.v1.kv_offload.tiering.manager import JobMetadata, TieringOffloadingManager
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from events.base import NS_PER_S, SliceId
from events.slice import Tier, TierMeasured
from services.vllm_plugin import hints
from services.vllm_plugin.carrier import Carrier
from services.vllm_plugin.fetching import Speed
from services.vllm_plugin.memory import Memory
from services.vllm_plugin.primary_tier import PrimaryTier
from services.vllm_plugin.prompt import learn_names, prompt_of
from services.vllm_plugin.ssd_tier import SsdTier

MEASURE_EVERY_NS: Final = NS_PER_S
"""How often the tiers are measured at most, while the engine makes steps."""
LOST: Final = "tidegate:lazy_slices_lost"
LAZY_METRICS: Final = {
    LOST: OffloadingCounterMetadata("Slices that the device evicted before lazy DRAM took them: more `lazy_ahead`."),
}
"""What vLLM's /metrics says of lazy DRAM beside vLLM's own."""


class TidegateManager(TieringOffloadingManager):
    """`ssd` is one of `tiers`, or None. All calls come from the scheduler's thread."""

    def __init__(
        self, memory: Memory, primary: PrimaryTier, tiers: list[SecondaryTierManager], *, ssd: SsdTier | None
    ) -> None:
        super().__init__(primary_tier=primary, secondary_tiers=tiers)
        self.memory, self._dram, self._ssd = memory, primary, ssd
        self.carrier = Carrier(self, memory, primary, ssd)
        if ssd is not None:
            primary.learn_parents(ssd.choices.parent)
        self._pins: dict[str, dict[OffloadKey, None]] = {}
        self._measured_ns = 0
        self._busy_told = False
        self.is_lazy = False
        """Whether what is computed is kept only when the device is about to evict it (`services.vllm_plugin.lazy`)."""
        self.lost = 0
        """Slices of which the device evicted the last whole copy, and that DRAM did not get; the SSD may have them."""
        self._lost_told = 0
        self._misses = 0
        self._loads, self._stores = Speed(), Speed()
        residency, bridge = memory.residency, memory.bridge
        bridge.report(Tier.DRAM, lambda: residency.inventory(Tier.DRAM))
        bridge.report(Tier.SSD, lambda: residency.inventory(Tier.SSD))

    # Requests.

    def on_new_request(self, req_context: ReqContext, **vllm: Any) -> RequestOffloadingContext:
        """A request came: what the gateway says its slices are called."""
        told = hints.of(req_context.kv_transfer_params)
        if told.slice_tokens == self.memory.settings.slice_tokens:
            prompt_of(req_context).names = told.slices
        answer: RequestOffloadingContext = super().on_new_request(req_context, **vllm)
        return answer

    def name_prompt(self, request_id: str, names: Callable[[], Sequence[SliceId]]) -> None:
        """What the slices of a request are called, asked for where the gateway did not say."""
        state = self._req_state.get(request_id)
        if state is not None and not prompt_of(state.req_context).names:
            prompt_of(state.req_context).names = names()

    def lookup(self, key: OffloadKey, req_context: ReqContext, **vllm: Any) -> LookupResult:
        """Whether a slice is there, or comes."""
        self._name(req_context)
        result: LookupResult = super().lookup(key, req_context, **vllm)
        if result is LookupResult.HIT and self._ssd is not None:
            self._pin(key, req_context)
        return result

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        """The request gets these slices now."""
        spec = super().prepare_load(keys, req_context)
        self._unpin(req_context)
        for tier, sources in ((Tier.SSD, (CacheHitSource.DISK,)), (Tier.DRAM, (CacheHitSource.HOST,))):
            hit = [key for key in keys if self.get_load_source(key, req_context) in sources]
            self.memory.residency.hit(tier, hit)
        return spec

    def prepare_store(self, keys: Collection[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        """The request computes these slices now, and they are stored."""
        self.computed(req_context)
        output: PrepareStoreOutput | None = super().prepare_store(keys, req_context)
        if output is not None:
            self._misses += len(output.keys_to_store)
        return output

    def computed(self, req_context: ReqContext, *, slices: int = 0) -> None:
        """The request computes now; so many slices of it that no tier had, and that are not stored now."""
        self._unpin(req_context)
        self._name(req_context)
        if self._ssd is not None:
            self._ssd.scheduled(req_context)
        self._misses += slices

    def keep(self, context: ReqContext) -> PrepareStoreOutput | None:
        """The device is about to evict the slices of this context's prompt, which DRAM has not: they are stored. None
        where there is no room, and none that may be made. Nobody has asked for them; `complete_store` is the end."""
        keys = prompt_of(context).keys
        assert not any(map(self.in_dram, keys)), "what is there is not stored again"
        super().on_new_request(context)
        output: PrepareStoreOutput | None = super().prepare_store(keys, context)
        super().on_request_finished(context)
        return output

    def held(self, req_context: ReqContext, keys: Sequence[OffloadKey]) -> None:
        """The request has these slices, one after the other, on the device, which gives them back before it evicts
        them: they were used once more, and leave DRAM, the last one first. What the log has pinned there stays, and
        what somebody reads."""
        there = [key for key in reversed(keys) if self._dram.ready(key)]
        if there:
            self._dram.touch(there, req_context)
            directive, name = self.memory.bridge.directive, self.memory.naming.name
            pinned = frozenset(directive.pinned) if directive is not None else frozenset()
            self._dram.drop([key for key in there if name(key) not in pinned])

    def in_dram(self, key: OffloadKey) -> bool:
        """Whether it is there, or on its way there."""
        return self._dram.has(key)

    def on_request_finished(self, req_context: ReqContext, **vllm: Any) -> None:
        """It is done, or was given up."""
        self._unpin(req_context)
        super().on_request_finished(req_context, **vllm)

    # Steps.

    def entered(self, request_ids: Iterable[str]) -> None:
        """These requests are in a step, for the first time or again: what they have not loaded they do not need."""
        for request_id in request_ids:
            state = self._req_state.get(request_id)
            if state is not None:
                self._unpin(state.req_context)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """The end of a step: orders are taken up, tiers measured."""
        self.entered(context.new_req_ids)
        self.carrier.take_up()
        self._take_heard()
        super().on_schedule_end(context)
        self._measure()

    def moved(self, stats: Any) -> None:
        """What the worker has copied between the device and DRAM of late, and how long that took it (vLLM's
        `TransferStats`)."""
        for speed, said in ((self._loads, stats.load), (self._stores, stats.store)):
            speed.took(said.bytes, int(said.time * NS_PER_S))

    def get_stats(self) -> OffloadingConnectorStats | None:
        """vLLM's, the SSD tier's, and what lazy DRAM has lost since the last call."""
        said: OffloadingConnectorStats | None = super().get_stats()
        if self.lost == self._lost_told:
            return said
        stats = OffloadingConnectorStats() if said is None else said
        stats.increase_counter(LOST, self.lost - self._lost_told)
        self._lost_told = self.lost
        return stats

    def has_pending_work(self) -> bool:
        """Whether the engine has to make steps although it has no request."""
        return bool(super().has_pending_work()) or self.memory.bridge.orders.waiting

    def reset_cache(self) -> None:
        """Everything beyond the device is void; the SSD too, unless the settings keep it."""
        self.carrier.give_up("reset")
        super().reset_cache()
        # What it pinned is gone with the rest, what came up just now too.
        self._pins.clear()
        if self._ssd is not None and not self.memory.settings.reset_keeps_ssd:
            self._ssd.void()

    def shutdown(self) -> None:
        """The engine ends."""
        self.carrier.give_up("engine ends")
        super().shutdown()

    def _complete_promotion(self, job_metadata: JobMetadata, completed_job: JobResult) -> None:
        super()._complete_promotion(job_metadata, completed_job)
        job = job_metadata.transfer_job
        state = self._req_state.get(job.req_context.req_id)
        if state is not None and not state.is_finished:
            # Its request has waited for them: they stay until it was asked again.
            for key in job.keys:
                if self._dram.ready(key):
                    self._pin(key, job.req_context)
        self.carrier.job_ended(job.job_id, completed_job)

    def _process_finished_jobs(self) -> None:
        super()._process_finished_jobs()
        self.carrier.stores_ended()

    # Names, pins, amounts.

    def _name(self, context: ReqContext) -> None:
        prompt = prompt_of(context)
        if prompt.names and prompt.named < min(len(prompt.names), prompt.length):
            for key, _ in learn_names(prompt, self.memory.naming):
                self._renamed(key)

    def _take_heard(self) -> None:
        """The names that the agent found in KV events: what was computed beyond a prompt has one, too."""
        naming = self.memory.naming
        for key, name in naming.heard():
            if naming.learn(key, name) is not None:
                self._renamed(key)

    def _renamed(self, key: bytes) -> None:
        self._dram.renamed(key)
        if self._ssd is not None:
            self._ssd.choices.renamed(key, held=self._ssd.busy(key))
        self.memory.residency.renamed(key)

    def _pin(self, key: OffloadKey, context: ReqContext) -> None:
        pins = self._pins.setdefault(context.req_id, {})
        if key not in pins:
            pins[key] = None
            self._dram.pin([key], context)

    def _unpin(self, context: ReqContext) -> None:
        pins = self._pins.pop(context.req_id, None)
        if pins:
            self._dram.unpin(list(pins), context)

    def _measure(self) -> None:
        """Told every second, and when the queues of the disk are empty again; noted after every step, since it may be
        the last one for long."""
        now_ns = time.monotonic_ns()
        busy = self._ssd is not None and self._ssd.read_queue_bytes() + self._ssd.write_queue_bytes() > 0
        due = now_ns - self._measured_ns >= MEASURE_EVERY_NS or busy < self._busy_told
        if due:
            self._measured_ns, self._busy_told = now_ns, busy
        say = self.memory.bridge.tell if due else self.memory.bridge.note
        for fact in self._measured():
            say(fact)

    def _measured(self) -> Iterable[TierMeasured]:
        hits, slice_bytes = self.memory.residency.hits, self.memory.slice_bytes
        yield TierMeasured(
            engine_id=self.memory.engine_id, tier=Tier.DRAM, bytes_max=self._dram.chunks * slice_bytes,
            bytes_used=self._dram.chunks_used * slice_bytes, slice_bytes=slice_bytes, hits_total=hits[Tier.DRAM],
            # Until something was loaded: the link is as quick in both directions.
            read_bytes_per_s=self._loads.bytes_per_s or self._stores.bytes_per_s,
            write_bytes_per_s=self._stores.bytes_per_s, misses_total=self._misses, evictions_total=self._dram.evictions,
            lazy=self.is_lazy,
        )  # fmt: skip
        if self._ssd is not None:
            yield self._ssd.measured(hits_total=hits[Tier.SSD], misses_total=self._misses)
