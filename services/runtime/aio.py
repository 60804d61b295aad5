"""How every command enters the event loop: uvloop where there is one (it halves a round trip to NATS)."""

import asyncio
import gc
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

GARBAGE_EVERY: Final = 10_000
"""Objects made and kept between two looks for cycles (Python's own: 700, which is a few requests)."""

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end; Ctrl-C cancels it and is raised as KeyboardInterrupt."""
    # What is loaded by now stays: no collection walks it again.
    gc.freeze()
    gc.set_threshold(GARBAGE_EVERY)
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)
