"""How fast an engine goes while a test looks: slowly enough that what must happen amid an answer does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.engine.vllm_server import VllmServer

SLICE_S = 0.05
BETWEEN_SLICES_S = 0.25
QUIET_TIMEOUT_S = 20.0


@asynccontextmanager
async def slow_motion(server: VllmServer) -> AsyncIterator[None]:
    """In the block the engine runs for a slice, then stands for several. A tiny model says thousands of tokens in
    seconds, and a busy machine may hold up its clients, the log and its own HTTP server for as long. Afterwards it runs
    as ever. It must not be killed in the block."""
    going = asyncio.create_task(_in_slices(server))
    try:
        yield
        assert not going.done(), "the engine ran in slices until the end"
    finally:
        going.cancel()
        await asyncio.wait([going])
        server.thaw()


async def _in_slices(server: VllmServer) -> None:
    while True:
        server.freeze()
        await asyncio.sleep(BETWEEN_SLICES_S)
        server.thaw()
        await asyncio.sleep(SLICE_S)


async def quiet(server: VllmServer) -> None:
    """Until the engine runs nothing; TimeoutError when it goes on."""
    async with asyncio.timeout(QUIET_TIMEOUT_S):
        while await asyncio.to_thread(server.metric, "vllm:num_requests_running"):
            pass
