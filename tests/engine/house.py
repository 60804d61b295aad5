"""`tidegate up` in front of real engines, started as a person would, with a log of its own."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from events import codec
from events.base import NS_PER_S, Event, LogError, PoolId, Recorded
from events.log.base import Message
from services.runtime import servers
from services.runtime.config import Config, load
from tests.engine.vllm_server import BLOCK_TOKENS, HOST, free_port

ROOT = Path(__file__).parents[2]
TIDEGATE = ROOT / ".venv" / "bin" / "tidegate"
POOL = PoolId("engine-test")
READY_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 30.0
EVENT_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 60.0
PATIENT_MS = 600_000
"""An SLO that no slow machine misses: these tests are about what happens, not how fast."""
HOLDER_TIMEOUT_NS = 20 * NS_PER_S
"""A gateway on a machine that stands still for seconds is not taken for lost; one that was killed is, in time."""
EMBEDDING_MODEL = "tiny-embed"
KV_SCHEMA = {"layers": 2, "kv_heads": 2, "head_dim": 64, "dtype": "float32", "block_tokens": BLOCK_TOKENS}
E = TypeVar("E", bound=Event)


class House:
    """A running house. Its log is read where it stands, and verified at the end."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.url = f"http://{HOST}:{settings['gateway']['port']}"
        self._folder = folder
        self.config_file = folder / "tidegate.json"
        self.config_file.write_text(json.dumps(settings))
        self._log_file = folder / "up.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Config:
        """The settings as the house reads them."""
        return load(self.config_file, {})

    async def start(self) -> None:
        """Start the processes and wait until the gateway serves."""
        await self.start_log()
        await self.until_well()

    async def start_log(self) -> str:
        """Start the processes and wait until there is a log; its URL. The gateway may not serve yet."""
        self._process = self._spawn()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                return servers.nats_url(self.config)
            except LogError:
                assert time.monotonic() < deadline, f"there is no NATS: {self.log_tail()}"
                await asyncio.sleep(0.1)

    async def until_well(self) -> None:
        """Until /health says so. AssertionError when the house ended or does not come up."""
        assert self._process is not None, "the house was started"
        deadline = time.monotonic() + READY_TIMEOUT_S
        async with aiohttp.ClientSession() as session:
            while not await _is_well(session, self.url):
                assert self._process.poll() is None, f"tidegate up ended: {self.log_tail()}"
                assert time.monotonic() < deadline, f"tidegate up is not ready: {self.log_tail()}"
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Ctrl-C; every process must be gone in time."""
        assert self._process is not None, "the house runs"
        self._process.send_signal(signal.SIGINT)
        try:
            await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise

    def pid_of(self, worker: str) -> int:
        """The process that does one job: a child of `tidegate up` that was started with that word."""
        assert self._process is not None, "the house was started"
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        [pid] = [pid for pid in children if worker.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
        return int(pid)

    async def events(self) -> list[Recorded]:
        """All that stands in the log now."""
        async with servers.open_log(self.config, POOL) as log:
            return [recorded async for batch in log.read() for recorded in _decoded(batch)]

    async def until(self, kind: type[E], fits: Callable[[E], bool] = lambda _: True, *, count: int = 1) -> list[E]:
        """The first `count` events of a kind that fit, as soon as they stand in the log."""
        found: list[E] = []
        try:
            async with asyncio.timeout(EVENT_TIMEOUT_S), servers.open_log(self.config, POOL) as log:
                async for batch in log.read(follow=True):
                    events = [recorded.event for recorded in _decoded(batch)]
                    found += [event for event in events if isinstance(event, kind) and fits(event)]
                    if len(found) >= count:
                        break
        except TimeoutError:
            raise AssertionError(f"{len(found)} of {count} {kind.__name__} in the log: {self.log_tail()}") from None
        return found

    async def verify(self) -> dict[str, Any]:
        """Export the log and decide everything again: what `tidegate replay verify --json` says."""
        journal = self._folder / "log.jsonl.zst"
        await self.run("replay", "export", "--config", str(self.config_file), "--out", str(journal), "--force")
        report: dict[str, Any] = json.loads(await self.run("replay", "verify", str(journal), "--json"))
        return report

    async def run(self, *arguments: str) -> str:
        """What a command of the program says; AssertionError when it does not end well."""
        done = await asyncio.to_thread(
            subprocess.run, [TIDEGATE, *arguments], cwd=self._folder, env=_own_environment(),
            capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"tidegate {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with self._log_file.open("wb") as log:
            return subprocess.Popen(
                [TIDEGATE, "up", "--config", self.config_file], cwd=self._folder, start_new_session=True,
                env=_own_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def log_tail(self) -> str:
        """The last of what the processes had to say."""
        return f"{self._log_file}\n{self._log_file.read_text(errors='replace')[-3000:]}"


@asynccontextmanager
async def running_house(
    folder: Path, *, texts: Mapping[str, str], model: Path, embedding: str = "", kv_blocks: int = 0
) -> AsyncIterator[House]:
    """A house for the block. `texts`: engine id -> URL of engines that serve `model`; `embedding`: URL of the one for
    vectors; `kv_blocks`: the budget of each (0 = what the engine has). Ends with a log that verifies, whatever the
    block did to the house."""
    models = [{"name": model.name, "tokenizer": str(model), "slo_ttft_ms": PATIENT_MS, "slo_tpot_ms": PATIENT_MS}]
    text_engine = {"models": [model.name], "kv_schema": KV_SCHEMA, "kv_blocks": kv_blocks}
    engines: list[dict[str, Any]] = [{"id": name, "url": url, **text_engine} for name, url in texts.items()]
    if embedding:
        models.append({"name": EMBEDDING_MODEL, "tokenizer": "engine", "slo_ttft_ms": PATIENT_MS})
        engines.append({"id": "embed", "url": embedding, "models": [EMBEDDING_MODEL], "llm": False, "embedding": True})
    house = House(
        folder,
        {
            "pool": POOL,
            "state_dir": str(folder / "state"),
            # Three engines on two cores can starve NATS for seconds. What the gateway does then is e2e's subject; here
            # it waits, as the SLOs do, so that only the fault that a test brings about is seen.
            "gateway": {"host": HOST, "port": free_port(), "log_down_after_ms": PATIENT_MS},
            "models": models,
            "engines": engines,
            "policies": {"admission": {"placement": "round_robin", "holder_timeout_ns": HOLDER_TIMEOUT_NS}},
        },
    )
    await house.start()
    try:
        yield house
        report = await house.verify()
        assert report["identical"], report
        assert report["decisions"] > 0, report
    finally:
        await house.stop()


def _decoded(batch: list[Message]) -> list[Recorded]:
    return [each for message in batch for each in codec.decode(message.seq, message.subject, message.body)]


async def _is_well(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def _own_environment() -> dict[str, str]:
    """Without what would lead the house to somebody else's servers."""
    foreign = ("NATS_URL", "REDIS_URL")
    return {name: value for name, value in os.environ.items() if name not in foreign and "TIDEGATE" not in name}
