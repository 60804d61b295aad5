"""The baseline of the memory benchmark: a small suite on drawn arrivals, the same on every machine.

    .venv/bin/python -m tests.golden.bench_baseline

runs it (some seconds) and writes its report anew. Do so only when a policy or an engine model was changed on purpose,
in the same commit, and say in its message what that is worth: a win that is lost here was lost.
"""

from pathlib import Path
from typing import Final

import msgspec

from replay.bench.memory.plan import Plan, Stage, Tuning
from replay.bench.memory.regression import trimmed
from replay.bench.memory.report import EngineModel, Report
from replay.bench.memory.rounds import Runs
from replay.bench.memory.store import Store
from replay.bench.memory.suite import run_suite
from replay.bench.memory.systems import CAREFUL, LRU, OURS, RIVAL
from replay.bench.memory.task import play
from replay.bench.policies import SEEDS
from replay.bench.runs import players
from replay.calibration import calibrations, uncalibrated

FILE: Final = Path(__file__).with_name("bench_baseline.json")
SMALL: Final = Plan(
    suite="baseline",
    stages=(
        Stage(
            engine=EngineModel.LIGHT, engines=1, seconds=30, workloads=("mixed",), systems=(CAREFUL, RIVAL, OURS),
            loads=(1.0, 1.5), seeds=SEEDS[:3],
        ),
    ),
    tuning=Tuning(tokens=(2_048,), seqs=(256,), evictions=(LRU,), engines=1, seconds=15, loads=(1.2,)),
    knee_steps=(9,), shipped_knee=False,
)  # fmt: skip
"""One engine at about its knee, and above it. The knee is not looked for: this is a look at whether wins are still
there, and no result."""


def measured() -> Report:
    """The report of the small suite, with the calibrations that ship."""
    with players(1, play) as play_all:
        runs = Runs(Store(None), {EngineModel.LIGHT: play_all}, lambda _done: None)
        report = run_suite(SMALL, runs, version="")
    found = calibrations()
    return msgspec.structs.replace(report, calibrations=found, uncalibrated=uncalibrated(found))


if __name__ == "__main__":
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(trimmed(measured())), indent=1) + b"\n")
