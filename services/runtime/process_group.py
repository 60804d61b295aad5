"""One command with all its processes: signals reach it, and nothing of it outlives the one who started it.

vLLM's engine core outlives a SIGKILL of its server, so the command gets a process group of its own, which is ended
whole. A guard, a tiny process beside it, does that too when the starter itself is killed: it waits at a pipe that the
kernel closes then.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_TIMEOUT_S: Final = 60.0
"""How long a command may take to end in good order; a second signal ends the wait."""
DONE: Final = b"."
_GUARD: Final = (
    "import os, signal, sys\n"
    "if not os.read(0, 1):\n"
    "    try: os.killpg(int(sys.argv[1]), signal.SIGKILL)\n"
    "    except ProcessLookupError: pass\n"
)


async def run(command: Sequence[str], env: Mapping[str, str], *, stop_timeout_s: float = STOP_TIMEOUT_S) -> int:
    """Run it to its end; its exit status (below 0: the signal that ended it). SIGINT, SIGTERM and SIGHUP of this
    process are passed on to it once; what is left after `stop_timeout_s`, or at a second one, is killed. Raises OSError
    when it cannot be started."""
    process = await asyncio.create_subprocess_exec(
        *command, env=dict(env), stdin=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    stops: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for each in SIGNALS:
        loop.add_signal_handler(each, stops.put_nowait, each)
    stopping = asyncio.create_task(_stop(process, stops, stop_timeout_s))
    try:
        async with _guarded(process.pid):
            try:
                return await process.wait()
            finally:
                _kill_group(process.pid)
                await process.wait()
    finally:
        stopping.cancel()
        for each in SIGNALS:
            loop.remove_signal_handler(each)


async def _stop(process: asyncio.subprocess.Process, stops: "asyncio.Queue[signal.Signals]", timeout_s: float) -> None:
    wanted = await stops.get()
    with suppress(ProcessLookupError):
        process.send_signal(wanted)
    with suppress(TimeoutError):
        await asyncio.wait_for(stops.get(), timeout_s)
    _kill_group(process.pid)


@asynccontextmanager
async def _guarded(group: int) -> AsyncIterator[None]:
    guard = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", _GUARD, str(group), stdin=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        # The group is gone: its number may be another's tomorrow.
        await guard.communicate(DONE)


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
