"""What the policy was worth in a small benchmark, and how far models were off, is not lost unnoticed.

Where this fails, a change made our policy worse, a baseline better, or a model another one. If that is meant:
`.venv/bin/python -m tests.golden.bench_baseline`, in the same commit.
"""

import os
import subprocess
import sys

import pytest
from msgspec.structs import replace

from replay.bench.memory.files import read_report
from replay.bench.memory.regression import Kind, regressions
from replay.bench.memory.report import Report
from replay.bench.memory.systems import CAREFUL, OURS
from tests.golden.bench_baseline import FILE, measured

ONE_RUN = """
from replay.bench.memory.report import EngineModel
from replay.bench.memory.systems import SYSTEMS
from replay.bench.memory.task import MemoryTask, play
from replay.bench.memory.workloads import Offer
offer = Offer(workload="mixed", seed=1, scale=1.5, seconds=20, engines=1)
task = MemoryTask(offer=offer, system=SYSTEMS["tidegate"], batch_tokens=2048, seqs_max=256)
print(play(task).digest)
"""
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def baseline() -> Report:
    return read_report(FILE)


@pytest.fixture(scope="module")
def now() -> Report:
    return measured()


def test_no_win_is_lost_and_no_model_has_drifted(baseline: Report, now: Report) -> None:
    assert regressions(baseline, now) == []


def test_a_policy_that_is_no_better_than_the_careful_baseline_would_be_noticed(baseline: Report, now: Report) -> None:
    assert now.runs
    as_careful = {(run.load, run.seed): run.scores for run in now.runs if run.system == CAREFUL}
    worse = replace(now, goals=baseline.goals, runs=tuple(
        replace(run, scores=as_careful[run.load, run.seed]) if run.system == OURS else run for run in now.runs
    ))  # fmt: skip
    assert {one.kind for one in regressions(baseline, worse)} == {Kind.LOST_WIN}


def test_a_model_that_is_further_off_would_be_noticed(baseline: Report, now: Report) -> None:
    assert now.calibrations
    off = tuple(
        replace(one, checked=tuple(replace(each, modelled=each.modelled * 1.2) for each in one.checked))
        for one in now.calibrations
    )
    found = regressions(baseline, replace(now, calibrations=off), kinds=(Kind.DRIFT,))
    assert len(found) == sum(len(one.checked) for one in now.calibrations)


def test_a_run_is_the_same_in_fresh_processes_under_two_hash_seeds() -> None:
    digests = []
    for hash_seed in ("0", "1"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", ONE_RUN], env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
        digests.append(done.stdout.strip())
    assert len(digests[0]) >= 16
    assert digests[0] == digests[1]
