"""Whether the log takes what this holder says: the one condition on which the gateway serves without it."""

import asyncio
import time
from typing import Final, Protocol

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
        self._down: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_failing(self) -> bool:
        """Whether what was said last is not taken, down or not yet."""
        return self._writer.down_since is not None

    @property
    def is_down(self) -> bool:
        """Now."""
        since = self._writer.down_since
        return since is not None and time.monotonic() - since >= self._after_s

    @property
    def down(self) -> "asyncio.Future[None]":
        """Done once the log is down; a new one after it recovered."""
        if self._down.done() and not self.is_down:
            self._down = asyncio.get_running_loop().create_future()
        return self._down

    async def watch(self) -> None:
        """Tell those who wait on `down`. Never ends."""
        while True:
            if self.is_down and not self._down.done():
                self._down.set_result(None)
            await asyncio.sleep(WATCH_S)
