"""The HBM tier: one tensor on the device, cut into frames of one slice each, moved by two streams of its own.

A store and a load go over different streams, so they overlap with each other and with what the engine computes; each
call returns when its copy is done, so a slice is whole when it is shown. From and to memory that is pinned (the DRAM
tier with `cuda_pinner`) a copy is one direct transfer; other memory goes through the driver's own staging. On a
device without streams (torch on the CPU) the same calls are plain copies.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from events.slice import Tier
from kvstore.errors import TierUnavailable
from kvstore.tiers.base import Writer
from kvstore.tiers.dram import Frames
from kvstore.tiers.ledger import Entry
from kvstore.tiers.shelf import Shelf

_WHERE = Tier.HBM.value


def hbm_tier(*, bytes_max: int, slice_bytes: int, device: str = "cuda") -> Shelf:
    """A tier of `bytes_max // slice_bytes` frames on that device, each for one slice of at most `slice_bytes`.

    Raises TierUnavailable if there is no such device, or not that much memory left on it.
    """
    frames = Frames(bytes_max // slice_bytes, slice_bytes, where=_WHERE)
    return Shelf(Tier.HBM, _Device(frames, device), where=_WHERE, bytes_max=frames.count * slice_bytes)


def cuda_pinner(address: int, bytes_: int) -> Callable[[], None]:
    """A `Pinner` for the DRAM tier: the memory is page-locked for direct transfers until the answer is called.

    Raises TierUnavailable where the driver refuses (no device, or more than the limit of locked memory).
    """
    if not torch.cuda.is_available():
        raise TierUnavailable(where=Tier.DRAM.value, why="no CUDA device to pin memory for", lasting=True)
    driver = torch.cuda.cudart()
    error = int(driver.cudaHostRegister(address, bytes_, 0))
    if error:
        why = f"{bytes_} bytes could not be pinned (CUDA error {error})"
        raise TierUnavailable(where=Tier.DRAM.value, why=why, lasting=True, mend="lower dram_bytes, or raise ulimit -l")

    def undo() -> None:
        driver.cudaHostUnregister(address)

    return undo


class _Device:
    lends_in_place = False

    def __init__(self, frames: Frames, device: str) -> None:
        self._frames = frames
        with _speaking("give it less memory, or choose another device"):
            self._device = torch.device(device)
            self._memory: Any = torch.empty((frames.count, frames.slice_bytes), dtype=torch.uint8, device=self._device)
            streamed = self._device.type == "cuda"
            self._stores = torch.cuda.Stream(self._device) if streamed else None
            self._loads = torch.cuda.Stream(self._device) if streamed else None

    def footprint(self, bytes_: int) -> int:
        return self._frames.footprint(bytes_)

    def store(self, entry: Entry, data: memoryview) -> None:
        entry.place = self._frames.take()
        self._copy(self._frame(entry), _tensor(data), self._stores)

    def fill(self, entry: Entry, writer: Writer) -> None:
        staging = self._staging(entry)
        writer(memoryview(staging.numpy()))
        entry.place = self._frames.take()
        self._copy(self._frame(entry), staging, self._stores)

    def load(self, entry: Entry, out: memoryview) -> None:
        self._copy(_tensor(out), self._frame(entry), self._loads)

    def lend(self, entry: Entry) -> memoryview:
        staging = self._staging(entry)
        self._copy(staging, self._frame(entry), self._loads)
        return memoryview(staging.numpy())

    def _frame(self, entry: Entry) -> Any:
        return self._memory[entry.place, : entry.bytes]

    def _staging(self, entry: Entry) -> Any:
        """Host memory for one slice, page-locked for a device; torch keeps and reuses it."""
        with _speaking("raise ulimit -l"):
            return torch.empty(entry.bytes, dtype=torch.uint8, pin_memory=self._stores is not None)

    def _copy(self, target: Any, source: Any, stream: Any) -> None:
        if stream is None:
            target.copy_(source)
            return
        with _speaking("restart the engine"):
            with torch.cuda.stream(stream):
                target.copy_(source, non_blocking=True)
            stream.synchronize()

    def remove(self, entry: Entry) -> None:
        """Nothing yet: readers may still be at it."""

    def freed(self, entry: Entry) -> None:
        if entry.place is not None:
            self._frames.give(entry.place)

    def close(self) -> None:
        self._memory = None


@contextmanager
def _speaking(mend: str) -> Iterator[None]:
    """What the device refuses is said as TierUnavailable. AssertionError: torch was built without that device."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise TierUnavailable(where=_WHERE, why=why, lasting=True, mend=mend) from error


def _tensor(data: memoryview) -> Any:
    """The same memory as a tensor, by its address: torch warns of read-only memory, and a source is only read."""
    address = np.frombuffer(data, dtype=np.uint8).ctypes.data
    return torch.frombuffer((ctypes.c_uint8 * data.nbytes).from_address(address), dtype=torch.uint8)
