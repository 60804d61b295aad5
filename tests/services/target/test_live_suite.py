"""A suite on a live target: one report, with the runs that the plan has, and what was found when it is interrupted."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from replay.bench.memory.files import read_report, write_report
from replay.bench.memory.plan import SMOKE, Plan
from replay.bench.memory.report import EngineModel, Origin
from services import cli
from services.runtime.config import ModelConfig
from services.runtime.output import Exit
from services.target.options import TargetOptions
from services.target.suite import Live, offers, requests_of, run_live
from tests.services.gateway.http_rig import SIMULATED, config_of, house

STAGE = replace(SMOKE.light, workloads=("mixed",), seconds=3, loads=(1.0,), seeds=(1,))
PLAN: Plan = replace(SMOKE, stages=(STAGE,))


def live(url: str, **more: Any) -> Live:
    return Live(url=url, options=TargetOptions(embedding_model="tiny", drain_s=3), **more)


async def test_a_suite_on_a_live_target_is_a_report_like_any_other(tmp_path: Path) -> None:
    settings = config_of(tmp_path, gateway={"workload_hints": True}, models=[ModelConfig(name="tiny")],
                         engines=[SIMULATED])  # fmt: skip
    heard: list[int] = []
    async with house(settings, speed=1) as running:
        one = live(running.gateway.url.replace("//", "//user:secret@"), name="gateway")
        report = await asyncio.to_thread(run_live, PLAN, one, version="1", on_progress=heard.append)

    assert [(run.workload, run.load, run.system) for run in report.runs] == [("mixed", 1.0, "gateway")]
    assert all((run.engine, run.origin) == (EngineModel.LIVE, Origin.OBSERVED) for run in report.runs)
    assert all(run.scores.finished > 0 and run.notes for run in report.runs)
    assert [(cell.load, cell.engine) for cell in report.cells] == [(1.0, EngineModel.LIVE)]
    assert heard[-1] == requests_of(PLAN, one)
    assert "secret" not in report.systems[0].title, "an address is shown without its user"
    write_report(report, tmp_path / "out")
    assert read_report(tmp_path / "out").runs == report.runs


def test_runs_of_a_target_are_those_of_the_plan_in_order() -> None:
    plan = replace(SMOKE, stages=(replace(STAGE, workloads=("mixed", "conversation"), loads=(1.0, 2.0), seeds=(1, 2)),))
    made = [(one.workload, one.scale, one.seed, one.engines) for one in offers(plan, Live(url="http://t", engines=3))]
    assert made[:3] == [("mixed", 1.0, 1, 3), ("mixed", 1.0, 2, 3), ("mixed", 2.0, 1, 3)]
    assert len(made) == 8


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--target", "ftp://t"], "is no address"),
        (["--target", "http://t", "--target-log", "nats://n"], "a log is named by its server and its pool"),
        (["--target", "http://t", "--against", "."], "no baseline is of a live target"),
        (["--target", "http://t", "--sweep", "eviction"], "--sweep: a live target has its own engines"),
        (["--target", "http://t", "--systems", "careful"], "--systems: a live target has its own engines"),
        (["--target-name", "ours"], "--target-name is said of a target"),
        (["--target-prompts", "text"], "--target-prompts is said of a target"),
        (["--target", "http://127.0.0.1:1", "--workloads", "mixed", "--seconds", "30"], "nothing answers at"),
        (["--target", "http://127.0.0.1:1/v1/", "--workloads", "mixed"], "nothing answers at http://127.0.0.1:1:"),
    ],
)
def test_what_cannot_be_asked_of_a_target_is_one_line(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["bench", "run", *argv]) == Exit.BAD_INPUT
    assert said in capsys.readouterr().err
