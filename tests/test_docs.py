"""The docs hold: links lead somewhere, and every command that they name is there."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import click
import pytest

from events.decisions import DeferReason, RejectReason
from policies.admission_settings import Placement, Strategy
from policies.catalog import ACTORS, PRESETS
from policies.memory.kinds import EvictionKind
from policies.predictors.output_length import OutputPredictor
from services.cli import COMMANDS, cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)(?:#[^)\s]*)?\)")
CODE = re.compile(r"`([^`\n]+)`|^(?: {4}|\t)(.+)$", re.MULTILINE)
MAKE = re.compile(r"(?:^|&& |\| )make ([a-z][a-z-]*)")
REFUSED = [reason for reason in RejectReason if reason is not RejectReason.KV_BUDGET]
"""What admission says; of memory it has another word, to wait."""
TIDEGATE = re.compile(r"(?:^|&& |\| |/)tidegate ([a-z]+)")
SHOWN = re.compile(r"^(?: {4,}|\t)(?:\w+=\S+ )*(?:\.venv/bin/)?tidegate ([^|>&\n]+)", re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pages
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert broken == []


@pages
def test_named_targets_and_commands_are_there(page: Path) -> None:
    code = [(inline or block).strip() for inline, block in CODE.findall(page.read_text())]
    targets = {name for text in code for name in MAKE.findall(text)}
    commands = {name for text in code for name in TIDEGATE.findall(text)}
    assert targets - _targets() == set()
    assert commands - set(COMMANDS) == set()


@pages
def test_a_command_line_that_is_shown_is_one_that_is_taken(page: Path) -> None:
    """Its sub-commands and options are there, and values are within their limits; the files it names need not be."""
    lines = SHOWN.findall(page.read_text().replace("\\\n", " "))
    assert [
        line for line in lines if (why := _refused(shlex.split(line, comments=True))) and "does not exist" not in why
    ] == []


def test_the_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"} <= {page.name for page in PAGES}
    assert "demo" in _targets()


@pytest.mark.parametrize(
    "names",
    [ACTORS, PRESETS, Placement, Strategy, EvictionKind, OutputPredictor, DeferReason, REFUSED],
    ids=["actors", "presets", "placements", "strategies", "evictions", "predictors", "deferred", "rejected"],
)
def test_the_page_of_policies_names_every_kind(names: Iterable[str]) -> None:
    page = (ROOT / "docs" / "policies.md").read_text()
    assert [str(name) for name in names if f"`{name}`" not in page and f"| {name} |" not in page] == []


def _refused(words: list[str]) -> str:
    """Why the program would not take these words ("" = it would)."""
    command: click.Command | None = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        command = command.get_command(context, name)
        if command is None:
            return f"there is no {name}"
    try:
        if command is not None and not isinstance(command, click.Group):
            command.make_context("tidegate", words)
    except click.exceptions.Exit:
        return ""
    except click.ClickException as error:
        return error.format_message()
    return ""


def _targets() -> set[str]:
    [names] = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(names.split())


def test_the_map_has_one_line_per_file() -> None:
    listed = re.findall(r"^\| `([a-z_/0-9]+\.py)` \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    house = ("events", "kvstore", "policies", "replay", "services")
    there = [path.relative_to(ROOT).as_posix() for top in house for path in (ROOT / top).rglob("*.py")]
    assert sorted(listed) == sorted(path for path in there if not path.endswith("__init__.py"))
