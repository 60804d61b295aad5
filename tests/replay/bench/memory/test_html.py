"""The page of a benchmark: one file, well-formed, that needs nothing else and leaves nothing out."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from replay.bench.memory import charts, html
from replay.bench.memory.charts import DARK, LIGHT
from replay.bench.memory.goals import NEVER
from replay.bench.memory.panels import memory_of, sections
from replay.bench.memory.report import EngineModel, Goal, Report
from replay.bench.memory.systems import CAREFUL, OURS, SHIPPED, SYSTEMS, UNLIMITED
from replay.bench.memory.workloads import PROFILE
from replay.costmodel import PROFILES
from tests.replay.bench.memory.drawn_report import LOADS, drawn_report

SHOWN = (OURS, CAREFUL, SHIPPED, "tidegate_dram5", UNLIMITED)
EVIL = "<script>alert('x')</script> & \"$x_1$\""


class Elements(HTMLParser):
    """All elements of a page as a browser's rules see them, with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(page)
    return parser.found


def tree(page: str) -> ET.Element:
    """The page as XML: raises where an element is not closed, or a sign not escaped."""
    return ET.fromstring(page.split("<!DOCTYPE html>")[1])


def text_of(page: str) -> str:
    return " ".join(" ".join(tree(page).itertext()).split())


@pytest.fixture(scope="module")
def report() -> Report:
    return drawn_report(1, systems=SHOWN, workloads=("mixed",), seeds=(1, 2), with_series=True)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return html.page(report)


def test_a_page_is_well_formed_and_names_everything_that_was_compared(page: str, report: Report) -> None:
    said = text_of(page)
    for name in (
        *(one.title for one in report.systems),
        *(one.name for one in report.systems),
        "mixed",
        "light engines",
    ):
        assert name in said
    for load in LOADS:
        assert f"load {load:g}: " in said
    for goal in report.goals:
        assert goal.name in said
    assert said.count(" 31/47 %") == len(report.cells)
    for checked in report.calibrations[0].checked:
        assert checked.name in said


def test_a_page_needs_nothing_but_itself(page: str) -> None:
    found = elements(page)
    assert {tag for tag, _ in found} & {"script", "link", "iframe", "img", "object", "embed", "base"} == set()
    targets = [
        value or "" for _, attrs in found for name, value in attrs.items() if name in ("href", "src", "xlink:href")
    ]
    assert targets
    assert [target for target in targets if not target.startswith("#")] == []
    ids = {attrs["id"] for _, attrs in found if "id" in attrs}
    assert {target[1:] for target in targets} <= ids
    assert "http" not in page
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_there_is_a_picture_and_a_table_of_each_quantity(page: str) -> None:
    pictures = [attrs["aria-label"] or "" for tag, attrs in elements(page) if tag == "svg" and "aria-label" in attrs]
    begins = (
        "Goodput against load", "SLO attainment against memory, load 1", "SLO attainment against memory, load 1.2",
        "TTFT p99", "TPOT p99", "Prompt tokens found cached", "Who is served", "Occupancy over time",
        "Quota utilisation over time", "Waiting over time",
    )  # fmt: skip
    assert [begin for begin in begins if not any(name.startswith(begin) for name in pictures)] == []
    figures = tree(page).findall(".//figure")
    assert len(figures) == len(pictures) == len(begins)
    assert [figure for figure in figures if figure.find(".//table") is None] == []


def test_every_table_of_results_says_where_its_numbers_come_from(page: str) -> None:
    for figure in tree(page).findall(".//figure"):
        assert [one.text for one in figure.findall(".//table//span[@class='origin modelled']")] == ["modelled"]
    goals = tree(page).findall(".//table[@class='goals']/tbody/tr")
    assert goals
    assert [row for row in goals if row.find(".//span[@class='origin modelled']") is None] == []
    live = html.page(drawn_report(1, systems=(OURS,), workloads=("mixed",), loads=(1.0,), engine=EngineModel.LIVE))
    assert [one.text for one in tree(live).findall(".//table[@class='cells']//span")] == ["observed"]


def test_hits_stand_beside_the_bounds(page: str) -> None:
    [figure] = [one for one in tree(page).findall(".//figure") if "found cached" in " ".join(one.itertext())]
    rows = [[" ".join(cell.itertext()) for cell in row] for row in figure.findall(".//tbody/tr")]
    assert ["ideal", "-", "-", "46.0 %", "100.0 %"] in rows
    assert ["belady, DRAM 5 %", "-", "-", "41.0 %", "89.1 %"] in rows
    drawn = [text.text for text in figure.findall(".//svg//text")]
    assert {"ideal", "belady, DRAM 10 %", "lru, DRAM 10 %"} <= set(drawn)
    assert "belady, DRAM 5 %" not in drawn


def test_two_pages_of_one_report_are_the_same_bytes(page: str, report: Report) -> None:
    assert html.page(report) == page


def test_goals_say_what_was_found_what_was_wanted_and_what_bounds_it(report: Report) -> None:
    goals = (
        Goal(workload="mixed", name="first", limit=1.3, value=1.42),
        Goal(
            workload="mixed", name="second", limit=1.8, value=1.5, bound=1.91, bound_by="unlimited KV", where="at 1.2"
        ),
        Goal(workload="mixed", name="third", limit=0.15, value=0.1, at_most=True),
        Goal(workload="mixed", name="fourth", limit=0.6, value=None),
        Goal(workload="mixed", name="fifth", limit=1.8, value=1.2, bound=1.25, bound_by="the offer"),
        Goal(workload="mixed", name="sixth", limit=0.8, value=NEVER, at_most=True),
    )
    said = text_of(html.page(replace(report, goals=goals, runs=(), cells=())))
    assert "Goals: 2 met, 3 not met (of them 1 out of reach, and 0 that their bound misses too), 1 not measured" in said
    assert "✓ met 1.420 ≥ 1.3" in said
    assert "✗ not met 1.500 ≥ 1.8; at 1.2; at most 1.910, by unlimited KV" in said
    assert "✗ not met, out of reach 1.200 ≥ 1.8; at most 1.250, by the offer" in said
    assert "✗ not met infinite ≤ 0.8" in said
    assert "✓ met 0.100 ≤ 0.15" in said
    assert "– not measured ≥ 0.6" in said


def test_names_are_text_whatever_is_in_them() -> None:
    shown = drawn_report(1, systems=(OURS, CAREFUL), workloads=(EVIL,), loads=(1.0,), seeds=(1,), with_series=True)
    evil = replace(
        shown, systems=tuple(replace(one, title=f"{one.title} {EVIL}", source=EVIL) for one in shown.systems),
        suite=EVIL, uncalibrated=EVIL, goals=tuple(replace(goal, name=EVIL, bound_by=EVIL) for goal in shown.goals),
    )  # fmt: skip
    page = html.page(evil)
    assert "script" not in {tag for tag, _ in elements(page)}
    assert page.count("<script") == 0
    assert EVIL in text_of(page)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "calibrated: the model's errors"),
        ({"uncalibrated": "no run was measured"}, "uncalibrated: no run was measured"),
        ({"stopped_early": True}, "stopped early:"),
        ({"goals": ()}, "This report has no goals."),
        ({"calibrations": ()}, "No model was held against anything"),
        ({"workloads": (), "runs": (), "cells": (), "systems": (), "loads": ()}, "Memory benchmark: drawn"),
    ],
)
def test_what_a_reader_has_to_know_is_said(
    report: Report, changes: dict[str, object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "has_charts", lambda: False)
    assert says in text_of(html.page(replace(report, **changes)))


def test_calibrated_names_the_boards_and_is_said_of_models_alone(report: Report) -> None:
    """What stands beside measured runs is the engine, on their boards; what the benchmark's own step times rest on is
    said in the same breath. Of engines that answered themselves nothing was modelled."""
    said = text_of(html.page(report))
    assert "on the boards of those runs" in said
    assert f"Step times of this benchmark: {PROFILES[PROFILE].step.source}." in said
    live = text_of(html.page(replace(report, calibrations=())))
    assert "calibrated:" not in live


def test_without_the_extra_there_are_tables_and_one_line_says_why(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    page = html.page(report)
    assert "without pictures: the extra charts is not installed" in text_of(page)
    assert [tag for tag, _ in elements(page) if tag == "svg"] == []
    assert len(tree(page).findall(".//figure")) == 10
    assert [figure for figure in tree(page).findall(".//figure") if figure.find(".//table") is None] == []


def test_predictions_stand_beside_what_came_and_notes_where_they_were_made(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "has_charts", lambda: False)
    noted = replace(report, runs=tuple(replace(run, notes=("the client was on time",)) for run in report.runs))
    page = html.page(noted)
    assert [one.text for one in tree(page).findall(".//ul[@class='notes']/li")] == ["the client was on time"]
    said = text_of(page)
    assert "Predicted beside actual" in said
    assert "Tidegate 1.2 40.0 ms 7.0 % 900.0 ms - - -" in said
    assert "Engines beside one another" not in said


def test_the_same_system_on_engines_of_two_kinds_is_held_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "has_charts", lambda: False)
    few = {"systems": (OURS, CAREFUL), "workloads": ("mixed",), "loads": (0.5, 1.0), "seeds": (1,)}
    light = drawn_report(1, **few)  # type: ignore[arg-type]
    live = drawn_report(2, **{**few, "systems": (OURS,)}, engine=EngineModel.LIVE)  # type: ignore[arg-type]
    page = html.page(replace(light, runs=(*light.runs, *live.runs), cells=(*light.cells, *live.cells)))
    [section] = [one for one in tree(page).iter("section") if one.get("id") == "engines"]
    rows = [["".join(cell.itertext()) for cell in row] for row in section.findall(".//tbody/tr")]
    assert {(row[1], row[2]) for row in rows} == {("Tidegate", "0.5"), ("Tidegate", "1")}
    names = ["".join(cell.itertext()) for cell in section.findall(".//thead//th")]
    assert names[4:] == ["live (observed)", "light (modelled)", "off live"]
    [ttft] = [row for row in rows if row[2:4] == ["0.5", "TTFT p50"]]
    assert ttft[4:] == ["375.0 ms", "375.0 ms", "+0.0%"]
    sections = [one.get("id") for one in tree(page).iter("section")]
    assert len(sections) == len(set(sections))


@pytest.mark.parametrize(
    ("engine", "of"),
    [(EngineModel.LIGHT, "the careful baseline's knee"), (EngineModel.LIVE, "the workload's own pace")],
)
def test_a_load_is_a_multiple_of_the_knee_and_live_of_the_workloads_pace(engine: EngineModel, of: str) -> None:
    [section] = sections(drawn_report(1, systems=(OURS,), workloads=("mixed",), seeds=(1,), engine=engine))
    by_load = [one for one in section.panels if one.title.endswith("against load")]
    assert {one.x_label for one in by_load} == {f"load, multiples of {of}"}
    assert len(by_load) > 1


def test_one_kind_of_memory_is_no_picture_of_memory(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "has_charts", lambda: False)
    alone = replace(report, cells=tuple(cell for cell in report.cells if cell.system == OURS))
    assert "against memory" in text_of(html.page(report))
    assert "against memory" not in text_of(html.page(alone))


def test_a_cell_without_runs_and_a_system_without_cells_are_no_hindrance(report: Report) -> None:
    fewer = replace(report, runs=(), cells=report.cells[:1], systems=(*report.systems, SYSTEMS["dynamo_kv"]))
    said = text_of(html.page(fewer))
    assert "Dynamo's rule" in said
    assert "Who is served" not in said


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_lines_and_letters_stand_out_from_their_paper(colours: dict[str, str]) -> None:
    for name, colour in colours.items():
        if name in ("paper", "rule", "shade"):
            continue
        needed = 4.5 if name in ("ink", "dim", "good", "bad", "s0") else 3.0  # s0 is that of links, too.
        assert _contrast(colour, colours["paper"]) >= needed, name
    assert colours.keys() == LIGHT.keys()


def test_lazy_tiers_are_another_memory() -> None:
    assert memory_of(SYSTEMS[OURS]) == "lazy DRAM 10 %"
    assert memory_of(SYSTEMS[f"{OURS}_write_through"]) == "DRAM 10 %"


def test_systems_are_told_apart_without_colours() -> None:
    look = charts.styles(list(SYSTEMS.values()))
    shown = {(style.marker, style.dash, style.colour) for style in look.values()}
    assert len(shown) == len(SYSTEMS)
    assert look[OURS].width == max(style.width for style in look.values())
    assert {look[name].colour for name in (OURS, "tidegate_dram5", "tidegate_unlimited_kv")} == {look[OURS].colour}


def test_the_template_is_beside_its_module() -> None:
    assert (Path(html.__file__).parent / html.TEMPLATE).is_file()
