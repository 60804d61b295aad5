"""The version that an owner says names the very code that decides."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from replay.code_version import RELEASE, code_version, policy_digest

ROOT = Path(__file__).parents[2]
SAY = "from replay.code_version import code_version; print(code_version())"


def said_in(folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", SAY], cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True,
        check=True,
    ).stdout.strip()  # fmt: skip


def test_it_is_a_release_and_twelve_hex_digits() -> None:
    assert re.fullmatch(r"[^+]+\+[0-9a-f]{12}", code_version())


def test_the_release_is_the_packages() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == RELEASE


def test_it_is_the_same_where_the_package_is_not_installed() -> None:
    # As inside vLLM: found by its path alone, with nothing that would say what is installed.
    hidden = f"import sys, importlib.metadata as m; m.distribution = None; sys.path.insert(0, {str(ROOT)!r}); {SAY}"
    command = [sys.executable, "-I", "-c", hidden]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert said == code_version()


def test_it_changes_with_the_code_that_decides_and_with_no_other(tmp_path: Path) -> None:
    for package in ("events", "policies", "replay"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    first = said_in(tmp_path)
    assert first == code_version(), "the same sources at another place are the same code"
    (tmp_path / "replay" / "score.py").write_text("# another\n")
    assert said_in(tmp_path) == first
    with (tmp_path / "policies" / "decider.py").open("a") as file:
        file.write("# one line more\n")
    second = said_in(tmp_path)
    assert second != first
    (tmp_path / "events" / "new.py").write_text("")
    assert said_in(tmp_path) not in (first, second)


def test_the_digest_of_settings_does_not_depend_on_the_order_of_keys() -> None:
    assert policy_digest({"a": 1, "b": {"x": 1, "y": 2}}) == policy_digest({"b": {"y": 2, "x": 1}, "a": 1})
    assert policy_digest({"a": 1}) != policy_digest({"a": 2})
    assert re.fullmatch(r"[0-9a-f]{12}", policy_digest({}))
