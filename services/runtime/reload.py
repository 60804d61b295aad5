"""Settings that change while the program runs: noticed by SIGHUP, or when the file was written."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from events.base import LogError
from services.runtime.config import Config, ConfigError

LOOK_EVERY_S = 1.0
LIVE = "engines"
"""The one setting that is taken without a restart."""

logger = logging.getLogger(__name__)


async def follow(load: Callable[[], Config], file: Path | None, take: Callable[[Config], Awaitable[object]]) -> None:
    """Load the settings anew at every SIGHUP and whenever `file` was written, and give them to `take`. What does
    not hold is said and changes nothing; what was changed beside the engine list is said as well. Never ends."""
    before = load()
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
            await _reload(before, load, take)
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def _reload(before: Config, load: Callable[[], Config], take: Callable[[Config], Awaitable[object]]) -> None:
    try:
        config = load()
        await take(config)
    except (ConfigError, LogError) as error:
        logger.error("the settings were not taken, those before stay: %s", error)
        return
    ids = ", ".join(engine.id for engine in config.engines)
    logger.info("settings loaded anew; engines: %s", ids or "none")
    late = [key for key in config.__struct_fields__ if key != LIVE and getattr(config, key) != getattr(before, key)]
    if late:
        logger.warning("changed, but taken at the next start only: %s", ", ".join(late))


def _written(file: Path | None) -> tuple[int, int] | None:
    """What changes when a file is written or exchanged; None while it is not there."""
    if file is None:
        return None
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
