"""What stands behind the device memory of a simulated engine, in one piece: tiers, requests' loads, orders, reports."""

from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

from events.base import EngineId, Event
from events.decisions import EngineDirected, TransferCancelled, TransferOrdered
from events.engine import StepModel
from events.slice import SlicesCleared, SlicesHit, Tier, TierMeasured
from policies.predictors.step_time import FS_PER_NS
from replay.engines import carrier
from replay.engines.changes import Changes, Tail, named
from replay.engines.job import Job
from replay.engines.loads import HITS_MAX, Found, Loads
from replay.engines.tier_cache import SliceAt, TierCache, chain_of
from replay.engines.tiers import ORDER, Tiers, TierSizes
from replay.faults import Fate


class Device(carrier.Device, Protocol):
    """The engine's own memory, as the memory behind it sees it."""

    engine_id: EngineId
    changes: Changes
    """Of its prefix cache."""
    block_bytes: int

    def before_eviction(self, hear: Callable[[SliceAt], None]) -> None:
        """`hear` is told of every slice that is about to make room."""
        ...

    @property
    def bytes_max(self) -> int:
        """All of it."""
        ...

    @property
    def bytes_used(self) -> int:
        """Held by requests, or cached."""
        ...

    @property
    def evictions(self) -> int:
        """Slices evicted so far."""
        ...


class SlowMemory:
    """DRAM and SSD of one engine. `restarted`: what was in its SSD before it was started anew. `has_own`: they
    evict by a rule of vLLM's own, not by directives, and all that is there is loaded."""

    def __init__(
        self, sizes: TierSizes, device: Device, model: StepModel, *, batch_tokens: int,
        cost_ns: Callable[[int, int], int], now_ns: int, fates: Iterator[Fate] | None, restarted: TierCache | None,
        peers: Callable[[EngineId], carrier.Peer | None],
    ) -> None:  # fmt: skip
        self._device = device
        self.tiers = Tiers(sizes, cost_ns=cost_ns, now_fs=now_ns * FS_PER_NS, fates=fates, ssd=restarted)
        self.has_own = bool(sizes.eviction)
        self.loads = Loads(self.tiers, model, batch_tokens=batch_tokens, always=self.has_own)
        self._carrier = carrier.Carrier(device.engine_id, self.tiers, device, peers)
        self._device_hits: list[Hashable] = []
        self._totals = dict.fromkeys(ORDER, 0)
        self._is_new = True
        self._is_lazy = sizes.lazy
        if sizes.lazy:
            device.before_eviction(self.tiers.keep)

    def advance(self, now_fs: int) -> None:
        """Do what is done by then on the links."""
        self.tiers.links.advance(now_fs)

    def next_fs(self) -> int | None:
        """When an order may next be answered; None when there is none."""
        return self.tiers.links.next_fs() if self._carrier.is_busy else None

    # Requests.

    def found(self, job: Job, held: int, *, step_ns: int) -> Found | None:
        """What a request that has `held` units in device memory would load if it entered the batch now, where the
        others' work takes `step_ns` in this step; None = nothing."""
        keys = job.full_keys()
        if not keys:
            return None
        chain = self._chain(job, held, len(keys))
        if job.preemptions and len(keys) == job.request.prompt_tokens // job.request.unit_tokens:
            chain += self._tail(job)
        return self.loads.found(job, held, chain, step_ns=step_ns)

    def enter(self, job: Job, found: Found | None) -> None:
        """A request enters the batch with `job.units` units in device memory, and loads what was found for it."""
        keys = job.full_keys()
        if not self.has_own:
            self._touch(job, 0)
        job.used_from = min(job.used_from, len(job.units) if found is not None and found.wanted else 0)
        if job.cached < 0 and len(self._device_hits) < HITS_MAX:
            self._device_hits += keys[: len(job.units)]
        if found is not None:
            self.loads.begin(job, len(job.units), found)

    def ended(self, job: Job) -> None:
        """A request left the engine for good. To vLLM's own offloading it is now that it used its slices: those that it
        loaded, and those behind."""
        if self.has_own:
            self._touch(job, job.used_from)

    def _touch(self, job: Job, first: int) -> None:
        keys = [*job.full_keys()[first:], Tail(job.request.request_id)]
        for cache in self.tiers.caches():
            cache.touch(reversed(keys) if self.has_own else keys, self.tiers.now_ns, length=len(job.request.prefix))

    def computed(self, job: Job) -> None:
        """Units of its prompt that are in device memory now are written through."""
        if job.offered < len(job.units) and not self._is_lazy:
            for at in self._chain(job, job.offered, len(job.units)):
                self.tiers.keep(at)
            job.offered = len(job.units)
        if self.has_own and job.computed >= job.request.prompt_tokens:
            for at in self._tail(job):
                self.tiers.keep(at)

    def brought_up(self, job: Job) -> None:
        """What it waited for is in device memory; lazy tiers have the room of that for something else."""
        if self._is_lazy:
            for unit in reversed(job.units):
                self.tiers.dram.drop(unit.key)

    def _tail(self, job: Job) -> list[SliceAt]:
        """The blocks of a prompt behind its last unit, which vLLM's own offloading stores too."""
        blocks = job.tail_blocks() if self.has_own else 0
        name, depth = Tail(job.request.request_id), len(job.request.prefix)
        return [SliceAt(name, None, depth, blocks, blocks * self._device.block_bytes, depth)] if blocks else []

    def _chain(self, job: Job, first: int, last: int) -> list[SliceAt]:
        blocks = job.unit_blocks
        return chain_of(job.request.prefix, first, last, blocks=blocks, bytes_=blocks * self._device.block_bytes)

    # What it is told.

    def direct(self, directive: EngineDirected) -> None:
        """Evict by this from now on."""
        for cache in self.tiers.caches():
            cache.direct(directive)

    def order(self, order: TransferOrdered | TransferCancelled, now_ns: int) -> None:
        """Carry it out, or begin no more of it; what became of it stands among the facts, once."""
        self.advance(now_ns * FS_PER_NS)
        if isinstance(order, TransferOrdered):
            self._carrier.order(order)
        else:
            self._carrier.cancel(order)

    def accept(self, at: SliceAt, tier: Tier, now_ns: int) -> bool:
        """See `carrier.Peer`."""
        if tier is Tier.HBM:
            return self._device.slice_at(at.key) is not None or self._device.adopt(at)
        cache = self.tiers.cache(tier)
        if cache is None:
            return False
        if at.key in cache:
            return True
        if self.tiers.is_coming(at.key, tier) or cache.reserve(at):
            return False
        cache.settle(at, now_ns, arrived=True)
        return True

    # What it says.

    def facts(self, *, measure: bool) -> list[Event]:
        """What changed since that was last said; with `measure`, hits and what the tiers hold too. Orders that have
        ended come after what they changed. The first facts void what was known of an engine before it started."""
        engine_id = self._device.engine_id
        said: list[Event] = []
        if self._is_new:
            self._is_new = False
            said += [SlicesCleared(engine_id=engine_id, tier=tier, reason="started") for tier in ORDER]
        if not (measure or self._carrier.has_answers or said):
            return []
        said += self._device.changes.take(engine_id, Tier.HBM)
        for cache in self.tiers.caches():
            said += cache.changes.take(engine_id, cache.tier)
        said += self._carrier.take_finished()
        return said + self._measured() if measure else said

    def _measured(self) -> list[Event]:
        engine_id, device = self._device.engine_id, self._device
        said: list[Event] = []
        hits = {Tier.HBM: self._device_hits, **self.loads.hits}
        for tier, keys in hits.items():
            said += [SlicesHit(engine_id=engine_id, tier=tier, slices=slices) for slices in named(keys)]
            self._totals[tier] += len(keys)
            keys.clear()
        said.append(
            TierMeasured(
                engine_id=engine_id, tier=Tier.HBM, bytes_max=device.bytes_max, bytes_used=device.bytes_used,
                slice_bytes=self.tiers.dram.slice_bytes, hits_total=self._totals[Tier.HBM],
                evictions_total=device.evictions,
            )
        )  # fmt: skip
        said += [self._tier_measured(cache, above) for cache, above in zip(self.tiers.caches(), ORDER, strict=False)]
        return said

    def _tier_measured(self, cache: TierCache, above: Tier) -> TierMeasured:
        read, write = self.tiers.link(cache.tier, above), self.tiers.link(above, cache.tier)
        return TierMeasured(
            engine_id=self._device.engine_id, tier=cache.tier, bytes_max=cache.bytes_max, bytes_used=cache.bytes_used,
            slice_bytes=cache.slice_bytes, read_bytes_per_s=read.bytes_per_s, write_bytes_per_s=write.bytes_per_s,
            read_queue_bytes=read.bytes_before(urgent=False), write_queue_bytes=write.bytes_before(urgent=False),
            hits_total=self._totals[cache.tier], misses_total=self.loads.misses[cache.tier],
            evictions_total=cache.evictions, failures_total=read.failures + write.failures,
            lazy=self._is_lazy and cache is self.tiers.dram,
        )  # fmt: skip

    def check_integrity(self) -> None:
        """Assert that what the tiers hold is what they say."""
        for cache in self.tiers.caches():
            cache.check_integrity()
