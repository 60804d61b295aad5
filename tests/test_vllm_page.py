"""docs/vllm.md answers every line of vLLM's offloading roadmap, and what it names is there."""

from pathlib import Path

import pytest

from services.vllm_plugin.support import VLLM_VERSIONS
from tests.vllm_page import PAGE, ROOT, VERDICTS, Line, lines

LINES = 31
CHECKLIST = ROOT.parent / "shared" / "CHECKLIST.md"
each_line = pytest.mark.parametrize("line", lines(), ids=lambda line: line.id)


def test_every_line_of_the_roadmap_is_answered_once() -> None:
    assert [line.id for line in lines()] == [f"002-{number:02}" for number in range(1, LINES + 1)]
    assert PAGE.read_text().count("| 002-") == LINES


@pytest.mark.skipif(not CHECKLIST.is_file(), reason="the roadmap's own list is not beside this checkout")
def test_the_list_itself_has_no_other_lines() -> None:
    assert CHECKLIST.read_text().count("- **002-") == LINES


@each_line
def test_an_answer_is_one_of_three_and_says_what_it_stands_on(line: Line) -> None:
    assert line.verdict in VERDICTS
    match line.verdict:
        case "used":
            assert line.tests, "what is used is shown by a test"
        case "vLLM's own":
            assert line.places, "what is vLLM's has a place there"
        case _:
            assert len(line.shown_by) > 40, "what is not covered has a reason"


@each_line
def test_the_tests_that_are_named_are_there(line: Line) -> None:
    for file, name in line.tests:
        text = (ROOT / file).read_text()
        assert f"def {name}(" in text, f"{file} has {name}"


def test_the_page_names_the_versions_that_are_tested() -> None:
    page = PAGE.read_text()
    assert [
        version for version in VLLM_VERSIONS if f"version {version}" not in page or f"vLLM {version}" not in page
    ] == []


def test_the_page_is_found_from_the_front_page() -> None:
    assert "docs/vllm.md" in Path(ROOT / "README.md").read_text()
