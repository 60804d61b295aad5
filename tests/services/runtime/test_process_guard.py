"""Who is killed when a group ends: all but the trackers that clean up behind the rest, which have a little while."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from services.runtime import process_guard
from services.runtime.process_guard import KILL_LOOKS, TRACKER, TRACKERS_LOOKS, end_group

GROUP = 77
WORKER, STARTING, OTHERS = 101, 102, 103


class Table:
    """Processes as /proc shows them; who is killed is gone. `at_look` is what happens before a look."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.killed: list[int] = []
        self.looks = 0
        self.at_look: dict[int, Callable[[], object]] = {}

    def show(self, pid: int, command: bytes, *, group: int = GROUP, state: str = "S") -> None:
        (self.proc / str(pid)).mkdir(exist_ok=True)
        (self.proc / str(pid) / "stat").write_text(f"{pid} (a name) {state} 1 {group} 0")
        (self.proc / str(pid) / "cmdline").write_bytes(command)

    def hide(self, pid: int) -> None:
        for name in ("stat", "cmdline"):
            (self.proc / str(pid) / name).unlink()
        (self.proc / str(pid)).rmdir()

    def kill(self, pid: int, _signal: int) -> None:
        self.killed.append(pid)
        self.hide(pid)

    def wait(self, _seconds: float) -> None:
        self.looks += 1
        self.at_look.get(self.looks, lambda: None)()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    made = Table(tmp_path)
    (tmp_path / "self").touch()
    monkeypatch.setattr(process_guard, "PROC", tmp_path)
    monkeypatch.setattr(process_guard.os, "kill", made.kill)
    monkeypatch.setattr(process_guard.time, "sleep", made.wait)
    return made


def test_the_group_is_killed_and_nobody_else(table: Table) -> None:
    table.show(WORKER, b"worker")
    table.show(OTHERS, b"worker", group=GROUP + 1)
    table.show(os.getpid(), b"guard")
    end_group(GROUP)
    assert table.killed == [WORKER]


def test_a_tracker_ends_by_itself(table: Table) -> None:
    table.show(WORKER, b"worker")
    table.show(STARTING, b"python -c from " + TRACKER)
    table.at_look = {3: lambda: table.hide(STARTING)}
    end_group(GROUP)
    assert table.killed == [WORKER]


def test_a_tracker_that_is_just_being_started_ends_by_itself_too(table: Table) -> None:
    """Amid its exec a process shows no command; the one who started it may be dead already."""
    table.show(WORKER, b"worker")
    table.show(STARTING, b"")
    table.at_look = {
        1: lambda: table.show(STARTING, b"python -c from " + TRACKER),
        3: lambda: table.hide(STARTING),
    }
    end_group(GROUP)
    assert table.killed == [WORKER]


def test_what_was_being_started_is_killed_once_it_is_seen_to_be_no_tracker(table: Table) -> None:
    table.show(STARTING, b"")
    table.at_look = {1: lambda: table.show(STARTING, b"worker")}
    end_group(GROUP)
    assert table.killed == [STARTING]


@pytest.mark.parametrize("command", [b"", TRACKER])
def test_patience_has_an_end(table: Table, command: bytes) -> None:
    table.show(STARTING, command)
    end_group(GROUP)
    assert table.killed == [STARTING]
    assert table.looks == TRACKERS_LOOKS + 1


def test_what_cannot_be_killed_holds_nobody_up_for_ever(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_guard.os, "kill", lambda _pid, _signal: None)
    table.show(WORKER, b"worker")
    end_group(GROUP)
    assert table.looks == TRACKERS_LOOKS + KILL_LOOKS
