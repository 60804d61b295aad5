"""The demo: one workload, served live by the whole house and twice more in virtual time, on the same arrivals.

Live: `tidegate up` as a child with real NATS, Valkey and workers, requests over HTTP; only the engines are simulated,
and the pool's clock runs `speed` times faster than the wall's. The comparison is virtual: stock engines behind a plain
proxy (first come, first served, in turn) against Tidegate. One scorer reads all three logs.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from events import codec
from events.base import EngineId, LogError, PoolId, Recorded
from events.decisions import HolderLost, RequestRejected
from events.engine import EngineKind, EngineRegistered
from events.log.base import Log
from events.request import RequestAborted, RequestExpired, RequestFinished
from policies.admission_settings import Mode
from policies.catalog import PRESETS
from replay.cluster import simulate
from replay.costmodel import LLAMA_8B_KV, PROFILE_DEFAULT, PROFILES
from replay.engines.tiers import TierSizes
from replay.score import Scores
from replay.traces.mooncake import read_mooncake
from replay.workloads.base import Arrival
from replay.workloads.mixed import EMBEDDING_MODEL, ENGINE_KV_TOKENS, ENGINES, LLM_MODEL, mixed
from services.engines.simulated import registered, tiers_of
from services.load import LoadResult, drive
from services.runtime.config import Config, EngineConfig, GatewayConfig, ModelConfig, TenantConfig

POOL = PoolId("demo")
BASELINE = "first_come"
IDLE_WALL_S_MAX = 60.0
"""The log of a demo must grow towards its end: after so long without one request ending, it is stuck."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is served, by which engines."""

    name: str
    arrivals: list[Arrival]
    engines: list[EngineConfig]

    def registered(self) -> list[EngineRegistered]:
        """The engines as they stand in the log."""
        return [registered(engine) for engine in self.engines]

    def tiers(self) -> dict[EngineId, TierSizes]:
        """What stands behind their memory, where anything does."""
        sizes = {EngineId(engine.id): tiers_of(engine) for engine in self.engines}
        return {engine_id: size for engine_id, size in sizes.items() if size is not None}


def plan_mixed(seed: int, *, dram_bytes: int = 0, ssd_bytes: int = 0) -> Plan:
    """The mixed LLM and embedding workload on two engines that are short of KV memory, with tiers behind it or none."""
    engines = _engines(ENGINE_KV_TOKENS, [LLM_MODEL, EMBEDDING_MODEL], dram_bytes=dram_bytes, ssd_bytes=ssd_bytes)
    return Plan(name=f"mixed LLM + embedding, seed {seed}", arrivals=mixed(seed), engines=engines)


def plan_trace(
    path: Path, *, limit: int, dram_bytes: int = 0, ssd_bytes: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Plan:  # fmt: skip
    """The first `limit` rows (0 = all) of a Mooncake trace on two engines with all the KV that an H100 has left, and
    tiers behind that or none. Raises TraceError."""
    arrivals = read_mooncake(path, limit=limit, on_progress=on_progress)
    models = sorted({each.model for each in arrivals})
    kv_tokens = PROFILES[PROFILE_DEFAULT].kv_tokens()
    engines = _engines(kv_tokens, models, dram_bytes=dram_bytes, ssd_bytes=ssd_bytes)
    return Plan(name=f"{path.name}, {len(arrivals)} requests", arrivals=arrivals, engines=engines)


def config_of(plan: Plan, *, state_dir: Path, speed: int) -> Config:
    """Settings under which `tidegate up` serves the plan: a key per tenant, made anew."""
    tenants = sorted({arrival.tenant for arrival in plan.arrivals})
    models = sorted({model for engine in plan.engines for model in engine.models})
    return Config(
        pool=POOL, state_dir=str(state_dir.absolute()), speed=speed, secret=secrets.token_hex(32),
        gateway=GatewayConfig(port=0, workload_hints=True),
        tenants=[TenantConfig(name=name, api_keys=[secrets.token_hex(16)]) for name in tenants],
        models=[ModelConfig(name=name) for name in models], engines=plan.engines,
        policies={"admission": {"mode": Mode.ENFORCE.value}},
    )  # fmt: skip


class Ended:
    """Follows a log until so many requests have ended, whichever way."""

    def __init__(self, requests: int, on_record: Callable[[Recorded], None]) -> None:
        self._open, self._on_record = requests, on_record
        self._ended: set[str] = set()
        self.done = asyncio.Event()
        self.moved = asyncio.Event()

    async def follow(self, log: Log) -> None:
        """Read for ever; `done` is set when all have ended."""
        async for batch in log.read(follow=True):
            for message in batch:
                for recorded in codec.decode(message.seq, message.subject, message.body):
                    self._take(recorded)
                    self._on_record(recorded)

    def _take(self, recorded: Recorded) -> None:
        match recorded.event:
            case RequestFinished() | RequestAborted(final=True) | RequestRejected() | RequestExpired() as event:
                self._ended.add(event.request_id)
            case HolderLost() as event:
                self._ended.update(event.requests)
            case _:
                return
        self.moved.set()
        if len(self._ended) >= self._open:
            self.done.set()

    async def wait(self) -> None:
        """Until all have ended. LogError when nothing ends for too long."""
        while not self.done.is_set():
            self.moved.clear()
            try:
                async with asyncio.timeout(IDLE_WALL_S_MAX):
                    await self.moved.wait()
            except TimeoutError:
                what = f"{self._open - len(self._ended)} requests have not ended for {IDLE_WALL_S_MAX:.0f} s"
                raise LogError(what, where=f"pool {POOL}", mend="see the workers' output") from None


async def serve(plan: Plan, config: Config, *, url: str, log: Log, on_record: Callable[[Recorded], None]) -> LoadResult:
    """Send the plan's arrivals to the gateway at `url`; return when the log says that every request has ended."""
    ended = Ended(len(plan.arrivals), on_record)
    async with _beside(ended.follow(log)):
        keys = {tenant.name: tenant.api_keys[0] for tenant in config.tenants}
        result = await drive(url, plan.arrivals, speed=config.speed, api_keys=keys)
        await ended.wait()
    return result


def compare(plan: Plan) -> dict[str, Scores]:
    """The plan in virtual time: first come, and Tidegate."""
    presets = {"baseline": PRESETS[BASELINE], "tidegate": PRESETS["default"]}
    return {
        name: simulate(plan.arrivals, plan.registered(), settings=settings, tiers=plan.tiers()).scores
        for name, settings in presets.items()
    }


def _engines(kv_tokens: int, models: Sequence[str], *, dram_bytes: int, ssd_bytes: int) -> list[EngineConfig]:
    block_tokens = LLAMA_8B_KV.block_tokens
    return [
        EngineConfig(
            id=f"e{number}", kind=EngineKind.SIMULATED, models=list(models), embedding=True,
            kv_blocks=kv_tokens // block_tokens, block_tokens=block_tokens, step_model=PROFILE_DEFAULT,
            kv_schema=LLAMA_8B_KV, dram_bytes=dram_bytes, ssd_bytes=ssd_bytes,
        )
        for number in range(1, ENGINES + 1)
    ]  # fmt: skip


@asynccontextmanager
async def _beside(work: Any) -> AsyncIterator[None]:
    """Run something beside the block; its failure ends the block, the block's end ends it."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        yield
        task.cancel()
