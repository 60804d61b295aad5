"""A real process, killed for real in the middle of its work: what it acknowledged is there, and nothing by halves."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from events.base import SliceId
from kvstore.tiers.ssd import ssd_tier
from tests.kvstore.tiers.kinds import NAMESPACE

SLICE_BYTES = 200_000
SLICES = 8
BUDGET = SLICES * (SLICE_BYTES + 4096)
ROOT = Path(__file__).parents[3]


def content(name: str) -> bytes:
    return Random(name).randbytes(1000) * (SLICE_BYTES // 1000)


def work(folder: str) -> None:
    """The child: store, drop, store, without end. A store is said when it was acknowledged, a drop before it begins."""
    tier = ssd_tier(Path(folder), bytes_max=BUDGET, namespace=NAMESPACE)
    number = len(tier.inventory())
    while True:
        name = SliceId(f"{number:08x}")
        if tier.bytes_used + tier.footprint(SLICE_BYTES) > BUDGET:
            oldest, _ = tier.inventory()[0]
            print("drop", oldest, flush=True)
            tier.drop(oldest)
        if tier.put(name, content(name)):
            print("put", name, flush=True)
        number += 1


@pytest.mark.parametrize("lines", [1, 9, 23])
def test_a_killed_process_leaves_what_it_acknowledged_and_no_half(tmp_path: Path, lines: int) -> None:
    code = f"from tests.kvstore.tiers.test_kill import work; work({str(tmp_path)!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(lines)]
        child.kill()
        said += child.stdout.readlines()
    kept: dict[str, None] = {}
    for what, name in (line.split() for line in said if line.endswith("\n")):
        if what == "put":
            kept[name] = None
        else:
            kept.pop(name, None)
    assert len(said) >= lines
    tier = ssd_tier(tmp_path, bytes_max=BUDGET, namespace=NAMESPACE)  # Its lock died with it.
    there = [name for name, _ in tier.inventory()]
    assert set(kept) <= set(there)
    out = bytearray(SLICE_BYTES)
    for name in there:
        assert tier.read_into(name, out) == SLICE_BYTES
        assert out == content(name)
    files = {path.name for path in (tmp_path / NAMESPACE.hex()).iterdir()}
    assert files == {"lock"} | {f"{name}.slice" for name in there}
    tier.close()
