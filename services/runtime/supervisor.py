"""Keeps child processes running: starts them again when they fail, gives up when they keep failing, leaves no orphan.

Each start is independent: a child finds its own way back (an actor from its snapshot and the log). A child that ends
with exit code 0 has done its work and is not started again.
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from services.runtime.embedded import tethered

STOP_WAIT_S: Final = 15.0
"""After SIGTERM; what still runs then gets SIGKILL."""
FENCED: Final = 3
SAID: Final = {2: "bad input or environment: see its own line above", FENCED: "another instance has taken it over"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Child:
    """A process to keep running. `env` is its whole environment."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RestartLimits:
    """More than `restarts_max` restarts of one child within `window_s` are too many. The pause before a restart
    doubles from `pause_first_s` to `pause_max_s`. A child that ran for `settled_s` was well: what it was started
    again for before does not count any more."""

    restarts_max: int = 10
    window_s: float = 60.0
    settled_s: float = 3.0
    pause_first_s: float = 0.1
    pause_max_s: float = 5.0


@dataclass(slots=True)
class ChildState:
    """What became of a child so far. `pid` 0: it does not run now. `exit_code` is the last one, None before."""

    name: str
    pid: int = 0
    restarts: int = 0
    exit_code: int | None = None
    recent: deque[float] = field(default_factory=deque, repr=False)


class ChildGaveUp(Exception):
    """A child keeps failing."""

    exit_code: ClassVar[int] = 1

    def __init__(self, name: str, restarts: int, last_exit: int) -> None:
        super().__init__(name, restarts, last_exit)
        self.name, self.restarts, self.last_exit = name, restarts, last_exit

    def __str__(self) -> str:
        return f"{self.name} was started again {self.restarts} times and keeps failing: {_why(self.last_exit)}"


class Supervisor:
    """Runs `children` until `stop` is set or one of them keeps failing; then all are stopped, the last one first."""

    def __init__(
        self, children: Sequence[Child], *, limits: RestartLimits | None = None,
        on_change: Callable[[ChildState], None] = lambda _state: None,
    ) -> None:  # fmt: skip
        self._children, self._limits, self._on_change = children, limits or RestartLimits(), on_change
        self.states = {child.name: ChildState(child.name) for child in children}

    async def run(self, stop: asyncio.Event) -> None:
        """Returns when all have ended after `stop`, or by themselves with exit code 0. Raises ChildGaveUp."""
        keeping = [asyncio.create_task(self._keep(child), name=child.name) for child in self._children]
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            left: set[asyncio.Task[object]] = {*keeping}
            while left and not stopping.done():
                done, _ = await asyncio.wait({*left, stopping}, return_when=asyncio.FIRST_COMPLETED)
                left -= done
                for task in done - {stopping}:
                    await task  # Raises what made it give up.
        finally:
            stopping.cancel()
            for task in reversed(keeping):
                task.cancel()
                await asyncio.wait((task,))

    async def _keep(self, child: Child) -> None:
        """Run one child again and again. Cancelling this stops the child and waits for its end."""
        state = self.states[child.name]
        while True:
            started_s = time.monotonic()
            code = await self._run_once(child, state)
            if code == 0:
                logger.info("%s has ended", child.name)
                return
            if time.monotonic() - started_s >= self._limits.settled_s:
                state.recent.clear()
            pause_s = self._pause(state, code)
            logger.warning("%s: %s; started again in %.1f s", child.name, _why(code), pause_s)
            await asyncio.sleep(pause_s)
            state.restarts += 1

    async def _run_once(self, child: Child, state: ChildState) -> int:
        process = await asyncio.create_subprocess_exec(*tethered(list(child.command)), env=dict(child.env))
        state.pid = process.pid
        self._on_change(state)
        try:
            state.exit_code = await process.wait()
        except asyncio.CancelledError:
            state.exit_code = await _end(process, child.name)
            raise
        finally:
            state.pid = 0
            self._on_change(state)
        return state.exit_code

    def _pause(self, state: ChildState, code: int) -> float:
        """How long to wait before the next start. Raises ChildGaveUp."""
        limits, now_s = self._limits, time.monotonic()
        while state.recent and now_s - state.recent[0] > limits.window_s:
            state.recent.popleft()
        if len(state.recent) >= limits.restarts_max:
            raise ChildGaveUp(state.name, state.restarts, code)
        pause_s = limits.pause_first_s * 2.0 ** len(state.recent)
        state.recent.append(now_s)
        return min(pause_s, limits.pause_max_s)


async def _end(process: asyncio.subprocess.Process, name: str) -> int:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_WAIT_S):
            return await process.wait()
    except TimeoutError:
        logger.error("%s did not stop within %.0f s and was killed", name, STOP_WAIT_S)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()


def _why(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}" + (f" ({SAID[code]})" if code in SAID else "")
