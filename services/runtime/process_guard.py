"""The process below which a command runs: hands signals on to it, and ends their group when the starter is gone.

Run by its path with Python alone (`-I -S`), so it imports nothing of the house. The starter's end is noticed by a pipe
that the kernel closes then. Python's resource trackers are left for last: they remove the shared memory of processes
that were killed, as vLLM's workers are at every end of an engine, and end by themselves when the last of those is gone.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PROC = Path("/proc")
TRACKER = b"multiprocessing.resource_tracker"
LOOK_EVERY_S = 0.02
TRACKERS_LOOKS = 250
"""How many looks, 5 s of them, trackers may take to clean up; then they are killed, too. A machine that stands still
does not look, so its standstill does not count."""
KILL_LOOKS = 50
"""How many more looks what was killed may take to be gone."""


def end_group(group: int) -> None:
    """Kill all processes of a group but this one, trackers after the rest. Blocks until they are gone, or cannot be
    killed. Where there is no /proc all are killed at once, unless this one is among them."""
    for look in range(TRACKERS_LOOKS + KILL_LOOKS):
        if not (members := _members(group)):
            break
        for pid in members:
            if look >= TRACKERS_LOOKS or not _may_be_tracker(pid):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_EVERY_S)
    if group != os.getpgrp() and not (PROC / "self").exists():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _members(group: int) -> list[int]:
    """Processes of the group that run, but for this one."""
    found = []
    for path in PROC.glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text(errors="replace").rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state not in "ZX":
            found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def _may_be_tracker(pid: int) -> bool:
    """Whether it is one, or shows no command: it is just being started then, as one may be, or ends."""
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False
    return not command or TRACKER in command


def _guard(command: Sequence[str]) -> int:
    """Run the command to its end; its exit status, below 0 for the signal that ended it."""
    wanted: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, _frame: FrameType | None) -> None:
        wanted.append(number)
        if child is not None:
            child.send_signal(number)

    def end_with_starter() -> None:
        os.read(0, 1)
        end_group(os.getpgrp())
        os.killpg(0, signal.SIGKILL)

    for each in SIGNALS:
        signal.signal(each, hand_on)
    threading.Thread(target=end_with_starter, daemon=True).start()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the starter's own command
    for number in wanted:
        child.send_signal(number)
    status = child.wait()
    end_group(os.getpgrp())  # Whoever killed it may be gone by now, and nobody else looks after the rest.
    return status


def _end_as(status: int) -> None:
    """End as the command did."""
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    _end_as(_guard(sys.argv[1:]))
