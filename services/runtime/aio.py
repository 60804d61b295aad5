"""How every command enters the event loop: uvloop where there is one (it halves a round trip to NATS)."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end; Ctrl-C cancels it and is raised as KeyboardInterrupt."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)
