"""Disks that cannot be used: the engine serves on, and says so. Engines that were not tested are refused."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.engine.offload import SLICE_BYTES, SMALL, OffloadEngine, make, prompt, side_by_side, slices_in, until
from tests.engine.vllm_server import VllmServer

SLICES = 8
FAST = 1_000_000_000
"""Tokens per second: nothing is worth fetching from a disk."""


class Servers(NamedTuple):
    """One with a disk that is slower than computing, one without a disk, and one with a setting that was not tested."""

    quick: VllmServer
    diskless: VllmServer
    refused: VllmServer


@pytest.fixture(scope="module")
def servers(engine_python: Path, model: Path, ssd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Started side by side; whoever needs one waits until it is ready."""
    folder = tmp_path_factory.mktemp("faults")
    no_folder = folder / "a file"
    no_folder.touch()
    hashes = ("--prefix-caching-hash-algo", "xxhash")
    made = Servers(
        make(engine_python, model, folder, name="quick", ssd=ssd, arguments=SMALL, prefill_tokens_per_s=FAST),
        make(engine_python, model, folder, name="diskless", ssd=no_folder, arguments=SMALL),
        make(engine_python, model, folder, name="refused", ssd=None, arguments=hashes),
    )
    with side_by_side(*made):
        yield made


@pytest.fixture(scope="module")
def quick(servers: Servers) -> OffloadEngine:
    """An engine that thinks it computes faster than any disk reads."""
    servers.quick.wait_ready()
    return OffloadEngine(servers.quick)


def test_what_is_computed_sooner_than_read_is_not_fetched(quick: OffloadEngine, ssd: Path) -> None:
    asked = prompt(SLICES, seed=1)
    quick.ask(asked)
    warm = quick.ask(asked)
    until(lambda: len(slices_in(ssd)) >= SLICES, "they are on the disk")
    quick.forget_dram()

    again = quick.ask(asked)

    assert (again.dram, again.ssd) == (0, 0)
    assert again.tokens == warm.tokens


def test_full_disk_is_noticed_served_without_and_used_again_when_it_has_room(quick: OffloadEngine, ssd: Path) -> None:
    asked = prompt(SLICES, seed=2)
    failures = quick.failures()

    with _no_file_larger_than(SLICE_BYTES // 2, quick.server):
        cold = quick.ask(asked)
        until(lambda: quick.failures() >= failures + SLICES, "the disk is full")
        assert not quick.usable()
        quick.forget_device()
        again = quick.ask(asked)
    assert again.dram == SLICES
    assert again.tokens == cold.tokens

    # It is left alone for a while, then tried again.
    number = 0

    def used_again() -> bool:
        nonlocal number
        number += 1
        quick.ask(prompt(1, seed=1_000 + number))
        return quick.usable()

    until(used_again, "the disk is used again")
    failures, before = quick.failures(), len(slices_in(ssd))
    quick.ask(prompt(SLICES, seed=3))
    until(lambda: len(slices_in(ssd)) >= before + SLICES, "they are on the disk")
    assert quick.failures() == failures


def test_folder_that_cannot_be_used_is_no_reason_not_to_serve(servers: Servers) -> None:
    servers.diskless.wait_ready()
    engine = OffloadEngine(servers.diskless)
    asked = prompt(SLICES, seed=4)
    cold = engine.ask(asked)
    until(lambda: engine.stored() >= SLICES, "they are in DRAM")
    engine.forget_device()

    again = engine.ask(asked)

    assert again.dram == SLICES
    assert again.tokens == cold.tokens
    assert not engine.usable()
    assert engine.failures() >= 1
    assert "serves on without it" in servers.diskless.log_file.read_text()


def test_engine_that_was_not_tested_is_refused_with_the_reason(servers: Servers) -> None:
    until(lambda: not servers.refused.alive, "it is refused")

    log = servers.refused.log_file.read_text()
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
