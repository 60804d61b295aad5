"""Settings that change while the program runs: noticed by SIGHUP, or when the file was written."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from events.base import LogError
from services.runtime.config import Config, ConfigError

LOOK_EVERY_S = 1.0

logger = logging.getLogger(__name__)


async def follow(load: Callable[[], Config], file: Path | None, take: Callable[[Config], Awaitable[object]]) -> None:
    """Load the settings anew at every SIGHUP and whenever `file` was written, and give them to `take`. What does
    not hold is said and changes nothing. Never ends."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    try:
        written = _written(file)
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await asked.wait()
            except TimeoutError:
                now = _written(file)
                if now == written:
                    continue
                written = now
            asked.clear()
            await _reload(load, take)
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def _reload(load: Callable[[], Config], take: Callable[[Config], Awaitable[object]]) -> None:
    try:
        taken = await take(load())
    except (ConfigError, LogError) as error:
        logger.error("the settings were not taken, those before stay: %s", error)
        return
    logger.info("settings loaded anew: %s", taken)


def _written(file: Path | None) -> tuple[int, int] | None:
    """What changes when a file is written or exchanged; None while it is not there."""
    if file is None:
        return None
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
