"""Lazy DRAM: vLLM's real scheduler with our connector in it, in virtual time, and what each copy takes and brings."""

from random import Random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from events.base import EngineId, Event, RequestId, SliceId
from events.decisions import EngineDirected
from events.slice import SlicesRemoved, SlicesStored, Tier, TierMeasured
from replay.bench.memory.report import EngineModel
from replay.bench.memory.systems import SYSTEMS
from replay.bench.memory.task import builder
from replay.engines.base import VirtualEngine
from replay.engines.job import Finished, Outcome
from replay.engines.tiers import TierSizes
from replay.engines.vllm_prompts import Prompts
from replay.engines.vllm_scheduler import VllmEngine
from services.engines.vllm_virtual import PLUGGED
from tests.replay.contract_engines import BLOCK_BYTES, UNIT, EngineContract, S, described, drain, ends, llm, offered

PROMPTS = Prompts(16)
BLOCKS = 160
DRAM_SLICES = 80
LENGTH = 40
"""Slices of a document: two fit onto the device, two into DRAM."""
FAST = 50_000_000_000


def make(
    *, lazy: bool = True, blocks: int = BLOCKS, slices: int = DRAM_SLICES, bytes_per_s: int = FAST, batch: int = 256
) -> VllmEngine:
    tiers = TierSizes(dram_bytes=slices * 2 * BLOCK_BYTES, lazy=lazy, dram_bytes_per_s=bytes_per_s)
    plugged = replace(PLUGGED, slice_tokens=UNIT)
    return VllmEngine(described(kv_blocks=blocks, batch_tokens=batch), tiers=tiers, prompts=PROMPTS, plugged=plugged)


def named(document: str, count: int = LENGTH) -> list[str]:
    return [f"{ord(document):016x}{place:016x}" for place in range(count)]


def ask(engine: VllmEngine, name: str, document: str, *, length: int = LENGTH, more: int = 20) -> Finished:
    """A request for a document and a few tokens more; its end."""
    at_ns = engine._now_ns + S
    engine.run_until(at_ns)
    engine.submit(llm(name, length * UNIT + more, 3, named(document, length)), at_ns)
    return ends(drain(engine))[name]


def stores(engine: VllmEngine) -> Any:
    """What makes the lazy stores of this engine: its own copy of `LazyStores`."""
    return engine._scheduler.connector.connector_scheduler._build_store_jobs.__self__


class Held:
    """What the tiers hold, by what was said."""

    def __init__(self) -> None:
        self.slices: dict[Tier, set[SliceId]] = {Tier.HBM: set(), Tier.DRAM: set()}

    def hear(self, engine: VllmEngine) -> None:
        for fact in engine.slice_facts(measure=True):
            match fact:
                case SlicesStored():
                    assert not self.slices[fact.tier] & set(fact.slices), "stored once"
                    self.slices[fact.tier] |= set(fact.slices)
                case SlicesRemoved():
                    assert self.slices[fact.tier] >= set(fact.slices), "removed once"
                    self.slices[fact.tier] -= set(fact.slices)


class TestLazy(EngineContract):
    def make(self, registered: Any, *, tiers: TierSizes | None = None) -> VirtualEngine:
        plugged = replace(PLUGGED, slice_tokens=UNIT) if tiers is not None else None
        lazy = msgspec.structs.replace(tiers, lazy=True, eviction="") if tiers is not None else None
        return VllmEngine(registered, tiers=lazy, prompts=PROMPTS, plugged=plugged)


def test_nothing_is_stored_while_there_is_room() -> None:
    engine, held = make(), Held()
    ask(engine, "a", "d")

    held.hear(engine)

    assert len(held.slices[Tier.HBM]) == LENGTH
    assert not held.slices[Tier.DRAM]
    assert engine._worker is not None
    assert engine._worker.stored_bytes == 0


def test_what_the_device_has_evicted_is_loaded_from_dram_and_leaves_it() -> None:
    engine, held = make(), Held()
    for number, document in enumerate("def"):
        assert ask(engine, f"r{number}", document).cached_tokens == 0
    held.hear(engine)
    assert set(named("d")) <= held.slices[Tier.DRAM]
    assert not set(named("d")) & held.slices[Tier.HBM]

    again = ask(engine, "again", "d")

    held.hear(engine)
    assert again.cached_tokens == LENGTH * UNIT
    assert set(named("d")) <= held.slices[Tier.HBM]
    assert not set(named("d")) & held.slices[Tier.DRAM]


def test_a_device_that_is_smaller_than_what_is_looked_at_is_looked_at() -> None:
    engine, held = make(blocks=100, batch=4_096), Held()
    for name, document, length in (("r0", "d", LENGTH), ("r1", "e", LENGTH), ("r2", "f", 1)):
        ask(engine, name, document, length=length)

    held.hear(engine)

    there = held.slices[Tier.HBM] & held.slices[Tier.DRAM]
    assert len(set(named("e")) & there) > LENGTH - 3, "they are stored before they have to go"


@pytest.mark.parametrize("blocks", [161, 164, 170])
def test_a_slice_whose_end_stands_twice_on_the_device_is_stored_once(blocks: int) -> None:
    """vLLM computes a prompt's last token anew: its last slice ends in another block the second time."""
    engine = make(blocks=blocks)
    for number, document in enumerate("ddef"):
        ask(engine, f"r{number}", document, more=0)

    assert ask(engine, "again", "d", more=0).cached_tokens >= (LENGTH - 1) * UNIT
    assert stores(engine)._manager.lost == 0
    engine.check_integrity()


def test_two_copies_of_a_slice_that_are_evicted_in_one_step_are_stored_once() -> None:
    engine = make(blocks=164)
    lazy = stores(engine)
    lazy._ahead = 0  # Nothing is seen before it goes.
    for number in range(2):
        ask(engine, f"r{number}", "d", more=0)
    twice = [end.key for end in lazy._ends if end is not None]
    assert len(twice) == len(set(twice)) + 1
    pool = lazy._pool
    pool.free_blocks(pool.get_new_blocks(pool.get_num_free_blocks()))
    assert sorted(end.key for end in lazy._late) == sorted(set(twice))

    ask(engine, "other", "e", more=0)

    assert all(map(lazy._manager.in_dram, twice))
    assert lazy._manager.lost == 0


@pytest.mark.parametrize("late_max", [0, 8])
def test_of_two_copies_on_the_device_the_first_to_go_is_neither_stored_nor_lost(late_max: int) -> None:
    engine = make(blocks=164)
    lazy = stores(engine)
    lazy._ahead, lazy._late_max = 0, late_max
    for number in range(2):
        ask(engine, f"r{number}", "d", more=0)
    keys = [end.key if end is not None else None for end in lazy._ends]
    first, last = (block for block, key in enumerate(keys) if key is not None and keys.count(key) == 2)
    pool = lazy._pool

    pool._maybe_evict_cached_block(pool.blocks[first])
    assert (len(lazy._late), lazy._manager.lost) == (0, 0)

    pool._maybe_evict_cached_block(pool.blocks[last])
    assert [end.key for end in lazy._late] == [keys[last]][:late_max]
    assert lazy._manager.lost == (late_max == 0)


def test_a_slice_that_came_to_dram_after_it_was_evicted_is_not_stored_again() -> None:
    engine = make()
    lazy = stores(engine)
    ask(engine, "r0", "d")
    ends = [end for end in lazy._ends if end is not None]
    made = lazy._store_all(ends[:3])
    assert len(made) > 0

    again = lazy._store_all(ends[:5])

    asked = [key for job in again for key in lazy._scheduler._jobs[job].keys]
    assert sorted(asked) == sorted(end.key for end in ends[3:5])


def test_what_is_lost_over_the_limit_is_counted_in_vllms_metrics() -> None:
    engine, held = make(), Held()
    lazy = stores(engine)
    lazy._ahead, lazy._late_max = 0, 3
    told, get_stats = list[int](), lazy._manager.get_stats

    def listened() -> Any:
        stats = get_stats()
        told.append(sum(stats.data["data"].get("tidegate:lazy_slices_lost", {}).values()) if stats is not None else 0)
        return stats

    lazy._manager.get_stats = listened
    for number, document in enumerate("def"):
        ask(engine, f"r{number}", document)

    held.hear(engine)
    gone = set(named("d")) - held.slices[Tier.DRAM]
    engine._scheduler.connector.get_kv_connector_stats()
    assert sum(told) == lazy._manager.lost >= len(gone) > 0


def test_kv_that_failed_to_load_is_not_stored_because_it_is_thrown_away() -> None:
    engine = make()
    lazy = stores(engine)
    engine.submit(llm("r", LENGTH * UNIT + 20, 30, named("d")), 0)
    while not any(end is not None for end in lazy._ends):
        engine.run_until(engine.next_ns() or 0)
    bad = {end.blocks[-1] for end in lazy._ends if end is not None}

    lazy._pool.evict_blocks(bad)

    assert not lazy._late
    assert all(lazy._ends[number] is None for number in bad)
    assert lazy._manager.lost == 0


def test_blocks_of_a_request_that_was_preempted_and_has_ended_since_are_not_taken_for_its_own() -> None:
    """vLLM ends a preempted request whose last token was on its way. What is known of it names blocks of others."""
    engine, held = make(), Held()
    lazy = stores(engine)
    status_of = lazy._scheduler._req_status
    engine.submit(llm("r0", LENGTH * UNIT + 20, 3, named("d")), 0)
    while not lazy._known:
        engine.run_until(engine.next_ns() or 0)
    [called] = lazy._known
    status = status_of[called]
    ends(drain(engine))
    for number, document in enumerate("ef", 1):
        ask(engine, f"r{number}", document)
    noted = list(lazy._ends)
    status_of[called] = status

    lazy._learn_of(called, 0)

    held.hear(engine)
    assert status.req.is_finished()
    assert lazy._ends == noted
    assert set(named("d")) <= held.slices[Tier.DRAM], "the only copies stay"


class Witness:
    """Beside `LazyStores`: whatever it notes is on the device, and so is what leaves DRAM for that."""

    def __init__(self, engine: VllmEngine) -> None:
        self._lazy = lazy = stores(engine)
        self.noted = self.given_back = 0
        self._held, self._learn_of = lazy._manager.held, lazy._learn_of
        lazy._manager.held, lazy._learn_of = self.held, self.learn_of

    def learn_of(self, request_id: str, scheduled: int) -> None:
        before = list(self._lazy._ends)
        self._learn_of(request_id, scheduled)
        for end, was in zip(self._lazy._ends, before, strict=True):
            if end is not was:
                self.noted += 1
                assert self._lazy._is_whole(end), "it is noted where it is"

    def held(self, context: Any, keys: Any) -> None:
        there = {block.block_hash[:-4] for block in self._lazy._pool.blocks if block.block_hash is not None}
        for key in keys:
            assert key[:-4] in there, "who leaves DRAM is on the device"
        self.given_back += len(keys)
        self._held(context, keys)


def test_device_and_dram_hold_more_different_slices_than_written_through() -> None:
    def different(lazy: bool) -> int:
        engine, held = make(lazy=lazy), Held()
        for number, document in enumerate("defg"):
            ask(engine, f"r{number}", document)
        held.hear(engine)
        assert len(held.slices[Tier.DRAM]) <= DRAM_SLICES
        return len(held.slices[Tier.HBM] | held.slices[Tier.DRAM])

    # Of 160 that fit. What is looked at ahead is in both.
    assert different(lazy=False) <= 2 * LENGTH
    assert different(lazy=True) >= 3 * LENGTH


def test_how_quick_dram_is_is_measured() -> None:
    engine = make(bytes_per_s=4_000_000_000)
    for number, document in enumerate("defd"):
        ask(engine, f"r{number}", document)

    [*_, last] = [fact for fact in engine.slice_facts(measure=True)
                  if isinstance(fact, TierMeasured) and fact.tier is Tier.DRAM]  # fmt: skip

    assert last.read_bytes_per_s == pytest.approx(4_000_000_000, rel=0.01)
    assert last.write_bytes_per_s == pytest.approx(4_000_000_000, rel=0.01)


def test_pinned_slices_stay_in_dram_when_they_are_loaded() -> None:
    engine, held = make(), Held()
    pinned = [SliceId(name) for name in named("d")[:4]]
    for number, document in enumerate("def"):
        ask(engine, f"r{number}", document)
    engine.direct(EngineDirected(engine_id=EngineId("e1"), version=1, eviction="", protect_ppm=0, pinned=tuple(pinned)))
    ask(engine, "again", "d")

    held.hear(engine)

    assert set(named("d")) & held.slices[Tier.DRAM] == set(pinned)


class Ledger:
    """Beside vLLM's worker: of every copy, which KV it takes, by the hashes of the blocks. A block loses its hash when
    somebody takes it; then its KV is written over in the step that begins, which waits for the jobs that it flushes."""

    def __init__(self, engine: VllmEngine) -> None:
        assert engine._worker is not None
        self._engine, self._begin, self._end = engine, engine._worker.begin_step, engine._worker.ended
        self._stores: dict[int, list[tuple[int, list[tuple[int, bytes]]]]] = {}
        self._loads: dict[int, list[int]] = {}
        self._dram: dict[int, bytes] = {}
        self._before: dict[int, bytes] = {}
        self.flushed = self.late = self.loaded = 0
        engine._worker.begin_step = self.begin_step  # type: ignore[method-assign]
        engine._worker.ended = self.ended  # type: ignore[method-assign]

    def begin_step(self, said: Any, now_fs: int) -> int:
        flush = said.jobs_to_flush or ()
        for job in sorted(flush):
            self.flushed += job in self._stores
            self._stored(job)
        for blocks in self._stores.values():
            for number, known in (pair for _, pairs in blocks for pair in pairs):
                assert self._hash(number) == known, "nobody takes a block before its copy is done"
        for job, entry in said.load_jobs.items():
            self._loads[job] = list(map(int, entry.src_spec.chunk_ids))
            assert {self._dram[chunk] for chunk in self._loads[job]} == self._keys(job), "it gets what it asked for"
            self.loaded += len(self._loads[job])
        for job, entry in said.store_jobs.items():
            late = job in flush
            self._stores[job] = self._taken(job, entry, late=late)
            self.late += late
            if late:
                self._stored(job)
        pool: Any = self._engine._pool
        self._before = {block.block_id: self._hash(block.block_id) for block in pool.blocks}
        return self._begin(said, now_fs)

    def ended(self, now_fs: int) -> Any:
        said = self._end(now_fs)
        if said is not None:
            for job in said.kv_connector_worker_meta.completed_jobs:
                self._stored(job)
                self._loads.pop(job, None)
        return said

    def _taken(self, job: int, entry: Any, *, late: bool) -> list[tuple[int, list[tuple[int, bytes]]]]:
        chunks, blocks = list(map(int, entry.dst_spec.chunk_ids)), list(entry.src_spec.block_ids)
        size = len(blocks) // len(chunks)
        # What the step waits for is as it was when the step before it began: nothing was computed into it since.
        known = [(number, self._before[number] if late else self._hash(number)) for number in blocks]
        assert {pair[1] for pair in known[size - 1 :: size]} == self._keys(job), "these are the blocks of those slices"
        for chunk in chunks:
            assert not any(chunk in others for others in self._loads.values()), "nobody reads what is written over"
            self._dram.pop(chunk, None)
        return [(chunk, known[place * size : (place + 1) * size]) for place, chunk in enumerate(chunks)]

    def _stored(self, job: int) -> None:
        for chunk, pairs in self._stores.pop(job, []):
            self._dram[chunk] = pairs[-1][1]

    def _hash(self, number: int) -> bytes:
        pool: Any = self._engine._pool
        return bytes(pool.blocks[number].block_hash or b"")

    def _keys(self, job: int) -> set[bytes]:
        return set(self._engine._scheduler.connector.connector_scheduler._jobs[job].keys)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_block_that_is_taken_again_before_its_copy_ends_is_not_served_wrongly(seed: int) -> None:
    """A link on which a slice takes as long as several steps, a device that is always short, and some who give up."""
    engine = make(blocks=70, slices=60, bytes_per_s=200_000_000)
    ledger, witness, held, rng, inside = Ledger(engine), Witness(engine), Held(), Random(seed), list[str]()
    for at_ns, request in offered(seed, 90):
        while (next_ns := engine.next_ns()) is not None and next_ns < at_ns:
            ended = ends(engine.run_until(next_ns))
            inside = [name for name in inside if name not in ended]
            engine.check_integrity()
        names = tuple(f"{int(key.split()[0][1:]):016x}{int(key.split()[1]):016x}" for key in request.prefix)
        engine.submit(msgspec.structs.replace(request, prefix=names), at_ns)
        inside.append(request.request_id)
        held.hear(engine)
        if rng.random() < 0.2:
            engine.abort(RequestId(inside.pop(rng.randrange(len(inside)))), at_ns)

    assert sorted(ends(drain(engine))) == sorted(inside)
    held.hear(engine)
    assert engine._scheduler._failures == 0
    assert engine.measured().preemptions_total > 0
    assert ledger.loaded > 20
    assert ledger.late > 5
    assert witness.noted >= witness.given_back > 100
    assert ledger.flushed > 5, "copies were cut short by those who took the blocks: the fences had work"


def test_a_reset_of_the_caches_leaves_nothing_of_before() -> None:
    engine = make(bytes_per_s=100_000_000)
    for number, document in enumerate("def"):
        ask(engine, f"r{number}", document)
    assert engine._scheduler.reset_prefix_cache(reset_connector=True)

    assert ask(engine, "again", "d").cached_tokens == 0
    assert ask(engine, "once more", "d").cached_tokens == LENGTH * UNIT
    engine.check_integrity()


def test_a_run_is_the_same_again() -> None:
    def served() -> tuple[list[Outcome], list[Event]]:
        engine, found, facts = make(blocks=90, slices=40), list[Outcome](), list[Event]()
        for at_ns, request in offered(4, 60):
            while (next_ns := engine.next_ns()) is not None and next_ns < at_ns:
                found += engine.run_until(next_ns)
            names = tuple(f"{int(key.split()[0][1:]):016x}{int(key.split()[1]):016x}" for key in request.prefix)
            engine.submit(msgspec.structs.replace(request, prefix=names), at_ns)
            facts += engine.slice_facts(measure=True)
        return found + drain(engine), facts

    assert served() == served()


def test_vllms_own_offload_is_not_lazy() -> None:
    tiers = TierSizes(dram_bytes=100 * BLOCK_BYTES, lazy=True, eviction="lru")
    with pytest.raises(ValueError, match="not lazy"):
        VllmEngine(described(), tiers=tiers, prompts=PROMPTS)
    with pytest.raises(ValueError, match=r"careful_lazy.*not lazy"):
        builder(EngineModel.VLLM_SCHEDULER, SYSTEMS["careful_lazy"])
    assert builder(EngineModel.VLLM_SCHEDULER, SYSTEMS["tidegate"])
