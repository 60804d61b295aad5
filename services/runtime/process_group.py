"""One command with all its processes: signals reach it, and nothing of it outlives the one who started it.

vLLM's engine core outlives a SIGKILL of its server. So the command runs below a guard (process_guard.py), a tiny
process whose group it shares: the guard hands signals on, and ends the group when the starter is gone. When the command
ends, the starter ends what is left of the group.
"""

import asyncio
import errno
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from services.runtime import process_guard
from services.runtime.process_guard import SIGNALS, end_group

STOP_TIMEOUT_S: Final = 60.0
"""How long a command may take to end in good order; a second signal ends the wait."""


async def run(command: Sequence[str], env: Mapping[str, str], *, stop_timeout_s: float = STOP_TIMEOUT_S) -> int:
    """Run it to its end; its exit status (below 0: the signal that ended it). SIGINT, SIGTERM and SIGHUP of this
    process are passed on to it once; what is left after `stop_timeout_s`, or at a second one, is killed. Raises OSError
    when there is no such command."""
    if shutil.which(command[0], path=env.get("PATH")) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    stops: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for each in SIGNALS:
        loop.add_signal_handler(each, stops.put_nowait, each)
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", process_guard.__file__, *command,
            env=dict(env), stdin=asyncio.subprocess.PIPE, start_new_session=True,
        )
    )  # fmt: skip
    stopping = asyncio.create_task(_stop(starting, stops, stop_timeout_s))
    try:
        return await (await asyncio.shield(starting)).wait()
    finally:
        guard = await starting  # Who is cancelled while it starts leaves nothing of it, either.
        stopping.cancel()
        await asyncio.to_thread(end_group, guard.pid)
        await guard.wait()
        for each in SIGNALS:
            loop.remove_signal_handler(each)


async def _stop(
    starting: "asyncio.Future[asyncio.subprocess.Process]", stops: "asyncio.Queue[signal.Signals]", timeout_s: float
) -> None:
    guard = await asyncio.shield(starting)
    wanted = await stops.get()
    with suppress(ProcessLookupError):
        guard.send_signal(wanted)
    with suppress(TimeoutError):
        await asyncio.wait_for(stops.get(), timeout_s)
    await asyncio.to_thread(end_group, guard.pid)
