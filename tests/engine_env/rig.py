"""The memory of an engine without the engine: vLLM's own offloading classes around ours, driven as its scheduler does.

The device is a tensor of random bytes; a slice's key says which bytes it must have, so that every load is checked.
"""

import hashlib
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
    LookupResult,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)

from events.base import Event, SliceId
from services.vllm_plugin import naming, spec
from services.vllm_plugin.bridge import Bridge
from services.vllm_plugin.manager import TidegateManager
from services.vllm_plugin.spec import NAMESPACE, TidegateOffloadingSpec

BLOCK_TOKENS = 16
BLOCKS_PER_SLICE = 2
SLICE_TOKENS = BLOCK_TOKENS * BLOCKS_PER_SLICE
PAGE_BYTES = 1024
TENSORS = 2
SLICE_BYTES = TENSORS * PAGE_BYTES * BLOCKS_PER_SLICE
DEVICE_BLOCKS = 64
SETTLE_TIMEOUT_S = 30.0
NAMESPACE_DIGEST = b"n" * 16


def config(extra: dict[str, Any], *, groups: int = 1, name: str = "rig") -> OffloadingConfig:
    """What vLLM's connector would make of such an engine."""
    return OffloadingConfig(
        groups=tuple(
            OffloadingGroupConfig(tokens_per_block=BLOCK_TOKENS, layer_names=("a", "b"), group_id=number)
            for number in range(groups)
        ),
        worker_kv_bytes_per_block=TENSORS * PAGE_BYTES,
        enable_kv_cache_events=False,
        extra_config=extra,
        engine_id=f"{name}-{random.SystemRandom().getrandbits(64):x}",
        model=OffloadingModelConfig(name="rig", dtype="float32"),
        cache=OffloadingCacheConfig(tokens_per_hash=BLOCK_TOKENS, blocks_per_chunk=BLOCKS_PER_SLICE),
        parallel=OffloadingParallelConfig(
            rank=0, world_size=1, tp_size=1, pp_size=1, pcp_size=1, dcp_size=1, data_parallel_index=0,
            data_parallel_size=1, data_parallel_rank_local=None, is_parallelism_agnostic=True,
        ),
    )  # fmt: skip


def extra_config(*, dram_slices: int = 8, ssd: Path | None = None, **settings: Any) -> dict[str, Any]:
    """The settings of an engine with tiers of so much."""
    tiers = {"ssd_folder": str(ssd), "ssd_bytes": 1 << 24} if ssd is not None else {}
    patient = {"prefill_tokens_per_s": 10, "fetch_patience_ms": 60_000}
    told = {"engine_id": "rig", "slice_tokens": SLICE_TOKENS} | patient | tiers | settings
    return {"cpu_bytes_to_use": dram_slices * SLICE_BYTES, NAMESPACE: NAMESPACE_DIGEST.hex(), "tidegate": told}


@dataclass(eq=False)
class Asked:
    """A request: its context, and what its slices are."""

    context: ReqContext
    keys: list[bytes]
    loaded: int = 0


@dataclass
class Rig:
    """An engine's memory. `facts` is what it told, `orders` what it was given."""

    manager: TidegateManager
    worker: Any
    bridge: Bridge
    device: list[torch.Tensor]
    facts: list[Event] = field(default_factory=list)
    orders: list[Event] = field(default_factory=list)
    _jobs: int = 0
    _requests: int = 0

    def request(self, keys: Sequence[bytes], *, hints: dict[str, Any] | None = None) -> Asked:
        """A prompt of these slices comes."""
        self._requests += 1
        context = ReqContext(req_id=f"r{self._requests}", kv_transfer_params=hints)
        for place, key in enumerate(keys, 1):
            context.set_offload_key_position(key, place * SLICE_TOKENS)
        self.manager.on_new_request(context)
        return Asked(context, list(keys))

    def look_up(self, asked: Asked) -> int | None:
        """How many of its first slices can be loaded; None: ask again."""
        hits, later = 0, False
        for key in asked.keys:
            match self.manager.lookup(key, asked.context):
                case LookupResult.HIT:
                    hits += 1
                case LookupResult.HIT_PENDING:
                    hits, later = hits + 1, True
                case LookupResult.RETRY:
                    later = True
                case LookupResult.MISS:
                    break
        return None if later else hits

    def step(self, asked: Asked | None = None) -> None:
        """The end of a step, in which this request was scheduled for the first time."""
        new = [asked.context.req_id] if asked is not None else []
        self.manager.on_schedule_end(ScheduleEndContext(new_req_ids=new, preempted_req_ids=()))

    def found(self, asked: Asked) -> int:
        """As `look_up`, with as many steps as it takes."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while (hits := self.look_up(asked)) is None:
            assert time.monotonic() < deadline, "a look-up comes to an end"
            self.step()
        return hits

    def load(self, asked: Asked, hits: int) -> None:
        """Its first slices come to the device; each must be what its key says."""
        asked.loaded = hits
        if not hits:
            return
        keys = asked.keys[:hits]
        source = self.manager.prepare_load(keys, asked.context)
        blocks = list(range(hits * BLOCKS_PER_SLICE))
        for tensor in self.device:
            tensor[blocks] = 0
        self._copy(source, blocks, store=False)
        for place, key in enumerate(keys):
            assert self.read(place) == content(key), "what is loaded is what was stored under that key"
        self.manager.complete_load(set(keys), asked.context)

    def compute(self, asked: Asked) -> None:
        """The rest is computed, and stored as far as there is room."""
        output = self.manager.prepare_store(asked.keys, asked.context)
        if output is None or not output.keys_to_store:
            return
        blocks: list[int] = []
        for place, key in enumerate(asked.keys):
            if key in output.keys_to_store:
                self.write(place, content(key))
                blocks += range(place * BLOCKS_PER_SLICE, (place + 1) * BLOCKS_PER_SLICE)
        self._copy(output.store_spec, blocks, store=True)
        self.manager.complete_store(set(output.keys_to_store), asked.context)

    def serve(self, keys: Sequence[bytes], *, hints: dict[str, Any] | None = None) -> int:
        """A request from its coming to its end; how many of its slices were loaded. All writes are done then."""
        asked = self.request(keys, hints=hints)
        self.load(asked, self.found(asked))
        self.step(asked)
        self.compute(asked)
        self.manager.on_request_finished(asked.context)
        self.settle()
        return asked.loaded

    def settle(self) -> None:
        """Steps, until nothing is on its way."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        self.step()
        while self.manager.has_pending_work():
            assert time.monotonic() < deadline, "transfers come to an end"
            self.step()

    def told(self, kind: type[Event]) -> list[Any]:
        """The facts of a kind."""
        return [fact for fact in self.facts if type(fact) is kind]

    def read(self, place: int) -> bytes:
        """The bytes of a slice on the device."""
        blocks = range(place * BLOCKS_PER_SLICE, (place + 1) * BLOCKS_PER_SLICE)
        return b"".join(tensor[block].numpy().tobytes() for tensor in self.device for block in blocks)

    def write(self, place: int, data: bytes) -> None:
        """Put bytes there."""
        pages = np.frombuffer(data, dtype=np.int8).reshape(TENSORS, BLOCKS_PER_SLICE, PAGE_BYTES)
        for tensor, part in zip(self.device, pages, strict=True):
            tensor[place * BLOCKS_PER_SLICE : (place + 1) * BLOCKS_PER_SLICE] = torch.tensor(part)

    def _copy(self, chunks: Any, blocks: list[int], *, store: bool) -> None:
        self._jobs += 1
        places = GPULoadStoreSpec(blocks, group_sizes=[len(blocks)], block_indices=[0])
        if store:
            self.worker.submit_store(self._jobs, places, chunks)
        else:
            self.worker.submit_load(self._jobs, chunks, places)
        self.worker.wait({self._jobs})
        [result] = self.worker.get_finished()
        assert result.success
        assert result.transfer_size == len(blocks) * PAGE_BYTES * TENSORS


@contextmanager
def running(extra: dict[str, Any], monkeypatch: Any) -> Iterator[Rig]:
    """The memory of an engine with these settings, with a bridge of its own."""
    bridge = Bridge()
    monkeypatch.setattr(spec, "bridge", bridge)
    monkeypatch.setattr("services.vllm_plugin.memory.naming", naming.Naming())
    made = TidegateOffloadingSpec(config(extra))
    device = [torch.zeros((DEVICE_BLOCKS, PAGE_BYTES), dtype=torch.int8) for _ in range(TENSORS)]
    caches = CanonicalKVCaches(
        tensors=[CanonicalKVCacheTensor(tensor, PAGE_BYTES) for tensor in device],
        group_data_refs=[[CanonicalKVCacheRef(number, PAGE_BYTES) for number in range(TENSORS)]],
    )
    worker = made.get_worker(caches)
    facts: list[Event] = []
    monkeypatch.setattr(bridge, "tell", facts.append)
    manager = made.get_manager()
    assert isinstance(manager, TidegateManager)
    rig = Rig(manager, worker, bridge, device, facts)
    try:
        yield rig
    finally:
        manager.shutdown()
        worker.shutdown()


def key(prompt: str, place: int) -> bytes:
    """The key of a slice: what came before it counts, so each prompt has keys of its own."""
    return bytes(make_offload_key(hashlib.sha256(f"{prompt} {place}".encode()).digest(), 0))


def keys(prompt: str, slices: int) -> list[bytes]:
    """Those of a prompt."""
    return [key(prompt, place) for place in range(slices)]


def content(of: bytes) -> bytes:
    """What the slice of a key must hold."""
    return hashlib.shake_128(of).digest(SLICE_BYTES)


def name(of: bytes) -> SliceId:
    """A fingerprint for a key, as the gateway would say it."""
    return SliceId(hashlib.blake2b(of, digest_size=16).hexdigest())


def hints(of: Sequence[bytes]) -> dict[str, Any]:
    """What the gateway says of a prompt."""
    return {"tidegate": {"request_id": "q", "slices": [name(one) for one in of], "slice_tokens": SLICE_TOKENS}}
