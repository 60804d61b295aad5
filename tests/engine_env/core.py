"""An engine core and its worker without a model: vLLM's scheduler and connector, our classes in both, and real memory.

The KV of a token is a number that says which tokens stand before it, under which weights. A step writes it where vLLM
said, and reads all that stands before: whatever was cached, loaded or handed over wrongly is not what it should be.

Copies between device and DRAM are made as late as may be (`Late`): when somebody waits for them, or some steps later.
So a block that is taken too early, or computed with too early, is seen.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
import numpy as np
import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from events.base import EngineId, Event
from replay.engines import vllm_setup
from replay.engines.tiers import TierSizes
from replay.engines.vllm_plugged import Plugged, mind_of
from replay.engines.vllm_prompts import Prompts
from services.engines.vllm_virtual import PLUGGED
from services.vllm_plugin.device_slices import DeviceSlices
from tests.replay.contract_engines import described

BLOCK_TOKENS: Final = 16
SLICE_TOKENS: Final = 32
SLICE_BLOCKS: Final = SLICE_TOKENS // BLOCK_TOKENS
WORDS: Final = 16
"""Of eight bytes, for each token: so a slice is a page of the machine's, and a block half of one."""
BLOCK_BYTES: Final = BLOCK_TOKENS * WORDS * 8
SLICE_BYTES: Final = SLICE_BLOCKS * BLOCK_BYTES
TOKEN: Final = 2
"""What every step says."""
ENGINE: Final = EngineId("e1")
DRAIN_TIMEOUT_S: Final = 30.0
PROMPTS: Final = Prompts(BLOCK_TOKENS)
_serial = itertools.count()


class InMemory(Plugged, frozen=True, kw_only=True):
    """Our classes with memory of their own, and an SSD in the folder `ssd` ("" = none)."""

    ssd: str = ""
    ssd_slices: int = 0

    def transfer(self, engine_id: EngineId, tiers: TierSizes) -> dict[str, Any]:
        """As for virtual engines, and the rest of the settings."""
        made = super().transfer(engine_id, tiers)
        told = made["kv_connector_extra_config"][self.key]
        told |= {"prefill_tokens_per_s": 10, "fetch_patience_ms": 60_000, "lazy_ahead": 16}
        if self.ssd:
            told |= {"ssd_folder": self.ssd, "ssd_bytes": self.ssd_slices * (SLICE_BYTES + 4096)}
        made["engine_id"] = f"core-{os.getpid()}-{next(_serial)}"
        return made


class Late:
    """In place of the thread that copies: one after the other, when somebody waits for them or `some` is called."""

    def __init__(self) -> None:
        self._waiting: deque[_Copy] = deque()

    def submit(self, do: Callable[..., Any], *args: Any, **kwargs: Any) -> "_Copy":
        copy = _Copy(self, lambda: do(*args, **kwargs))
        self._waiting.append(copy)
        return copy

    def some(self, count: int) -> None:
        """The next ones."""
        for _ in range(min(count, len(self._waiting))):
            copy = self._waiting.popleft()
            copy.set_result(copy.do())

    def until(self, copy: "_Copy") -> None:
        """This one, and all before it."""
        while not copy.done():
            self.some(1)

    def shutdown(self, *, wait: bool) -> None:
        assert wait
        self.some(len(self._waiting))


class _Copy(Future[Any]):
    def __init__(self, late: Late, do: Callable[[], Any]) -> None:
        super().__init__()
        self.late, self.do = late, do

    def result(self, timeout: float | None = None) -> Any:
        self.late.until(self)
        return super().result(timeout)


class Core:
    """`plugged` says which SSD there is. With `overlaps` a step is scheduled before the one before it is done. With
    `v2_runner` vLLM tells its second model runner of steps, as where there is Triton: of resumed requests as of new."""

    def __init__(
        self, *, blocks: int, dram_slices: int, lazy: bool = True, overlaps: bool = False, v2_runner: bool = False,
        ssd: Path | None = None, ssd_slices: int = 0, seed: int = 0, batch: int = 128,
    ) -> None:  # fmt: skip
        plugged = InMemory(
            **msgspec.structs.asdict(PLUGGED) | {"slice_tokens": SLICE_TOKENS, "spec": "TidegateOffloadingSpec"},
            ssd=str(ssd or ""), ssd_slices=ssd_slices,
        )  # fmt: skip
        # The identity of an SSD's slices is that of the weights.
        Path(vllm_setup._model_folder(), "model.safetensors").write_bytes(b"none")
        self.mind: Any = mind_of(plugged, time)  # type: ignore[arg-type]
        registered = msgspec.structs.replace(
            described(kv_blocks=blocks, batch_tokens=batch, seqs_max=8), block_bytes=BLOCK_BYTES
        )
        tiers = TierSizes(dram_bytes=dram_slices * SLICE_BYTES, lazy=lazy)
        self.scheduler = vllm_setup.scheduler_of(registered, tiers, overlaps=overlaps, plugged=plugged)
        self.scheduler.use_v2_model_runner = v2_runner
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.scheduler.kv_cache_manager.enable_kv_cache_events = self.pool.enable_kv_cache_events = True
        self.offload = self.scheduler.connector.connector_scheduler
        self.memory = self.offload.manager
        self.lazy: Any = self.offload._build_store_jobs.__self__ if lazy else None
        self._ahead = 2 if overlaps else 1
        self._worker = _Worker(self.scheduler, blocks + 1)
        self.rng = Random(seed)
        self.flight: deque[tuple[Any, list[list[int]]]] = deque()
        self.requests: dict[str, Request] = {}
        self.asked: dict[str, Request] = {}
        self.device = DeviceSlices(slice_tokens=SLICE_TOKENS, learn=lambda *_: None)
        self.scheduler.kv_event_publisher.publish = lambda batch: self._hear(batch.events)
        self.kv: dict[bytes, list[int]] = {}
        self.slices: dict[bytes, tuple[bytes, ...]] = {}
        self.weights = 0
        self.finished = self.loaded = self.steps = 0
        self.facts: list[Event] = []

    def submit(self, tokens: Sequence[int], output: int, **extra: Any) -> str:
        """A prompt comes, with what vLLM takes as `vllm_xargs`."""
        name = str(next(_serial))
        sampling = SamplingParams(max_tokens=output, ignore_eos=True, extra_args=extra or None)
        request = Request(name, list(tokens), sampling, None, block_hasher=PROMPTS.hasher)
        self.requests[name] = self.asked[name] = request
        self.scheduler.add_request(request)
        return name

    def abort(self, name: str) -> None:
        """Its client is gone."""
        del self.requests[name]
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def reset(self, *, running: bool, connector: bool) -> bool:
        """vLLM's caches are reset. With both nothing of before may be found again: other weights are there."""
        assert not (self.flight and running and connector), "weights do not change within a step"
        done = bool(self.scheduler.reset_prefix_cache(reset_running_requests=running, reset_connector=connector))
        if running and connector:
            assert done
            self.weights += 1
            self.kv.clear()
            self.slices.clear()
        return done

    def step(self) -> None:
        """Schedule what is due, and do the oldest step."""
        self.steps += 1
        if len(self.flight) < self._ahead and self.scheduler.has_requests():
            output = self.scheduler.schedule()
            self.flight.append((output, self._made(output)))
        if len(self.flight) == self._ahead or not self.scheduler.has_requests():
            self.finish_one()

    def finish_one(self) -> None:
        """The oldest step that is scheduled is done."""
        if not self.flight:
            return
        output, made = self.flight.popleft()
        said = self._worker.execute(output, self)
        names = list(output.num_scheduled_tokens)
        if names:
            runner = ModelRunnerOutput(
                req_ids=names, req_id_to_index={name: place for place, name in enumerate(names)},
                sampled_token_ids=made, kv_connector_output=said,
            )  # fmt: skip
        else:
            runner = ModelRunnerOutput.with_kv_conn_output_only(said)
        for core in self.scheduler.update_from_output(output, runner).values():
            for one in core.outputs:
                if one.finish_reason is not None:
                    self.finished += 1
                    self.requests.pop(one.request_id, None)
        self.facts += self.mind.facts()

    def drain(self) -> None:
        """Until nothing is left to do."""
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        while self.scheduler.has_requests() or self.flight or self.offload.has_pending_push_work():
            assert time.monotonic() < deadline, "the engine comes to rest"
            self.step()

    def digests(self, request: Request, tokens: int) -> list[int]:
        """What the KV of its first tokens is."""
        said, found = request.all_token_ids, list[int]()
        before = hash((self.weights, request.cache_salt or ""))
        for place in range(tokens):
            # Of a step that is not done the token is not known yet; it is what all are.
            before = hash((before, said[place] if place < len(said) else TOKEN))
            found.append(before)
        return found

    def note(self, request: Request, digests: list[int]) -> None:
        """What its blocks are, and of which of them its slices, by their hashes: `kv`, `slices` by their last block."""
        hashes = list(map(bytes, request.block_hashes[: len(digests) // BLOCK_TOKENS]))
        for place, block in enumerate(hashes):
            self.kv[block] = digests[place * BLOCK_TOKENS : (place + 1) * BLOCK_TOKENS]
        for end in range(SLICE_BLOCKS, len(hashes) + 1, SLICE_BLOCKS):
            self.slices[hashes[end - 1]] = tuple(hashes[end - SLICE_BLOCKS : end])

    def row(self, chunk: int) -> Any:
        """A chunk of DRAM: [token, word]."""
        rows = np.frombuffer(self.memory.primary_tier.get_kv_memoryview().cast("B"), dtype=np.int64)
        return rows.reshape(-1, SLICE_TOKENS, WORDS)[chunk]

    def on_device(self, block: int) -> Any:
        """A block of the device: [token, word]."""
        return self._worker.kv[block]

    def hear(self) -> None:
        """Take in the KV events of what happened since the last step."""
        self._hear(self.pool.take_events())

    def close(self) -> None:
        """Let go of memory, threads and files."""
        self._worker.connector.shutdown()
        self.scheduler.shutdown()

    def _made(self, output: Any) -> list[list[int]]:
        requests = self.scheduler.requests
        return [[] if requests[name].is_prefill_chunk else [TOKEN] for name in output.num_scheduled_tokens]

    def _hear(self, events: Sequence[Any]) -> None:
        for event in events:
            match type(event).__name__:
                case "BlockStored":
                    self.device.stored(event)
                case "BlockRemoved":
                    self.device.removed(event)
                case _:
                    self.device.clear()


class _Worker:
    """vLLM's worker as far as KV goes: tables of blocks, the connector's part of a step, and "computing"."""

    def __init__(self, scheduler: Any, blocks: int) -> None:
        made = type(scheduler.connector)
        self.connector = made(scheduler.vllm_config, KVConnectorRole.WORKER, scheduler.kv_cache_config)
        cache = torch.zeros((blocks, 1, BLOCK_TOKENS, BLOCK_BYTES // BLOCK_TOKENS // 2), dtype=torch.bfloat16)
        self.connector.register_kv_caches({vllm_setup.LAYER: cache})
        self.kv = cache.view(torch.int64).numpy().reshape(blocks, BLOCK_TOKENS, WORDS)
        copies = self.connector.connector_worker.worker
        copies._thread.shutdown(wait=True)
        self.late = copies._thread = Late()
        self._tables: dict[str, list[int]] = {}

    def execute(self, output: Any, core: Core) -> KVConnectorOutput:
        """A step, in the order of vLLM's model runner."""
        starts = self._begun(output)
        meta = output.kv_connector_metadata
        if meta.jobs_to_flush is not None or meta.store_jobs:
            self.connector.handle_preemptions(meta)
        self.connector.bind_connector_metadata(meta)
        for name, count in output.num_scheduled_tokens.items():
            self._compute(name, starts[name], count, core)
        self.connector.start_load_kv(None)
        self.connector.wait_for_save()
        self.late.some(core.rng.choice((0, 0, 1, 3)))
        _, loaded = self.connector.get_finished(output.finished_req_ids)
        core.loaded += len(loaded)
        said = KVConnectorOutput(
            finished_recving=loaded or None, kv_connector_worker_meta=self.connector.build_connector_worker_meta()
        )
        self.connector.clear_connector_metadata()
        return said

    def _begun(self, output: Any) -> dict[str, int]:
        """Whose blocks are which now; how many tokens each has already."""
        for name in output.finished_req_ids:
            self._tables.pop(name, None)
        for new in output.scheduled_new_reqs:
            self._tables[new.req_id] = list(new.block_ids[0])
        cached = output.scheduled_cached_reqs
        starts = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        starts |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if name in cached.resumed_req_ids:
                self._tables[name] = list(blocks[0])
            elif blocks is not None:
                self._tables[name] += blocks[0]
        return starts

    def _compute(self, name: str, start: int, count: int, core: Core) -> None:
        request = core.asked[name]  # It may be gone by now; its step is done all the same.
        table = np.asarray(self._tables[name])
        digests = core.digests(request, start + count)
        places = np.arange(start + count)
        rows, slots = table[places // BLOCK_TOKENS], places % BLOCK_TOKENS
        expected = np.asarray(digests, dtype=np.int64)[:, None]
        before = self.kv[rows[:start], slots[:start]]
        assert (before == expected[:start]).all(), f"{name} has the KV of its own {start} tokens"
        self.kv[rows[start:], slots[start:]] = expected[start:]
        core.note(request, digests)


@contextmanager
def running(**asked: Any) -> Iterator[Core]:
    """One, closed at the end."""
    core = Core(**asked)
    try:
        yield core
    finally:
        core.close()
