"""Runs in another Python: the same results in the same order, and what goes wrong over there is said here."""

import os
import shutil
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from replay.bench.far import FarError, engine_python, far_players

PYTHON = Path(sys.executable)


class Work(msgspec.Struct, frozen=True):
    number: int
    names: tuple[str, ...] = ()


class Worked(msgspec.Struct, frozen=True):
    pid: int
    square: int
    names: tuple[str, ...]


def work(task: Work) -> Worked:
    """What a process over there does."""
    print("this is said on stdout, where answers go")
    if task.number < 0:
        raise ValueError(f"{task.number} has no root")
    if task.number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return Worked(os.getpid(), task.number**2, task.names)


def test_results_come_in_the_order_of_tasks_from_other_processes() -> None:
    done: dict[int, Worked] = {}
    tasks = [Work(number, (f"n{number}",)) for number in range(7)]

    with far_players(PYTHON, 2, work) as play:
        found = play(tasks, done.__setitem__)

    assert [(one.square, one.names) for one in found] == [(number**2, (f"n{number}",)) for number in range(7)]
    assert [done[number] for number in range(7)] == found
    assert os.getpid() not in {one.pid for one in found}


def test_processes_are_gone_afterwards() -> None:
    with far_players(PYTHON, 2, work) as play:
        pids = {one.pid for one in play([Work(number) for number in range(4)], lambda _number, _one: None)}

    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_fails_over_there_is_said_here_with_its_traceback() -> None:
    with far_players(PYTHON, 1, work) as play, pytest.raises(FarError, match="ValueError: -3 has no root"):
        play([Work(1), Work(-3)], lambda _number, _one: None)


def test_a_process_that_dies_is_noticed() -> None:
    with far_players(PYTHON, 1, work) as play, pytest.raises(FarError, match=r"ended with -9"):
        play([Work(99)], lambda _number, _one: None)


def test_an_interpreter_that_ends_at_once_is_said_and_hides_nothing() -> None:
    """Its pipe is broken by the time that it is closed."""
    false = shutil.which("false")
    assert false is not None
    with far_players(Path(false), 1, work) as play, pytest.raises(FarError, match="ended with 1"):
        play([Work(1)] * 50, lambda _number, _result: None)


def test_without_an_environment_there_is_no_python(tmp_path: Path) -> None:
    assert engine_python(tmp_path / "python") is None
    assert engine_python(PYTHON) == PYTHON
