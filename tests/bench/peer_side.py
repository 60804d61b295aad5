"""What a peer's script needs (peer.py), with nothing but the standard library: it runs in the peer's environment."""

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def resident_bytes() -> int:
    """Memory of this process that is in use: what the allocator only kept is given back first."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def spoken() -> int:
    """Where to answer; from now on whatever prints to stdout prints to stderr. To be called before a peer's imports."""
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor


def answer(descriptor: int, one_round: Callable[[], dict[str, float]]) -> None:
    """Be ready, and answer rounds until nobody asks any more. What is there by now is left alone by the garbage
    collector: it is not what is measured."""
    gc.freeze()
    with os.fdopen(descriptor, "w") as answers:
        print("ready", file=answers, flush=True)
        for _ in sys.stdin:
            print(json.dumps(one_round()), file=answers, flush=True)
