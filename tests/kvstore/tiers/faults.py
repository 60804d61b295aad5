"""A file system that fails, tears or ends at any of its steps, and turns that are taken at them.

`Steps` stands before every call that the SSD tier makes. `crash_at` ends the process at a step: that call and all later
ones raise `Crash`; a write is torn (half of it arrives). `lose_power` is worse: what was not fsynced is lost or torn.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from kvstore.tiers.files import Files

STEPS = ("open_folder", "lock", "names", "create", "reserve", "write", "open_read", "ahead", "read", "sync", "close",
         "rename", "unlink")  # fmt: skip
_OPENING = {"open_folder", "lock", "create", "open_read"}


class Crash(BaseException):
    """The process ends here. Not an Exception: nobody handles the end of the process."""


class Steps:
    """Behaves as `Files`. `before(step name, number)` is called before each step and may raise."""

    def __init__(self, before: Callable[[str, int], None] = lambda _name, _number: None) -> None:
        self.before, self.crash_at = before, -1
        self.count = 0
        self.open: dict[int, str] = {}
        """Descriptors that are open now, and the step that opened them."""
        self.unsynced: set[str] = set()
        """Names in the folder whose bytes a loss of power may take."""
        self.unnamed: set[str] = set()
        """Names that a loss of power may take from their files: the folder was not fsynced since."""
        self._written: dict[int, str] = {}
        self.dead = False
        self._files, self._lock = Files(), threading.Lock()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        assert name in STEPS, name
        return lambda *args: self._step(name, args)

    def _step(self, name: str, args: tuple[Any, ...]) -> Any:
        with self._lock:
            number, self.count = self.count, self.count + 1
        if self.dead:
            raise Crash
        self.before(name, number)
        if self.dead:
            raise Crash
        if number == self.crash_at:
            if name == "write":
                self._files.write(args[0], _half(args[1]))
            self.dead = True
            raise Crash
        result = getattr(self._files, name)(*args)
        with self._lock:
            self._note(name, args, result)
        return result

    def _note(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name in _OPENING:
            self.open[result[0] if name == "open_read" else result] = name
        match name:
            case "create":
                self._written[result] = args[1]
                self.unsynced.add(args[1])
            case "sync" if args[0] in self._written:
                self.unsynced.discard(self._written[args[0]])
            case "sync":
                self.unnamed.clear()
            case "close":
                del self.open[args[0]]
                self._written.pop(args[0], None)
            case "rename":
                self.unnamed.add(args[2])
                if args[1] in self.unsynced:
                    self.unsynced.add(args[2])
                    self.unsynced.discard(args[1])
            case "unlink":
                self.unsynced.discard(args[1])
            case _:
                pass

    def end(self) -> None:
        """The process is gone: the system closes what it had open, its locks with it."""
        self.dead = True
        for fd in self.open:
            os.close(fd)
        self.open.clear()

    def lose_power(self, folder: Path, random: Random) -> None:
        """After `end`: files that were not fsynced are gone, empty, torn or full of zeros; names that were not
        are the old ones again."""
        for name in sorted(self.unsynced):
            path = folder / name
            if not path.exists():
                continue
            size = path.stat().st_size
            match random.randrange(4):
                case 0:
                    path.unlink()
                case 1:
                    os.truncate(path, 0)
                case 2:
                    os.truncate(path, random.randrange(size + 1))
                case _:
                    begin = random.randrange(size + 1)
                    os.truncate(path, begin)
                    os.truncate(path, size)
        for name in sorted(self.unnamed):
            if random.randrange(2) and (folder / name).exists():
                (folder / name).rename(folder / name.replace(".slice", ".1.tmp"))


def _half(buffers: list[bytes | memoryview]) -> list[bytes]:
    whole = b"".join(bytes(buffer) for buffer in buffers)
    return [whole[: len(whole) // 2]]


class _Worker:
    """A thread that moves only when it is told to."""

    def __init__(self, work: Callable[[], None], back: threading.Semaphore) -> None:
        self.gate, self.done = threading.Semaphore(0), False
        self.error: BaseException | None = None
        self._work, self._back = work, back
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()

    def _main(self) -> None:
        self.gate.acquire()
        try:
            self._work()
        except Crash:
            pass
        except BaseException as error:
            self.error = error
        self.done = True
        self._back.release()


class Turns:
    """Runs workers as threads of which one moves at a time: at each `pause` a choice says who goes on. So an
    interleaving follows from its choices alone."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self._choose = choose
        self._workers: dict[threading.Thread, _Worker] = {}
        self._back = threading.Semaphore(0)

    def pause(self) -> None:
        """In a worker: let another one go on (or this one again). Elsewhere nothing."""
        worker = self._workers.get(threading.current_thread())
        if worker is not None:
            self._back.release()
            worker.gate.acquire()

    def run(self, works: list[Callable[[], None]]) -> None:
        """Until all have ended; raises what a worker raised, Crash aside."""
        workers = [_Worker(work, self._back) for work in works]
        self._workers = {worker.thread: worker for worker in workers}
        while running := [worker for worker in workers if not worker.done]:
            running[self._choose(len(running))].gate.release()
            self._back.acquire()
        self._workers = {}
        for worker in workers:
            worker.thread.join()
            if worker.error is not None:
                raise worker.error
