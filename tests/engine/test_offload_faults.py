"""Disks that cannot be used: the engine serves on, and says so. Engines that were not tested are refused."""

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.offload import SLICE_BYTES, OffloadEngine, make, prompt, running
from tests.engine.vllm_server import VllmServer

SLICES = 8
WAIT_TIMEOUT_S = 240.0
WAIT_EVERY_S = 0.1
FAST = 1_000_000_000
"""Tokens per second: nothing is worth fetching from a disk."""


@pytest.fixture(scope="module")
def quick(engine_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OffloadEngine]:
    """An engine that thinks it computes faster than any disk reads."""
    ssd = tmp_path_factory.mktemp("ssd")
    ssd.chmod(0o700)
    folder = tmp_path_factory.mktemp("quick")
    with running(engine_python, model, folder, name="quick", ssd=ssd, prefill_tokens_per_s=FAST) as engine:
        yield engine


def test_what_is_computed_sooner_than_read_is_not_fetched(quick: OffloadEngine) -> None:
    asked = prompt(SLICES, seed=1)
    quick.ask(asked)
    warm = quick.ask(asked)
    quick.forget_dram()

    again = quick.ask(asked)

    assert (again.dram, again.ssd) == (0, 0)
    assert again.tokens == warm.tokens


def test_full_disk_is_noticed_served_without_and_used_again_when_it_has_room(quick: OffloadEngine) -> None:
    asked = prompt(SLICES, seed=2)
    failures = quick.failures()

    with _no_file_larger_than(SLICE_BYTES // 2, quick.server):
        cold = quick.ask(asked)
        assert quick.failures() >= failures + SLICES
        assert not quick.usable()
        quick.forget_device()
        again = quick.ask(asked)
    assert again.dram == SLICES
    assert again.tokens == cold.tokens

    # It is left alone for a while, then tried again.
    number = 0

    def stored() -> bool:
        nonlocal number
        number += 1
        quick.ask(prompt(1, seed=1_000 + number))
        return quick.usable()

    _until(stored)
    failures = quick.failures()
    quick.ask(prompt(SLICES, seed=3))
    assert quick.failures() == failures


def test_folder_that_cannot_be_used_is_no_reason_not_to_serve(engine_python: Path, model: Path, tmp_path: Path) -> None:
    no_folder = tmp_path / "a file"
    no_folder.touch()

    with running(engine_python, model, tmp_path, name="diskless", ssd=no_folder) as engine:
        asked = prompt(SLICES, seed=4)
        cold = engine.ask(asked)
        engine.forget_device()
        again = engine.ask(asked)
        usable, failures = engine.usable(), engine.failures()

    assert again.dram == SLICES
    assert again.tokens == cold.tokens
    assert not usable
    assert failures >= 1
    assert "serves on without it" in (tmp_path / "diskless.log").read_text()


def test_engine_that_was_not_tested_is_refused_with_the_reason(
    engine_python: Path, model: Path, tmp_path: Path
) -> None:
    hashes = ("--prefix-caching-hash-algo", "xxhash")
    server = make(engine_python, model, tmp_path, name="refused", ssd=None, arguments=hashes)
    try:
        server.start()
        _until(lambda: not server.alive)
    finally:
        server.stop()

    log = (tmp_path / "refused.log").read_text()
    assert "Tidegate's memory is refused here: --prefix-caching-hash-algo xxhash" in log
    assert "Tested: vLLM 0.32.0" in log


@contextmanager
def _no_file_larger_than(size: int, server: VllmServer) -> Iterator[None]:
    """For the engine core's process: what a full disk is, without one."""
    [core] = [pid for pid in _group(server.pgid) if _name(pid).startswith("VLLM::EngineCor")]
    before = resource.prlimit(core, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(core, resource.RLIMIT_FSIZE, before)


def _group(pgid: int) -> list[int]:
    processes = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [pid for pid in processes if _pgid(pid) == pgid]


def _pgid(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def _until(well: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_TIMEOUT_S
    while not well():
        assert time.monotonic() < deadline, "it comes in time"
        time.sleep(WAIT_EVERY_S)
