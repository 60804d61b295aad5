"""Several endless pieces of work in one process, until somebody says stop."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

CANCEL_AGAIN_S: Final = 2.0


async def run_until(stop: asyncio.Event, *works: Coroutine[Any, Any, None]) -> None:
    """Run side by side until `stop` is set. The first that fails ends all, and its error is raised as it is."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work) for work in works]
    stopping: asyncio.Task[Any] = asyncio.create_task(stop.wait())
    try:
        left = set(tasks)
        while left and not stopping.done():
            done, _ = await asyncio.wait({*left, stopping}, return_when=asyncio.FIRST_COMPLETED)
            left -= done
            for task in done:
                task.result()
    finally:
        await _ended({*tasks, stopping})


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel until all have ended. Once is not enough: a client library may swallow it (redis-py was seen to),
    and its caller then goes on as if nothing had been said."""
    while tasks:
        for task in tasks:
            task.cancel()
        done, tasks = await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)
        for task in done:
            _ = task.cancelled() or task.exception()  # What went wrong first is raised; the others are only ended.
