"""What docs/vllm.md claims, read from its table; for the tests of both environments (standard library alone)."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "vllm.md"
VERDICTS = ("used", "vLLM's own", "not covered")
_ROW = re.compile(r"^\| (002-\d\d) \| ([^|]+) \| \*\*([^*]+)\*\* \| ([^|]+) \|$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[a-z_/0-9]+\.py)::(test_[a-z_0-9]+)`")
_PLACE = re.compile(r"`((?:v1|distributed)/[a-z_/0-9]+\.py)` `([A-Za-z_]+)`")


class Line(NamedTuple):
    """One line of the roadmap: tests by file and name, places in vLLM by file and what stands there."""

    id: str
    verdict: str
    shown_by: str
    tests: list[tuple[str, str]]
    places: list[tuple[str, str]]


def lines() -> list[Line]:
    """All of them, in the order of the page."""
    found = _ROW.findall(PAGE.read_text())
    return [Line(id_, verdict, why, _TEST.findall(why), _PLACE.findall(why)) for id_, _, verdict, why in found]
