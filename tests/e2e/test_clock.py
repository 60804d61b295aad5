"""The pool's time goes on whatever happens to the clock, and whatever the wall's clock says."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from events.base import TICK_MAX_NS
from events.control import Ticked
from services.runtime.embedded import EmbeddedNats
from tests.e2e.house import ROOT, running
from tests.e2e.settings import house_settings

pytestmark = pytest.mark.integration

SPEED: Final = 20
TICKS: Final = 10
DAY_NS: Final = 86_400 * 10**9
SHIFT: Final = """
import pathlib, time
real = time.time_ns
time.time_ns = lambda: real() + {shift_ns}
pathlib.Path({mark!r}).touch()
"""


def shifted_wall(folder: Path, shift_ns: int) -> tuple[Path, dict[str, str]]:
    """A file that appears when the shift is in force, and the environment that brings it about."""
    folder = folder / f"shift{shift_ns}"
    folder.mkdir()
    mark = folder / "in-force"
    (folder / "sitecustomize.py").write_text(SHIFT.format(shift_ns=shift_ns, mark=str(mark)))
    return mark, {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}


async def test_time_neither_stops_nor_jumps_nor_goes_back(nats_server: EmbeddedNats, tmp_path: Path) -> None:
    config = house_settings(tmp_path, nats_url=nats_server.url, speed=SPEED)
    async with running(tmp_path, config, workers=["clock"], gateway=False) as house:
        witness = house.witness
        await witness.comes(Ticked, count=TICKS)
        await house.kill("clock")
        await witness.comes(Ticked, count=len(witness.all(Ticked)) + TICKS)
        for shift_ns in (-DAY_NS, DAY_NS):
            await house.stop("clock")
            mark, env = shifted_wall(tmp_path, shift_ns)
            house.start("clock", "worker", "clock", **env)
            await witness.comes(Ticked, count=len(witness.all(Ticked)) + TICKS)
            assert mark.exists()
        said = [each for each in witness.records if isinstance(each.event, Ticked)]
    assert len({each.owner for each in said}) == 4
    assert [tick.n for tick in witness.all(Ticked)][: len(said)] == list(range(1, len(said) + 1))
    assert all(0 < later.ts_ns - earlier.ts_ns <= TICK_MAX_NS for earlier, later in pairwise(said))
