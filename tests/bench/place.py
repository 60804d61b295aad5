"""Where the measurements run: one NATS server, a folder, and child processes that end with the benchmark."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from events.base import PoolId
from events.log.jetstream import JetStreamLog, connect
from services.runtime.embedded import tethered

CHILD_READY_S = 30.0
CONFIG_VARIABLE = "TIDEGATE_CONFIG"


@dataclass(frozen=True)
class Place:
    """What every section gets. `rounds` is how often the ways take turns."""

    folder: Path
    nats_url: str
    rounds: int

    @asynccontextmanager
    async def log(self, pool: str) -> AsyncIterator[JetStreamLog]:
        """A pool's log on a connection of its own."""
        client = await connect(self.nats_url, name="bench")
        try:
            log = await JetStreamLog.open(client, PoolId(pool))
            yield log
            await log.close()
        finally:
            await client.close()

    @asynccontextmanager
    async def child(
        self, name: str, *argv: str, env: Mapping[str, str] | None = None, speaks: bool = True
    ) -> AsyncIterator[str]:
        """A Python module as a process, killed at the end; what its first line says, once it says it (`speaks`)."""
        with (self.folder / f"{name}.log").open("ab") as log:
            child = await asyncio.create_subprocess_exec(
                *tethered([sys.executable, "-m", *argv]),
                env={**os.environ, **(env or {})}, stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        assert child.stdout is not None, "stdout was asked for"
        try:
            line = await asyncio.wait_for(child.stdout.readline(), CHILD_READY_S) if speaks else b""
            assert line or not speaks, f"{name} ended: {(self.folder / f'{name}.log').read_text()[-2000:]}"
            yield line.decode().strip()
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()

    @asynccontextmanager
    async def tidegate(
        self, pool: str, *command: str, settings: Mapping[str, object] | None = None, speaks: bool = False
    ) -> AsyncIterator[str]:
        """One of the program's own processes on that pool, as `tidegate up` would start it."""
        file = self.folder / f"{pool}.json"
        state = str(self.folder / "state")
        file.write_bytes(msgspec.json.encode({"pool": pool, "state_dir": state, **(settings or {})}))
        env = {CONFIG_VARIABLE: str(file), "TIDEGATE_NATS__URL": self.nats_url}
        async with self.child(f"{pool}-{'-'.join(command)}", "services.cli", *command, env=env, speaks=speaks) as line:
            yield line
