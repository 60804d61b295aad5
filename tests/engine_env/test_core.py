"""Our memory under real load: vLLM's scheduler and connector with real copies, and whatever can happen to them.

After each step: no block is lost or held by nobody, no job forgotten, DRAM has what it says it has, and what is cached,
stored or loaded is the KV of those tokens, bit for bit (`Core` sees to what is computed with).
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm.v1.core.kv_cache_utils import get_block_hash
from vllm.v1.kv_offload.base import get_offload_block_hash

from events.base import NS_PER_MS, SliceId
from events.decisions import EngineDirected, Move, MoveReason, TransferOrdered
from events.slice import SlicesCleared, SlicesRemoved, SlicesStored, Tier, TransferFinished
from kvstore.errors import ChecksumMismatch, TierUnavailable
from tests.engine_env.core import ENGINE, PROMPTS, SLICE_BLOCKS, SLICE_TOKENS, Core, running

BLOCKS = 60
DRAM_SLICES = 24
SSD_SLICES = 40
STEPS = 500
DOCUMENTS = 6
LENGTH_MAX = 9
"""Slices: six documents are twice what the device holds."""
INSIDE_MAX = 12


class Load:
    """Who asks, gives up, resets, orders and breaks: drawn from the core's seed."""

    def __init__(self, core: Core) -> None:
        self._core, self._rng, self.orders = core, core.rng, 0
        self.failing = False
        self.resets = self.aborted = 0

    def act(self) -> None:
        """Something, or nothing."""
        chance = self._rng.random()
        if chance < 0.18 and len(self._core.requests) < INSIDE_MAX:
            self._ask()
        elif chance < 0.21 and self._core.requests:
            self._core.abort(self._rng.choice(list(self._core.requests)))
            self.aborted += 1
        elif chance < 0.225:
            self._reset()
        elif chance < 0.25:
            self._order()
        elif chance < 0.26:
            self._direct()
        elif chance < 0.27:
            self.failing = not self.failing

    def _ask(self) -> None:
        """A document's beginning, often of whole slices, with a tail of its own or none; sometimes twice at once."""
        rng = self._rng
        document, length = rng.randrange(DOCUMENTS), rng.randint(1, LENGTH_MAX)
        units = [f"{document} {place}" for place in range(length)]
        tail = 0 if rng.random() < 0.5 else rng.randrange(1, 40)
        tokens = PROMPTS.tokens(f"tail {rng.random()}", length * SLICE_TOKENS + tail, units, SLICE_TOKENS)
        output = rng.choice((1, 3, 20, 60))
        for _ in range(2 if rng.random() < 0.2 else 1):
            # What vLLM says twice of one block is not two of them.
            self._core.submit(tokens, output, kv_cache_report_mode=rng.choice(("full", "incremental")))

    def _reset(self) -> None:
        """Of the device's cache, where nobody holds a block; or, between two steps, of all that runs."""
        core = self._core
        if self._rng.random() < 0.3:
            core.reset(running=False, connector=False)
            return
        while core.flight:
            core.finish_one()
        [manager] = core.scheduler.kv_cache_manager.coordinator.single_type_managers
        # vLLM cannot take blocks back that are loaded into.
        if manager.req_to_blocks.keys() <= {one.request_id for one in core.scheduler.running}:
            core.reset(running=True, connector=self._rng.random() < 0.5)
            self.resets += 1

    def _order(self) -> None:
        rng, core = self._rng, self._core
        moves = [(Move.DROP, Tier.DRAM, None), (Move.DEMOTE, Tier.DRAM, Tier.SSD), (Move.PROMOTE, Tier.SSD, Tier.DRAM)]
        move, from_tier, to_tier = rng.choice(moves)
        self.orders += 1
        core.mind.order(
            TransferOrdered(
                order=f"o{self.orders}", engine_id=ENGINE, move=move, reason=MoveReason.HOT, slices=self._some(),
                from_tier=from_tier, to_tier=to_tier,
            )
        )  # fmt: skip

    def _direct(self) -> None:
        version = self._core.mind.directive_version() + 1
        pinned = self._some() if self._rng.random() < 0.5 else ()
        self._core.mind.direct(
            EngineDirected(engine_id=ENGINE, version=version, eviction="", protect_ppm=0, pinned=pinned)
        )

    def _some(self) -> tuple[SliceId, ...]:
        """Slices of DRAM, the SSD, or nowhere."""
        memory = self._core.memory.memory
        known = sorted(memory.naming.name(key) for tier in (Tier.DRAM, Tier.SSD) for key in memory.residency.keys(tier))
        return tuple(self._rng.sample(known, min(4, len(known)))) or (SliceId("0" * 32),)


@pytest.mark.parametrize("v2_runner", [False, True], ids=["first runner", "second runner"])
@pytest.mark.parametrize("overlaps", [False, True], ids=["step by step", "overlapping"])
@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "written through"])
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_kv_is_right_and_nothing_is_lost(
    lazy: bool, overlaps: bool, v2_runner: bool, seed: int
) -> None:
    asked: dict[str, Any] = {"lazy": lazy, "overlaps": overlaps, "v2_runner": v2_runner}
    with running(blocks=BLOCKS, dram_slices=DRAM_SLICES, **asked, seed=seed) as core:
        load = under_load(core)
        assert core.finished > 40
        assert core.loaded > 5
        assert core.scheduler._preemptions > 5
        assert load.resets > 0
        assert load.aborted > 5


@pytest.mark.parametrize("v2_runner", [False, True], ids=["first runner", "second runner"])
@pytest.mark.parametrize("overlaps", [False, True], ids=["step by step", "overlapping"])
@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "written through"])
def test_with_an_ssd_that_fails_at_times_neither(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lazy: bool, overlaps: bool, v2_runner: bool
) -> None:
    folder = tmp_path / "ssd"
    folder.mkdir(mode=0o700)
    asked: dict[str, Any] = {"lazy": lazy, "overlaps": overlaps, "v2_runner": v2_runner}
    asked |= {"blocks": BLOCKS, "dram_slices": DRAM_SLICES, "ssd": folder, "ssd_slices": SSD_SLICES}
    with running(**asked, seed=6) as core:
        load = Load(core)
        ssd = core.memory.secondary_tiers[0]
        monkeypatch.setattr(ssd._threads, "_store", Failing(ssd.store, load))
        monkeypatch.setattr("services.vllm_plugin.ssd_tier.REST_NS", NS_PER_MS)
        under_load(core, load)
        assert ssd.failures > 0
        assert core.memory.memory.residency.hits[Tier.SSD] > 0
        assert core.finished > 40


class Failing:
    """A store that, while its owner says so, breaks on some slices in one of the ways that stores have."""

    def __init__(self, store: Any, load: Load) -> None:
        self._store, self._load = store, load

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._store, attribute)

    def put(self, name: str, data: Any) -> Any:
        if self._load.failing and int(name[0], 16) < 5:
            raise TierUnavailable(where="ssd", why="No space left on device")
        return self._store.put(name, data)

    def read_into(self, name: str, out: Any) -> Any:
        if self._load.failing and int(name[1], 16) < 5:
            raise ChecksumMismatch(where="ssd", name=SliceId(name), why="checksum")
        return self._store.read_into(name, out)


def under_load(core: Core, load: Load | None = None) -> Load:
    """So many steps of it, and what must hold after each; then all that is there to its end."""
    load = load or Load(core)
    for _ in range(STEPS):
        load.act()
        core.step()
        check(core)
    load.failing = False
    core.drain()
    check(core)
    nothing_is_left(core)
    told_is_there(core)
    answered = [fact.order for fact in core.facts if isinstance(fact, TransferFinished)]
    assert sorted(answered) == sorted(f"o{number + 1}" for number in range(load.orders)), "each order is answered once"
    assert core.scheduler._failures == 0
    return load


# What must hold.


def check(core: Core) -> None:
    """After any step."""
    blocks_are_held_by_who_has_them(core)
    jobs_have_owners(core)
    dram_adds_up(core)
    dram_holds_what_it_says(core)
    device_is_known(core)
    what_runs_is_known(core)
    if not core.flight:
        device_holds_what_it_says(core)


def blocks_are_held_by_who_has_them(core: Core) -> None:
    [manager] = core.scheduler.kv_cache_manager.coordinator.single_type_managers
    holders: Counter[int] = Counter()
    for blocks in manager.req_to_blocks.values():
        mine = [block.block_id for block in blocks]
        assert len(mine) == len(set(mine)), "nobody has a block twice"
        holders.update(mine)
    blocks = core.pool.blocks[1:]
    assert {block.block_id: block.ref_cnt for block in blocks if block.ref_cnt} == dict(holders)
    free = [block.block_id for block in core.pool.free_block_queue.get_all_free_blocks()]
    assert sorted(free) == sorted(block.block_id for block in blocks if not block.ref_cnt), "the rest is free, once"


def jobs_have_owners(core: Core) -> None:
    offload = core.offload
    owned = [job for status in offload._req_status.values() for job in status.transfer_jobs]
    assert sorted(owned) == sorted(offload._jobs), "each job has one owner"
    for name, status in offload._req_status.items():
        assert not status.req.is_finished() or status.transfer_jobs or name in core.scheduler.finished_req_ids
    for jobs in offload._block_id_to_pending_jobs.values():
        assert jobs <= offload._jobs.keys(), "who fences a block is there"


def dram_adds_up(core: Core) -> None:
    dram = core.memory.primary_tier
    chunks = dram._policy._chunks
    ids = [chunk.chunk_id for chunk in chunks.values()]
    assert len(ids) == len(set(ids)), "no chunk holds two slices"
    assert not set(ids) & set(dram._free_list)
    assert dram.chunks_used == len(chunks) <= dram.chunks == DRAM_SLICES
    assert dram._num_evictable_cache_chunks == sum(chunk.ref_cnt == 0 for chunk in chunks.values())
    assert dram._num_write_pending_chunks == sum(not chunk.is_ready for chunk in chunks.values())
    assert set(core.memory.memory.residency.keys(Tier.DRAM)) == {key for key, chunk in chunks.items() if chunk.is_ready}
    assert set(dram._policy.choices._names) == set(chunks), "the delegate knows of each"


def dram_holds_what_it_says(core: Core) -> None:
    for key, chunk in core.memory.primary_tier._policy._chunks.items():
        if chunk.is_ready:
            said = [word for block in core.slices[get_offload_block_hash(key)] for word in core.kv[block]]
            assert (core.row(chunk.chunk_id) == column(said)).all(), "a slice in DRAM is what its key says"


def device_holds_what_it_says(core: Core) -> None:
    for block in core.pool.blocks:
        if block.block_hash is not None:
            said = core.kv[get_block_hash(block.block_hash)]
            assert (core.on_device(block.block_id) == column(said)).all(), "a cached block is what its hash says"


def device_is_known(core: Core) -> None:
    """What KV events say of slices is what vLLM's pool holds, in however many copies."""
    core.hear()
    there = {get_block_hash(block.block_hash) for block in core.pool.blocks if block.block_hash is not None}
    whole = {last for last, run in core.slices.items() if there.issuperset(run)}
    said = {last for last, one in core.device._slices.items() if not one.missing}
    # What is computed in a step that is not done is cached already, and the core does not know of it yet.
    assert said == whole if not core.flight else said >= whole


def what_runs_is_known(core: Core) -> None:
    """Of lazy DRAM: a whole slice of the prompt of a request that runs is known where it ends, so it is stored when it
    has to go. And what such a request was found to begin with is not kept for it any longer."""
    for request in core.scheduler.running:
        assert request.request_id not in core.memory._pins
        if core.lazy is None:
            continue
        [state] = core.offload._req_status[request.request_id].group_states
        whole = min(request.num_computed_tokens, request.num_prompt_tokens) // SLICE_TOKENS
        for place, block in enumerate(state.block_ids[SLICE_BLOCKS - 1 : whole * SLICE_BLOCKS : SLICE_BLOCKS]):
            end = core.lazy._ends[block]
            assert end is not None
            assert end.key == state.offload_keys[place]


def nothing_is_left(core: Core) -> None:
    """Once all has ended."""
    offload, memory = core.offload, core.memory
    assert core.pool.get_num_free_blocks() == BLOCKS
    assert not offload._jobs
    assert not offload._req_status
    assert not offload._block_id_to_pending_jobs
    assert not offload._chunks_being_loaded
    assert not memory._jobs
    assert not memory._req_state
    assert not memory._pins
    assert all(chunk.ref_cnt == 0 for chunk in memory.primary_tier._policy._chunks.values())
    if core.lazy is not None:
        assert not core.lazy._known
        assert not core.lazy._late
        assert not core.lazy._flying.keys() & offload._jobs.keys()


def told_is_there(core: Core) -> None:
    """The facts, taken in one by one, come to what the tiers hold."""
    told: dict[Tier, set[str]] = {tier: set() for tier in Tier}
    for fact in core.facts:
        match fact:
            case SlicesStored():
                assert not told[fact.tier] & set(fact.slices), "stored once"
                told[fact.tier] |= set(fact.slices)
            case SlicesRemoved():
                assert told[fact.tier] >= set(fact.slices), "removed once"
                told[fact.tier] -= set(fact.slices)
            case SlicesCleared():
                told[fact.tier] = set()
    residency, naming = core.memory.memory.residency, core.memory.memory.naming
    for tier in (Tier.DRAM, Tier.SSD):
        assert told[tier] == {naming.name(key) for key in residency.keys(tier)}


def column(words: list[int]) -> Any:
    return np.asarray(words, dtype=np.int64)[:, None]
