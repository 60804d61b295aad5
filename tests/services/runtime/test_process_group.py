"""A command with all its processes: signals reach it, and nothing of it outlives the one who started it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from services.runtime import process_group

DEADLINE_S = 20.0
T = TypeVar("T")
ENV = dict(os.environ)
LEAVES_A_CHILD = "sleep 1000 & echo $! > child; exit 3"
STAYS = "sleep 1000 & echo $! > child; wait"
IGNORES = "trap '' TERM; echo $$ > child; while :; do sleep 1000; done"
ENDS_WELL = "trap 'exit 7' TERM; echo $$ > child; while :; do sleep 0.01; done"


def shell(folder: Path, script: str) -> list[str]:
    return ["/bin/sh", "-c", f"cd {folder}; {script}"]


async def until(holds: Callable[[], T]) -> T:
    """What it says as soon as it is something."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if said := holds():
                return said
            await asyncio.sleep(0.01)


async def child_of(folder: Path) -> int:
    """The process that a script named, once it has."""
    file = folder / "child"
    return int(await until(lambda: file.exists() and file.read_text().strip()) or 0)


async def until_gone(pid: int) -> None:
    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (ProcessLookupError, FileNotFoundError):
            return True

    await until(gone)


async def test_a_command_that_ends_leaves_none_of_its_processes(tmp_path: Path) -> None:
    assert await process_group.run(shell(tmp_path, LEAVES_A_CHILD), ENV) == 3
    await until_gone(await child_of(tmp_path))


async def test_a_signal_is_passed_on_and_the_command_ends_in_its_own_way(tmp_path: Path) -> None:
    running = asyncio.create_task(process_group.run(shell(tmp_path, ENDS_WELL), ENV))
    await child_of(tmp_path)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, DEADLINE_S) == 7


async def test_what_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    running = asyncio.create_task(process_group.run(shell(tmp_path, IGNORES), ENV, stop_timeout_s=0.05))
    await child_of(tmp_path)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, DEADLINE_S) == -signal.SIGKILL


async def test_a_second_signal_ends_the_wait(tmp_path: Path) -> None:
    running = asyncio.create_task(process_group.run(shell(tmp_path, IGNORES), ENV, stop_timeout_s=3_600))
    await child_of(tmp_path)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert await asyncio.wait_for(running, DEADLINE_S) == -signal.SIGKILL


@pytest.mark.parametrize("starter_dies", [False, True])
async def test_shared_memory_of_what_was_killed_is_removed(tmp_path: Path, starter_dies: bool) -> None:
    shares = (
        "import os, pathlib, time; from multiprocessing.shared_memory import SharedMemory; "
        "made = SharedMemory(create=True, size=64); pathlib.Path('child').write_text(made.name); "
        f"{'time.sleep(1000)' if starter_dies else 'os.kill(os.getpid(), 9)'}"
    )
    starts = (
        "import asyncio, os; from services.runtime import process_group as it; "
        f"asyncio.run(it.run({[sys.executable, '-c', shares]!r}, os.environ))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", starts, cwd=tmp_path, env=ENV | {"PYTHONPATH": path}
    )
    file = tmp_path / "child"
    name = str(await until(lambda: file.exists() and file.read_text()))
    if starter_dies:
        starter.kill()
    await starter.wait()
    await until(lambda: not Path("/dev/shm", name.lstrip("/")).exists())


async def test_who_gives_up_waiting_leaves_nothing_behind(tmp_path: Path) -> None:
    running = asyncio.create_task(process_group.run(shell(tmp_path, STAYS), ENV))
    child = await child_of(tmp_path)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until_gone(child)


async def test_a_starter_that_is_killed_takes_the_whole_group_with_it(tmp_path: Path) -> None:
    code = (
        "import asyncio, os; from services.runtime import process_group as it; "
        f"asyncio.run(it.run({shell(tmp_path, STAYS)!r}, os.environ))"
    )
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.DEVNULL)
    child = await child_of(tmp_path)
    starter.kill()
    await starter.wait()
    await until_gone(child)


async def test_a_command_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        await process_group.run(["/no/such/command"], ENV)
