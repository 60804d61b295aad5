"""Children are started again, given up, stopped and never orphaned. Each child is a real process."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.runtime.supervisor import Child, ChildGaveUp, RestartLimits, Supervisor

QUICK = RestartLimits(restarts_max=3, pause_first_s=0.01, pause_max_s=0.02)
SLEEPS = "import time; time.sleep(60)"


def child(name: str, code: str) -> Child:
    return Child(name=name, command=(sys.executable, "-I", "-S", "-c", code), env=dict(os.environ))


async def until_runs(supervisor: Supervisor, name: str, *, other_than: int = 0) -> int:
    async with asyncio.timeout(10):
        while supervisor.states[name].pid in (0, other_than):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return supervisor.states[name].pid


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (OSError, IndexError):
        return False


async def test_a_killed_child_is_started_again_and_the_others_go_on() -> None:
    stop = asyncio.Event()
    supervisor = Supervisor([child("a", SLEEPS), child("b", SLEEPS)], limits=QUICK)
    run = asyncio.create_task(supervisor.run(stop))
    first, other = await until_runs(supervisor, "a"), await until_runs(supervisor, "b")
    os.kill(first, signal.SIGKILL)
    second = await until_runs(supervisor, "a", other_than=first)
    assert supervisor.states["a"].restarts == 1
    assert supervisor.states["b"].pid == other
    stop.set()
    await asyncio.wait_for(run, 10)
    assert not any(is_alive(pid) for pid in (first, second, other))


async def test_a_child_that_keeps_failing_is_given_up_and_the_rest_is_stopped() -> None:
    supervisor = Supervisor([child("good", SLEEPS), child("bad", "raise SystemExit(2)")], limits=QUICK)
    run = asyncio.create_task(supervisor.run(asyncio.Event()))
    good = await until_runs(supervisor, "good")
    with pytest.raises(ChildGaveUp, match="bad was started again 3 times and keeps failing: exit code 2"):
        await asyncio.wait_for(run, 10)
    assert not is_alive(good)
    assert supervisor.states["bad"].exit_code == 2


async def test_a_child_that_was_well_in_between_is_never_given_up() -> None:
    stop = asyncio.Event()
    at_once = RestartLimits(restarts_max=1, pause_first_s=0.01, settled_s=0)
    supervisor = Supervisor([child("a", SLEEPS)], limits=at_once)
    run = asyncio.create_task(supervisor.run(stop))
    pid = 0
    for _ in range(4):
        pid = await until_runs(supervisor, "a", other_than=pid)
        os.kill(pid, signal.SIGKILL)
    await until_runs(supervisor, "a", other_than=pid)
    assert supervisor.states["a"].restarts == 4
    stop.set()
    await asyncio.wait_for(run, 10)


async def test_a_child_that_ends_well_is_not_started_again() -> None:
    supervisor = Supervisor([child("once", "pass")], limits=QUICK)
    await asyncio.wait_for(supervisor.run(asyncio.Event()), 10)
    assert (supervisor.states["once"].restarts, supervisor.states["once"].exit_code) == (0, 0)


async def test_a_stop_lets_children_end_in_good_order(tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = (
        "import signal, sys, time, pathlib\n"
        f"said = pathlib.Path({str(said)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (said.write_text('stopped'), sys.exit(0)))\n"
        "said.write_text('ready')\n"
        "time.sleep(60)"
    )
    stop = asyncio.Event()
    supervisor = Supervisor([child("polite", code)], limits=QUICK)
    run = asyncio.create_task(supervisor.run(stop))
    async with asyncio.timeout(10):
        while not said.exists() or said.read_text() != "ready":  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    stop.set()
    await asyncio.wait_for(run, 10)
    assert said.read_text() == "stopped"
    assert supervisor.states["polite"].exit_code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_children_end_with_a_supervisor_that_is_killed() -> None:
    code = f"""
import asyncio, os, sys
from services.runtime.supervisor import Child, Supervisor
child = Child(name="a", command=(sys.executable, "-c", {SLEEPS!r}), env=dict(os.environ))
async def main():
    supervisor = Supervisor([child], on_change=lambda state: print(state.pid, flush=True))
    await supervisor.run(asyncio.Event())
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        orphan = os.pidfd_open(pid)
        parent.kill()
    # A pidfd becomes readable when its process has ended.
    import select

    ended, _, _ = select.select([orphan], [], [], 10)
    os.close(orphan)
    assert ended
