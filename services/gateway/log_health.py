"""Whether the log takes what this holder says: the one condition on which the gateway serves without it."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

WATCH_S: Final = 0.02
"""How late the news may be for those who wait."""


class Writer(Protocol):
    """Of the fact writer, what matters here."""

    @property
    def down_since(self) -> float | None:
        """`time.monotonic()` since when the log takes nothing; None = fine."""
        ...


class LogHealth:
    """Down = nothing was acknowledged for `after_s` seconds. Recovers by itself."""

    def __init__(self, writer: Writer, *, after_s: float) -> None:
        self._writer, self._after_s = writer, after_s
        self._waking: dict[Callable[..., None], None] = {}

    @property
    def is_failing(self) -> bool:
        """Whether what was said last is not taken, down or not yet."""
        return self._writer.down_since is not None

    @property
    def is_down(self) -> bool:
        """Now."""
        since = self._writer.down_since
        return since is not None and time.monotonic() - since >= self._after_s

    async def up_until(self, done: "asyncio.Future[Any]", *, timeout_s: float | None = None) -> None:
        """Return when `done` is done, the log is down, or the time has passed; who waits looks which it was.

        What `asyncio.wait` does, without its sets: every request in the house waits here twice."""
        if done.done() or self.is_down:
            return
        loop = asyncio.get_running_loop()
        woken = loop.create_future()

        def wake(_done: object = None) -> None:
            if not woken.done():
                woken.set_result(None)

        timer = loop.call_later(timeout_s, wake) if timeout_s is not None else None
        self._waking[wake] = None
        done.add_done_callback(wake)
        try:
            await woken
        finally:
            done.remove_done_callback(wake)
            del self._waking[wake]
            if timer is not None:
                timer.cancel()

    async def watch(self) -> None:
        """Wake those who wait while the log goes down. Never ends."""
        while True:
            if self.is_down:
                for wake in self._waking:
                    wake()
            await asyncio.sleep(WATCH_S)
