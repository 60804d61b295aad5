"""Runs side by side: results in the order of their tasks, and no process that outlives who asked."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from replay.bench.runs import players

ASKS = """
import sys, time
from tests.replay.bench.test_runs import waits_for
from replay.bench.runs import players
if __name__ == "__main__":
    with players(2, waits_for) as play_all:
        play_all([sys.argv[1]], lambda _number, _result: None)
"""


def doubled(number: int) -> int:
    return 2 * number


def waits_for(path: str) -> None:
    """Tell who runs here, then stay until somebody ends this."""
    os.write(os.open(path, os.O_WRONLY), b"%d\n" % os.getpid())
    signal.pause()


def test_results_are_in_the_order_of_the_tasks_and_each_is_told_with_its_number() -> None:
    for jobs in (1, 2):
        told: dict[int, int] = {}
        with players(jobs, doubled) as play_all:
            assert play_all([3, 1, 2], told.__setitem__) == [6, 2, 4]
        assert told == {0: 6, 1: 2, 2: 4}


def test_workers_end_when_who_asked_is_killed(tmp_path: Path) -> None:
    pipe, script = tmp_path / "pid", tmp_path / "asks.py"
    os.mkfifo(pipe)
    script.write_text(ASKS)
    with subprocess.Popen(
        [sys.executable, str(script), str(pipe)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    ) as asking:
        with pipe.open() as told:  # Opens when the worker does; ends when the worker is gone.
            worker = int(told.readline())
            asking.kill()
            assert told.read() == ""
        assert worker != asking.pid
