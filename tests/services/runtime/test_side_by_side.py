"""Endless work ends when it is told to, whatever its libraries do with the telling."""

import asyncio

import pytest

from services.runtime import side_by_side
from services.runtime.side_by_side import run_until


async def test_a_work_that_swallows_its_first_cancellation_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "CANCEL_AGAIN_S", 0.01)
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 1:
                    raise

    stop = asyncio.Event()
    run = asyncio.create_task(run_until(stop, stubborn()))
    await asyncio.sleep(0)
    stop.set()
    async with asyncio.timeout(10):
        await run
    assert swallowed == 2


async def test_the_first_error_is_raised_and_the_others_end() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waits")

    async def fails() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await run_until(asyncio.Event(), waits(), fails())
    assert ended == ["waits"]
