"""A house of real processes on servers that the test holds: any of them can be killed at any moment and comes back.

Workers and gateway are started as their users start them (`python -m services.cli ...`), each under the house's own
supervisor, and end with the test's process whatever becomes of it.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import msgspec

from events.base import PoolId
from events.log.jetstream import JetStreamLog, connect
from policies.catalog import ACTORS
from replay.code_version import code_version
from replay.verify import verify
from services.runtime import servers
from services.runtime.config import Config
from services.runtime.supervisor import Child, RestartLimits, Supervisor
from tests.e2e.witness import Witness

ROOT: Final = Path(__file__).parents[2]
TIDEGATE: Final = (sys.executable, "-m", "services.cli")
READY_TIMEOUT_S: Final = 30.0
QUIET_TIMEOUT_S: Final = 30.0
COMMAND_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.05
AT_ONCE: Final = RestartLimits(restarts_max=10_000, pause_first_s=0.05, pause_max_s=0.05)
"""A test kills more often than a supervisor should bear."""
T = TypeVar("T")


async def until(holds: Callable[[], T], what: str, *, timeout_s: float = READY_TIMEOUT_S) -> T:
    """What `holds` gives as soon as that is true. AssertionError with `what` when it does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        await asyncio.sleep(POLL_S)
    return found


def own_environment(**more: str) -> dict[str, str]:
    """The environment without what would lead a process to somebody else's servers or settings."""
    foreign = ("NATS_URL", "REDIS_URL", "NATS_CREDS")
    kept = {name: value for name, value in os.environ.items() if name not in foreign and "TIDEGATE" not in name}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def is_running(pid: int) -> bool:
    """Whether a process does anything; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class House:
    """Made by `running`. Names of processes are those of the workers, `gateway`, or what `start` was told."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.config, self.pool = config, PoolId(config.pool)
        self.folder = folder
        self.file = folder / f"{config.pool}.json"
        self.file.touch(0o600)
        self.file.write_bytes(msgspec.json.encode(config))
        self.witness = Witness()
        self._keeping: dict[str, tuple[Supervisor, asyncio.Event, asyncio.Task[None]]] = {}

    @property
    def url(self) -> str:
        """Where the gateway serves now; "" while it does not."""
        door = servers.door(self.config)
        return door.url if door is not None else ""

    def start(self, name: str, *command: str, overrides: Sequence[str] = (), **env: str) -> None:
        """Start `tidegate <command>` and keep it running."""
        told = [word for each in overrides for word in ("--set", each)]
        line = (*TIDEGATE, *command, "--config", str(self.file), *told)
        supervisor = Supervisor([Child(name=name, command=line, env=own_environment(**env))], limits=AT_ONCE)
        stop = asyncio.Event()
        self._keeping[name] = (supervisor, stop, asyncio.create_task(supervisor.run(stop), name=name))

    def pid(self, name: str) -> int:
        """The process that does a job now; 0 between two starts."""
        return self._keeping[name][0].states[name].pid

    def restarts(self, name: str) -> int:
        """How often a process was started again."""
        return self._keeping[name][0].states[name].restarts

    def exit_code(self, name: str) -> int | None:
        """How the process before this one ended."""
        return self._keeping[name][0].states[name].exit_code

    async def kill(self, name: str) -> int:
        """SIGKILL a process as soon as it runs; its pid."""
        pid = await until(lambda: self.pid(name), f"{name} runs")
        os.kill(pid, signal.SIGKILL)
        return pid

    async def stop(self, *names: str) -> None:
        """End processes in good order, in this order."""
        for name in names:
            _, stop, task = self._keeping.pop(name)
            stop.set()
            await task

    async def until_well(self) -> str:
        """The gateway's address once /health says that it serves."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        async with aiohttp.ClientSession() as session:
            while not (self.url and await _is_well(session, self.url)):
                assert time.monotonic() < deadline, "the gateway is not well in time"
                for _, _, task in self._keeping.values():
                    assert not task.done(), f"{task.get_name()} gave up: {task.exception()}"
                await asyncio.sleep(POLL_S)
        return self.url

    async def settle(self) -> None:
        """Stop everything that writes facts, let admission answer what is left, and stop the rest."""
        others = [name for name in self._keeping if not name.startswith("admission")]
        await self.stop(*reversed(others))
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        async with servers.open_log(self.config, self.pool) as log:
            while pending := await _pending(log):
                assert time.monotonic() < deadline, f"admission leaves {pending} decisions unwritten"
                await asyncio.sleep(POLL_S)
        await self.stop(*list(self._keeping))

    async def verify(self) -> dict[str, Any]:
        """Export the log, and decide everything again in two fresh processes that hash differently. What they say,
        which must be the same to the byte."""
        journal = self.folder / f"{self.pool}.jsonl.zst"
        await self.run("replay", "export", "--config", str(self.file), "--out", str(journal), "--force")
        said = await asyncio.gather(
            *(self.run("replay", "verify", str(journal), "--complete", "--json", PYTHONHASHSEED=seed) for seed in "01")
        )
        assert said[0] == said[1], "what is said does not depend on the process"
        report: dict[str, Any] = json.loads(said[0])
        return report

    async def run(self, *arguments: str, **env: str) -> str:
        """What a command of the program says; AssertionError when it does not end well."""
        process = await asyncio.create_subprocess_exec(
            *TIDEGATE, *arguments, env=own_environment(**env), cwd=self.folder,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            out, err = await process.communicate()
        assert process.returncode == 0, f"tidegate {' '.join(arguments)}: {out.decode()}{err.decode()}"
        return out.decode()


@asynccontextmanager
async def running(
    folder: Path, config: Config, *, workers: Sequence[str] = ("clock", "admission"), gateway: bool = True
) -> AsyncIterator[House]:
    """A house on the servers that `config` names, well and watched; everything is stopped at the end. Workers that are
    named together share a process."""
    house = House(folder, config)
    client = await connect(config.nats.url, name="witness")
    log = await JetStreamLog.open(client, house.pool)
    watching = asyncio.create_task(house.witness.follow(log), name="witness")
    try:
        for worker in workers:
            house.start(worker, "worker", *worker.split())
        if gateway:
            house.start("gateway", "gateway")
            await house.until_well()
        yield house
    finally:
        await house.stop(*reversed(list(house._keeping)))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await log.close()
        await client.close()


async def _pending(log: JetStreamLog) -> int:
    """Decisions that follow from the log and do not stand in it."""
    messages = [message async for batch in log.read() for message in batch]
    return verify(messages, log.pool, ACTORS, code_version=code_version()).pending


async def _is_well(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def one_owner_each(report: Mapping[str, Any]) -> bool:
    """Whether nothing in the log was decided twice, by whomever."""
    return report["two_owners"] == 0 and "twice" not in report["differences"]
