"""docs/operations.md names the metrics, exit codes and ports that there are."""

import re
from pathlib import Path

from services.runtime.health import PORT_OFFSET
from services.runtime.output import Exit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
NAME = re.compile(r"(?:tidegate|gen_ai)_[a-z_]+")


def test_every_metric_is_named_and_there_is_every_one_that_is_named() -> None:
    files = (path for path in (ROOT / "services").rglob("*.py") if "vllm_plugin" not in path.parts)
    sources = "\n".join(path.read_text() for path in files)  # The plugin has no metrics: what it says are facts.
    defined = set(re.findall(r'"((?:tidegate|gen_ai)_[a-z_]+)"', sources))
    named = {name.removesuffix("_total") for name in NAME.findall(PAGE)}
    assert named == defined


def test_every_exit_code_is_explained() -> None:
    table = PAGE.partition("## Exit codes")[2].partition("\n## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == sorted(Exit)


def test_ports_of_workers_come_in_the_order_that_is_named() -> None:
    assert f"{next(iter(PORT_OFFSET))} on that port, then {', '.join(list(PORT_OFFSET)[1:])}" in PAGE
    assert list(PORT_OFFSET.values()) == list(range(len(PORT_OFFSET)))
