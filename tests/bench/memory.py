"""The memory in one process: the longest prefix among a million slices, beside who else keeps prefixes; and the tiers,
beside plain copies and plain files.

Peers run in environments of their own (peer.py): vLLM's block pool where `.venv-engine` is built, the PyPI package
isagellm-kv-cache where it installs. Each is asked in its own unit: an 8K prompt is 32 slices of 256 tokens here and 512
blocks of 16 there. Who is absent is named on stderr, with the reason.
"""

import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, TypeVar

from events.base import SliceId
from kvstore.tiers.base import TierStore
from kvstore.tiers.dram import dram_tier
from kvstore.tiers.slicefile import NAMESPACE_BYTES
from kvstore.tiers.ssd import ssd_tier
from tests.bench.peer import PeerAbsent, installed, peer
from tests.bench.place import Place
from tests.bench.rounds import Figures, Row, Values, Way, compared, interleave, measured

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENGINE_PYTHON = ROOT / ".venv-engine" / "bin" / "python"
ISAGELLM = (
    "isagellm-kv-cache==0.5.4.15", "isagellm-protocol==0.5.4.16", "isagellm-comm==0.5.4.15",
    "isagellm-backend==0.5.4.17", "pydantic==2.14.3", "pydantic-core==2.50.4", "annotated-types==0.8.0",
    "typing-extensions==4.16.0", "typing-inspection==0.4.5",
)  # fmt: skip
"""Without PyTorch, which its prefix cache does not need."""
LOOKUP_US_MAX, INSERT_US_MAX, SLICE_BYTES_MAX = 2, 200, 250
TIER_SLICE_BYTES = 32 << 20
"""256 tokens of a model of 8B parameters in bfloat16."""
TIER_SLICES = 6
GIB = 1 << 30
T = TypeVar("T")


class Peer(NamedTuple):
    """Whose code it is, and how its rows call what it keeps and what it is asked."""

    name: str
    unit: str
    lookup: str


OURS = Peer("ours", "slice of 256 tokens", "longest prefix")
VLLM = Peer("vLLM", "block of 16 tokens", "vLLM's get_computed_blocks")
ISAGELLM_PEER = Peer("isagellm-kv-cache", "block of 16 tokens", "isagellm-kv-cache's lookup")


async def measure_prefixes(place: Place) -> list[Row]:
    """Microseconds per prompt, bytes per slice."""
    async with AsyncExitStack() as stack:
        ways: dict[Peer, Way] = {}
        for each, python, script in (
            (OURS, lambda: Path(sys.executable), "memory_ours.py"),
            (VLLM, lambda: ENGINE_PYTHON, "memory_vllm.py"),
            (ISAGELLM_PEER, partial(_isagellm, place), "memory_isagellm.py"),
        ):
            try:
                ways[each] = await stack.enter_async_context(_peer(place, python, script))
            except (PeerAbsent, OSError) as absent:
                if each is OURS:
                    raise
                print(f"bench: {each.name} is not here: {absent}", file=sys.stderr)
        values = await interleave({each.name: way for each, way in ways.items()}, rounds=place.rounds)
    ours = values[OURS.name]
    rows = [
        measured("longest prefix of 8K tokens, 1M slices", "us", ours["lookup_us"], at_most=LOOKUP_US_MAX),
        measured("the same, counted as a use", "us", ours["used_us"]),
        measured("insert the 32 slices of 8K tokens, 1M there", "us", ours["insert_prompt_us"]),
        measured("insert 512 slices, 1M there", "us", ours["insert_us"], at_most=INSERT_US_MAX),
        measured("the same where 512 others must go", "us", ours["insert_full_us"]),
        measured("memory of a slice, name included", "bytes", ours["bytes"], at_most=SLICE_BYTES_MAX),
    ]
    for each in ways:
        if each is not OURS:
            rows += _beside(each, ours, values[each.name])
    return rows


def _beside(each: Peer, ours: Values, theirs: Values) -> list[Row]:
    insert = "insert_full_us" if "insert_full_us" in theirs else "insert_us"
    full = ", all cached" if insert == "insert_full_us" else ""
    return [
        compared(f"names of 8K tokens beside {each.name}'s block hashes", "us", ours["names_us"], theirs["names_us"]),
        compared(f"longest prefix beside {each.lookup}", "us", ours["lookup_us"], theirs["lookup_us"]),
        compared(f"insert 512 beside {each.name}'s{full}", "us", ours[insert], theirs[insert]),
        compared(f"memory beside {each.name}'s, a {each.unit}", "bytes", ours["bytes"], theirs["bytes"]),
    ]


@asynccontextmanager
async def _peer(place: Place, python: Callable[[], Path], script: str) -> AsyncIterator[Way]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    async with peer(python(), HERE / script, env=env, log=place.folder / f"{script}.log") as way:
        yield way


def _isagellm(place: Place) -> Path:
    return installed(place.folder / "isagellm", ISAGELLM, uv=ROOT / ".uv" / "bin" / "uv", python=sys.executable)


async def measure_tiers(place: Place) -> list[Row]:
    """GiB/s of slices of 32 MiB, in and out. Files stay in the page cache on both sides: what is compared is what the
    tier adds (a checksum, a header, a rename), not the disk."""
    data = memoryview(os.urandom(TIER_SLICE_BYTES))
    folder = place.folder / "files"
    folder.mkdir()
    room = TIER_SLICES * TIER_SLICE_BYTES
    dram = dram_tier(bytes_max=room, slice_bytes=TIER_SLICE_BYTES)
    ssd = ssd_tier(place.folder / "ssd", bytes_max=2 * room, namespace=bytes(NAMESPACE_BYTES))
    ways: Mapping[str, Way] = {
        "memcpy": partial(_copies, data),
        "dram": partial(_slices, dram, data),
        "files": partial(_files, folder, data),
        "ssd": partial(_slices, ssd, data),
    }
    try:
        for way in ways.values():
            await way()  # Not counted: pages are touched for the first time.
        values = await interleave(ways, rounds=place.rounds)
    finally:
        dram.close()
        ssd.close()
    return [
        compared(f"{ours.upper()} tier, slices of 32 MiB {what}, beside {plain}", "GiB/s", values[ours][figure],
                 values[plain][figure])
        for ours, plain in (("dram", "memcpy"), ("ssd", "files"))
        for figure, what in (("in", "stored"), ("out", "read"))
    ]  # fmt: skip


async def _slices(tier: TierStore, data: memoryview) -> Figures:
    out = bytearray(TIER_SLICE_BYTES)
    names = [SliceId(f"{number:032x}") for number in range(TIER_SLICES)]
    stored = _per_s(lambda name: tier.put(name, data), names)
    read = _per_s(lambda name: tier.read_into(name, out), names)
    assert out == data, "what comes out is what went in"
    for name in names:
        tier.drop(name)
    return {"in": stored, "out": read}


async def _copies(data: memoryview) -> Figures:
    kept = [memoryview(bytearray(TIER_SLICE_BYTES)) for _ in range(TIER_SLICES)]
    out = memoryview(bytearray(TIER_SLICE_BYTES))

    def copy(source: memoryview, target: memoryview) -> None:
        target[:] = source

    return {
        "in": _per_s(lambda target: copy(data, target), kept),
        "out": _per_s(lambda source: copy(source, out), kept),
    }


async def _files(folder: Path, data: memoryview) -> Figures:
    out = bytearray(TIER_SLICE_BYTES)
    paths = [folder / str(number) for number in range(TIER_SLICES)]

    def read(path: Path) -> None:
        with path.open("rb", buffering=0) as file:
            assert file.readinto(out) == TIER_SLICE_BYTES, "the file is whole"

    figures = {"in": _per_s(lambda path: path.write_bytes(data), paths), "out": _per_s(read, paths)}
    for path in paths:
        path.unlink()
    return figures


def _per_s(move: Callable[[T], object], each: list[T]) -> float:
    start = perf_counter()
    for one in each:
        move(one)
    return len(each) * TIER_SLICE_BYTES / GIB / (perf_counter() - start)
