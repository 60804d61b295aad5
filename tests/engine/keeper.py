"""Runs a command in a process group of its own and ends all of the group: `python keeper.py COMMAND...`.

vLLM's engine core outlives a SIGKILL of its API server, and an interrupted test run must leave nothing behind: the
keeper acts when the command ends, and when its own stdin does, which the kernel closes whatever becomes of the tests.
It says the group's id in one line on stdout.
"""

import subprocess
import sys
import threading

from services.runtime.process_guard import end_group

STOP_TIMEOUT_S = 20.0


def main(command: list[str]) -> int:
    """Returns the command's exit status, when nothing of its group is left."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
    print(server.pid, flush=True)
    threading.Thread(target=_end_with_stdin, args=(server,), daemon=True).start()
    status = server.wait()
    end_group(server.pid)
    return status


def _end_with_stdin(server: "subprocess.Popen[bytes]") -> None:
    sys.stdin.read()
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        end_group(server.pid)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
