"""The demo, run as a person runs it: real servers and workers, and a log that replays to the same decisions."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from replay.score import Scores
from services.demo import Plan, compare, plan_mixed, plan_trace
from services.demo_report import COLUMNS, DemoResult, cells

PROMISED = ("verify", "digest", "events", "decisions", "requests", "slo_attainment", "journal")
SPEED = "40"
TIMEOUT_S = 90
CALM_NS = 60_000_000
"""A way from decision to engine that is short beside the SLO; a busy machine's is not, at forty-fold speed."""
OFF_MAX = 0.1


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


@pytest.mark.integration
def test_what_if_states_how_far_the_model_is_from_the_live_log(demo: dict[str, Any]) -> None:
    done = tidegate("replay", "whatif", demo["journal"], "--policy", "first_come", "--closed-loop", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["closed_loop"]
    assert [one["origin"] for one in found["columns"]] == ["observed", "modelled", "modelled"]
    assert {one["scores"]["requests"] for one in found["columns"]} == {demo["requests"]}
    measures = {one["name"]: one for one in found["measures"]}
    for one in measures.values():
        if one["error"] is not None:
            assert abs(one["values"][1] - one["values"][0]) <= one["error"], one["name"]
    if found["control_ns"] > CALM_NS:
        pytest.skip(f"a decision took {found['control_ns'] / 1e6:.0f} ms of pool time: the machine is the limit here")
    for name in ("slo_attainment", "goodput_per_s", "output_tokens_per_s"):
        assert measures[name]["off"] < OFF_MAX, name


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
    result = msgspec.convert(
        {
            "workload": "none", "speed": 1, "verify": "identical", "digest": "00", "events": 0, "decisions": 0,
            "requests": 0, "slo_attainment": {}, "goodput_per_s": {}, "statuses": {}, "load_late_max_s": 0.0,
            "seconds": 0.0, "code_version": "", "journal": "", "report": "", "scores": {name: {} for name in COLUMNS},
        },
        DemoResult,
    )  # fmt: skip
    assert isinstance(result.scores["live"], Scores)
    assert all(len(said) == len(COLUMNS) for _, said in cells(result))


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
