"""The demo, run as a person runs it: real servers and workers, and a log that replays to the same decisions."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events.base import NS_PER_MS
from replay.score import Scores
from services.demo import Plan, compare, plan_mixed, plan_trace
from services.demo_report import BEHIND_NS, COLUMNS, DemoResult, cells

PROMISED = ("verify", "digest", "events", "decisions", "requests", "slo_attainment", "journal")
SPEED = "40"
TIMEOUT_S = 90
CALM_NS = 60_000_000
"""A way from decision to engine that is short beside the SLO; a busy machine's is not, at forty-fold speed."""
OFF_MAX = {"slo_attainment": 0.1, "goodput_per_s": 0.1, "output_tokens_per_s": 0.1, "tpot_p50": 0.1}
OF_THE_LOG = ("requests", "finished", "slo_attainment", "ttft_p50_ns", "tpot_p50_ns", "rejected", "aborted")
"""Scores that do not depend on how long the window is."""
EMPTY = msgspec.convert(
    {
        "workload": "none", "speed": 1, "verify": "identical", "digest": "00", "events": 0, "decisions": 0,
        "requests": 0, "slo_attainment": {}, "goodput_per_s": {}, "statuses": {}, "load_late_max_s": 0.0,
        "control_ns": 0, "seconds": 0.0, "code_version": "", "journal": "", "report": "",
        "scores": {name: {} for name in COLUMNS},
    },
    DemoResult,
)  # fmt: skip


def tidegate(*argv: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "services.cli", *argv]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("demo")
    done = tidegate("demo", "--seed", "3", "--speed", SPEED, "--json", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.integration
def test_a_demo_says_what_it_promised_in_one_json_object(demo: dict[str, Any]) -> None:
    assert [key for key in PROMISED if key not in demo] == []
    assert demo["verify"] == "identical"
    assert demo["slo_attainment"].keys() >= {"baseline", "tidegate"}
    assert demo["requests"] == len(plan_mixed(3).arrivals) == sum(demo["statuses"].values())
    assert Path(demo["report"]).read_text().count("<td>") > 30


@pytest.mark.integration
def test_the_live_log_replays_to_the_same_decisions_under_two_hash_seeds(demo: dict[str, Any]) -> None:
    for seed in ("0", "1"):
        done = tidegate("replay", "verify", demo["journal"], "--json", hash_seed=seed)
        report = json.loads(done.stdout)
        assert (done.returncode, report["identical"], report["digest"]) == (0, True, demo["digest"])
        assert (report["events"], report["decisions"]) == (demo["events"], demo["decisions"])


@pytest.mark.integration
def test_what_if_on_the_live_log_has_no_difference_under_the_same_policy(demo: dict[str, Any]) -> None:
    done = tidegate("replay", "whatif", demo["journal"], "--policy", "recorded", "--same", "--json")
    assert done.returncode == 0, done.stderr
    (control,) = json.loads(done.stdout)["open_loop"]["tried"]
    assert sum(actor["words"] for actor in control["actors"]) == sum(actor["same"] for actor in control["actors"]) > 0
    assert tidegate("replay", "whatif", demo["journal"], "--policy", "first_come", "--same").returncode == 1


@pytest.fixture(scope="module")
def closed(demo: dict[str, Any]) -> dict[str, Any]:
    """The closed loop of a what-if on the demo's journal."""
    done = tidegate("replay", "whatif", demo["journal"], "--policy", "first_come", "--closed-loop", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["closed_loop"]
    return found


@pytest.mark.integration
def test_what_if_observes_what_the_demo_scored_and_loses_no_request(
    demo: dict[str, Any], closed: dict[str, Any]
) -> None:
    assert [one["origin"] for one in closed["columns"]] == ["observed", "modelled", "modelled"]
    observed, live = closed["columns"][0]["scores"], demo["scores"]["live"]
    assert {name: observed[name] for name in OF_THE_LOG} == {name: live[name] for name in OF_THE_LOG}
    lengths = closed["lengths"]
    assert lengths["seen"] + lengths["traced"] + lengths["drawn"] == demo["requests"]
    assert lengths["seen"] == live["finished"]
    for column in closed["columns"]:
        scores = column["scores"]
        ends = [scores["finished"], scores["unfinished"], scores["unsent"]]
        ends += [*scores["rejected"].values(), *scores["aborted"].values()]
        assert sum(ends) == scores["requests"] == demo["requests"], column["policy"]
    first_come = closed["columns"][2]["scores"]
    assert (first_come["rejected"], first_come["finished"]) == ({}, demo["requests"]), "it refuses nobody"


@pytest.mark.integration
def test_a_model_is_as_near_to_the_live_log_as_it_was_calibrated_where_the_machine_kept_up(
    demo: dict[str, Any], closed: dict[str, Any]
) -> None:
    assert demo["control_ns"] == closed["control_ns"] > 0
    says_so = "fell behind" in Path(demo["report"]).read_text()
    assert says_so == (demo["control_ns"] > BEHIND_NS)
    measures = {one["name"]: one for one in closed["measures"]}
    for name, off_max in OFF_MAX.items():
        assert demo["control_ns"] > CALM_NS or measures[name]["off"] < off_max, name


@pytest.mark.integration
def test_prompts_are_nowhere_in_what_a_demo_leaves(demo: dict[str, Any]) -> None:
    folder = Path(demo["journal"]).parent
    filler = b",7" * 40  # How the load generator's prompts look.
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert [path for path in files if filler in path.read_bytes()] == []


def test_virtual_columns_depend_on_the_plan_alone() -> None:
    plan = plan_mixed(5)
    assert compare(plan) == compare(plan)


def test_a_trace_is_a_plan_too(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 500 * number, "input_length": 600, "output_length": 20, "hash_ids": [1, number]}
        for number in range(30)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = plan_trace(path, limit=20)
    scores = compare(plan)
    assert len(plan.arrivals) == scores["tidegate"].requests == 20
    assert scores["tidegate"].slo_attainment == 1.0


def test_every_row_of_the_table_can_be_said_of_an_empty_run() -> None:
    assert isinstance(EMPTY.scores["live"], Scores)
    assert all(len(said) == len(COLUMNS) for _, said in cells(EMPTY))


@pytest.mark.parametrize(
    ("control_ms", "speed", "said"),
    [
        (14, 16, ""),
        (100, 16, ""),
        (200, 16, "try --speed 8"),
        (101, 1, "give it more of the processor"),
        (9_000, 40, "--speed 1"),
    ],
)
def test_a_demo_says_that_it_fell_behind_and_what_to_do(control_ms: int, speed: int, said: str) -> None:
    result = msgspec.structs.replace(EMPTY, control_ns=control_ms * NS_PER_MS, speed=speed)
    assert bool(result.behind()) == bool(said)
    assert result.behind().endswith(said)


def test_a_missing_trace_is_one_line_and_bad_input(tmp_path: Path) -> None:
    done = tidegate("demo", "--trace", str(tmp_path / "none.jsonl"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "none.jsonl" in done.stderr


def test_a_plan_registers_the_engines_that_it_configures() -> None:
    plan: Plan = plan_mixed(1)
    assert [each.engine_id for each in plan.registered()] == [engine.id for engine in plan.engines]


def test_engines_of_a_plan_have_the_tiers_that_were_asked_for() -> None:
    assert plan_mixed(1).tiers() == {}
    plan = plan_mixed(1, dram_bytes=5, ssd_bytes=7)
    assert {(sizes.dram_bytes, sizes.ssd_bytes) for sizes in plan.tiers().values()} == {(5, 7)}
    assert list(plan.tiers()) == [engine.id for engine in plan.engines]
    assert all(each.capability.reports_slices for each in plan.registered())
