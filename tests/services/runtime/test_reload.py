"""Settings that are written while the program runs are taken, and bad ones change nothing."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.runtime import reload
from services.runtime.config import Config, load

WAIT_S = 10.0


@asynccontextmanager
async def followed(file: Path) -> AsyncIterator["asyncio.Queue[Config]"]:
    taken: asyncio.Queue[Config] = asyncio.Queue()

    async def take(config: Config) -> None:
        await taken.put(config)

    task = asyncio.create_task(reload.follow(lambda: load(file), file, take))
    await asyncio.sleep(0)
    try:
        yield taken
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_written_file_is_loaded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "LOOK_EVERY_S", 0.01)
    file = tmp_path / "t.toml"
    file.write_text('pool = "a"')
    async with followed(file) as taken:
        fresh = tmp_path / "fresh.toml"
        fresh.write_text('pool = "b"')
        fresh.replace(file)
        async with asyncio.timeout(WAIT_S):
            assert (await taken.get()).pool == "b"
    assert taken.empty()


async def test_sighup_loads_anew_and_what_does_not_hold_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "t.toml"
    file.write_text('pool = "a"')
    async with followed(file) as taken:
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(WAIT_S):
            assert (await taken.get()).pool == "a"
            file.write_text("pool = 3")
            with caplog.at_level(logging.ERROR):
                os.kill(os.getpid(), signal.SIGHUP)
                while not caplog.records:  # noqa: ASYNC110  # The remark is all that shows.
                    await asyncio.sleep(0.01)
    assert "those before stay" in caplog.text
    assert taken.empty()


async def test_what_waits_for_the_next_start_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "t.toml"
    file.write_text('pool = "a"')
    async with followed(file) as taken:
        with caplog.at_level(logging.WARNING):
            file.write_text('pool = "b"\n[[models]]\nname = "m"')
            os.kill(os.getpid(), signal.SIGHUP)
            async with asyncio.timeout(WAIT_S):
                assert (await taken.get()).pool == "b"
                while not caplog.records:  # noqa: ASYNC110  # The remark is all that shows.
                    await asyncio.sleep(0.01)
    assert "changed, but taken at the next start only: pool, models" in caplog.text
