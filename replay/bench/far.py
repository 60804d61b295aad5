"""Runs in another Python: where vLLM is installed, tasks are read and results written as lines of JSON.

    python -m replay.bench.far        reads one task a line from stdin, writes one answer a line to stdout

`far_players` starts such processes and has the shape of `replay.bench.runs.players`: a run is a function of its task,
so neither where it is done nor with how many others changes its result. What goes wrong in one ends the whole, with the
traceback from over there.
"""

import gc
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryFile
from typing import IO, Any, ClassVar, Final, TypeVar, get_type_hints

import msgspec

from replay.bench.runs import Player

T = TypeVar("T")
R = TypeVar("R")

ROOT: Final = Path(__file__).resolve().parents[2]
"""What the other Python finds our packages in."""
ENGINE_PYTHON: Final = ROOT / ".venv-engine" / "bin" / "python"
"""Where `make test-engine` puts vLLM's environment: beside the checkout's own."""
END_TIMEOUT_S: Final = 10.0
ASK_RELEASE: Final = """
from importlib.metadata import distributions
print(*sorted(f"{one.name} {one.version}" for one in distributions() if one.name.startswith("vllm")))
"""
GC_THRESHOLD: Final = 200_000
"""Objects between two collections over there: a scheduler makes many, and no cycles to speak of."""


class FarError(Exception):
    """A run over there did not come to its end; `why` is the traceback, or what the process said last."""

    exit_code: ClassVar[int] = 2

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"a run in vLLM's environment failed: {self.why}"


class Asked(msgspec.Struct, frozen=True):
    """Call `play` (module:function) with a task."""

    play: str
    task: msgspec.Raw


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of it: a result, or `why` there is none."""

    result: msgspec.Raw = msgspec.Raw()
    why: str = ""


def engine_python(said: Path | None = None) -> Path | None:
    """The Python that has vLLM: the one said, else the one beside the checkout; None where that is not there."""
    python = said or ENGINE_PYTHON
    return python.absolute() if python.is_file() else None


def vllm_release(python: Path) -> str:
    """The release of vLLM in that Python's environment, "" where there is none. Raises FarError where it is none."""
    try:
        done = subprocess.run(  # noqa: S603 - the Python that the user named
            [python, "-c", ASK_RELEASE], capture_output=True, text=True, timeout=END_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise FarError(str(error)) from error
    return done.stdout.strip()


@contextmanager
def far_players(python: Path, jobs: int, play: Callable[[T], R]) -> Iterator[Player[T, R]]:
    """Somewhere to run tasks by `play` (a function of a module, of one task), `jobs` at a time in as many processes of
    that Python, while the block runs. A player raises FarError when a run fails."""
    processes = [_Process(python) for _ in range(jobs)]
    idle: SimpleQueue[_Process] = SimpleQueue()
    for process in processes:
        idle.put(process)
    threads = ThreadPoolExecutor(jobs)
    try:
        yield partial(_play_all, threads, idle, play)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.end()
        threads.shutdown()


def _play_all(
    threads: ThreadPoolExecutor, idle: "SimpleQueue[_Process]", play: Callable[[T], R], tasks: Sequence[T],
    on_done: Callable[[int, R], None],
) -> list[R]:  # fmt: skip
    kind = get_type_hints(play)["return"]

    def one(task: T) -> R:
        process = idle.get()
        try:
            result: R = msgspec.json.decode(process.ask(play, task), type=kind)
        finally:
            idle.put(process)
        return result

    futures = {threads.submit(one, task): number for number, task in enumerate(tasks)}
    found: dict[int, R] = {}
    for future in as_completed(futures):
        number = futures[future]
        found[number] = future.result()
        on_done(number, found[number])
    return [found[number] for number in range(len(tasks))]


class _Process:
    """One of the other Python. It ends when its stdin does."""

    def __init__(self, python: Path) -> None:
        self._errors = TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._said = subprocess.Popen(  # noqa: S603 - the Python that the user named
            [python, "-m", __name__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def ask(self, play: Callable[[Any], Any], task: object) -> bytes:
        """What came of a task, as JSON."""
        asked = Asked(f"{play.__module__}:{play.__qualname__}", msgspec.Raw(msgspec.json.encode(task)))
        stdin, stdout = self._said.stdin, self._said.stdout
        assert stdin is not None, "it was opened with a pipe"
        assert stdout is not None, "it was opened with a pipe"
        try:
            stdin.write(msgspec.json.encode(asked) + b"\n")
            stdin.flush()
            line = stdout.readline()
        except (BrokenPipeError, ValueError):
            line = b""
        if not line:
            raise FarError(self._last_words())
        answer = msgspec.json.decode(line, type=Answer)
        if answer.why:
            raise FarError(answer.why)
        return bytes(answer.result)

    def end(self) -> None:
        """No more tasks: it is gone when this returns, in the middle of a run if need be."""
        self._said.kill()
        self._said.wait(END_TIMEOUT_S)
        for file in (self._said.stdin, self._said.stdout, self._errors):
            if file is not None:
                with suppress(BrokenPipeError):  # What it had not read when it ended.
                    file.close()

    def _last_words(self) -> str:
        code = self._said.wait(END_TIMEOUT_S)
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        return f"it ended with {code}" + (f": {said}" if said else "")


def serve(asked: IO[bytes], answers: IO[bytes]) -> None:
    """Do one task a line until there are no more."""
    for line in asked:
        try:
            answer = Answer(result=msgspec.Raw(_done(msgspec.json.decode(line, type=Asked))))
        except Exception:  # Whatever it is, it is said over there.
            answer = Answer(why=traceback.format_exc())
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


def _done(asked: Asked) -> bytes:
    module, _, name = asked.play.partition(":")
    play = getattr(import_module(module), name)
    hints = get_type_hints(play)
    kind = next(hint for parameter, hint in hints.items() if parameter != "return")
    return msgspec.json.encode(play(msgspec.json.decode(asked.task, type=kind)))


def main() -> None:
    """Serve stdin. What libraries print goes to stderr: stdout is for answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Who asked is told, and ends this process.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    gc.set_threshold(GC_THRESHOLD)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
