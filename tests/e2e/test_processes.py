"""What starts without its servers says so in one line; what is killed leaves nothing behind."""

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import pytest

from services.commands.up import WORKERS
from services.runtime import servers
from services.runtime.config import Config
from services.runtime.embedded import EmbeddedNats, EmbeddedValkey
from services.runtime.output import Exit
from tests.e2e.client import ask
from tests.e2e.house import POLL_S, TIDEGATE, is_running, own_environment, until
from tests.e2e.settings import house_settings

pytestmark = pytest.mark.integration

TIMEOUT_S: Final = 30.0
CHILDREN: Final = 3 + len(WORKERS)
"""NATS, Valkey, the gateway, and the workers."""


@pytest.fixture
def nowhere() -> str:
    """An address on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def call(*arguments: str, **env: str) -> tuple[int | None, str]:
    """Exit code, and what was said on stderr."""
    process = await asyncio.create_subprocess_exec(
        *TIDEGATE, *arguments, env=own_environment(**env),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, said.decode()


@pytest.mark.parametrize("command", [["gateway"], ["worker", "clock", "admission"], ["up"]])
async def test_without_nats_a_start_is_one_line_with_address_and_mend(
    command: Sequence[str], nowhere: str, own_valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    settings = ["--preset", "laptop", "--set", f"state_dir={tmp_path / 'state'}", "--set", "gateway.port=0"]
    env = {"NATS_URL": f"nats://user:pass-word@{nowhere}", "REDIS_URL": own_valkey.url}
    code, said = await call(*command, *settings, **env)
    assert (code, said) == (
        Exit.BAD_INPUT, f"tidegate: NATS does not answer ({nowhere}): start it, or set NATS_URL\n"
    )  # fmt: skip


async def test_without_redis_a_start_is_one_line_with_address_and_mend(
    nowhere: str, nats_server: EmbeddedNats, tmp_path: Path
) -> None:
    config = house_settings(tmp_path, nats_url=nats_server.url)
    file = written(tmp_path, config)
    code, said = await call("up", "--config", str(file), REDIS_URL=f"redis://:pass-word@{nowhere}/0")
    assert code == Exit.BAD_INPUT
    assert said.count("\n") == 1
    assert said.startswith("tidegate: Redis does not answer")
    assert nowhere in said
    assert said.endswith("start it, or set REDIS_URL\n")
    assert "pass-word" not in said


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
async def test_tidegate_up_brings_back_what_dies_and_nothing_outlives_it(how: signal.Signals, tmp_path: Path) -> None:
    config = house_settings(tmp_path, nats_url="")
    with (tmp_path / "up.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *TIDEGATE, "up", "--config", str(written(tmp_path, config)), env=own_environment(), start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        await until(lambda: servers.door(config), "the gateway serves")
        children = await until(lambda: complete(descendants(process.pid)), "the whole house")
        for victim in children:
            os.kill(victim, signal.SIGKILL)
        children = await until(lambda: complete(descendants(process.pid)), "everybody is back")
        async with aiohttp.ClientSession() as session:
            await until_answered(session, config)
    finally:
        os.killpg(process.pid, how)  # As a terminal does on Ctrl-C: to the whole group.
        async with asyncio.timeout(TIMEOUT_S):
            code = await process.wait()
    await until(lambda: not any(map(is_running, children)), "every process is gone")
    assert code == (Exit.FINE if how is signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in (tmp_path / "up.log").read_text()
    with servers.start(config):
        pass  # Its folders are free: nobody is left who holds them.


async def until_answered(session: aiohttp.ClientSession, config: Config) -> None:
    """Until a gateway serves that admits."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            door = servers.door(config)
            if door is not None and (await ask(session, door.url)).status == 200:
                return
            await asyncio.sleep(POLL_S)


def written(folder: Path, config: Config) -> Path:
    file = folder / "house.json"
    file.write_bytes(msgspec.json.encode(config))
    return file


def complete(pids: list[int]) -> list[int]:
    """All of them, once so many run."""
    pids = [pid for pid in pids if is_running(pid)]
    return pids if len(pids) >= CHILDREN else []


def descendants(pid: int) -> list[int]:
    """Children, and theirs."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        found = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except FileNotFoundError:
        return []
    return found + [below for child in found for below in descendants(child)]
