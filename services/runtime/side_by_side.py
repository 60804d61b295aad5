"""Several endless pieces of work in one process, until somebody says stop."""

import asyncio
from collections.abc import Coroutine
from typing import Any


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
        for task in (*tasks, stopping):
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)
