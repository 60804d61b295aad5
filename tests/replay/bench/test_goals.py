"""The arithmetic of the goals, on figures made for it."""

import msgspec
import pytest

from replay.bench.goals import CLASS_REQUESTS_MIN, Goal, goals
from replay.bench.offered import Workload
from replay.bench.policies import BASELINE, DEFAULT, RIVAL, Cell, Found, Knee, summed
from replay.score import Part, Scores

LOADS = (0.5, 1.0, 1.2, 1.5)
GOODPUTS = {
    DEFAULT: (2.0, 4.0, 4.5, 4.4),
    BASELINE: (2.0, 3.0, 2.0, 0.5),
    RIVAL: (2.0, 3.9, 4.2, 4.3),
}


def cell(variant: str, load: float, goodput: float, prompts: dict[str, Part]) -> Cell:
    attained = Part(requests=1_000, slo_met=800, slo_attainment=0.8)
    scores = Scores(goodput_per_s=goodput, offered_per_s=4 * load, prompts=prompts, kinds={"llm": attained})
    return summed(variant, load, load, 1_024, [scores])


def found(goodputs: dict[str, tuple[float, ...]], prompts: dict[str, Part] | None = None) -> Found:
    cells = tuple(
        cell(variant, load, goodput, prompts or {})
        for variant, row in goodputs.items()
        for load, goodput in zip(LOADS, row, strict=True)
    )
    knee = Knee(scale=1.0, goodput_per_s=3.0, at_edge=False, sweep=())
    return Found(workload=Workload.MIXED, source="", knee=knee, batch_tokens=1_024, chunks={}, cells=cells)


def by_name(of: Found) -> dict[str, Goal]:
    return {goal.name: goal for goal in goals(of, list(GOODPUTS))}


@pytest.mark.parametrize(
    ("name", "value", "met"),
    [
        ("default / best preset, at every load", 1.0, True),
        ("default / first_come_affinity at 1", 4 / 3, True),
        ("default / first_come_affinity at 1.2", 2.25, True),
        ("default / honest_rival at 1.2", 4.5 / 4.2, True),
        ("default / honest_rival at 1.5", 4.4 / 4.3, False),
        ("default at 1.5 / its own peak", 4.4 / 4.5, True),
        ("default, worst prompt class / overall attainment", None, None),
    ],
)
def test_a_goal_is_a_quotient_held_against_what_is_asked(name: str, value: float | None, met: bool | None) -> None:
    goal = by_name(found(GOODPUTS))[name]
    assert goal.value == (None if value is None else pytest.approx(value))
    assert goal.met is met


def test_the_best_preset_is_looked_for_at_every_load() -> None:
    goal = by_name(found({**GOODPUTS, RIVAL: (2.5, 3.9, 4.2, 4.3)}))["default / best preset, at every load"]
    assert (goal.value, goal.met, goal.where) == (0.8, False, f"{RIVAL} at 0.5")


def test_the_default_is_held_against_presets_only() -> None:
    more = found({**GOODPUTS, "a variant of the default": (9.0, 9.0, 9.0, 9.0)})
    assert by_name(more)["default / best preset, at every load"].value == 1.0


def test_a_goal_says_what_is_possible_at_all() -> None:
    assert by_name(found(GOODPUTS))["default / first_come_affinity at 1"].most == pytest.approx(4 / 3)


def test_the_class_that_is_worst_off_decides() -> None:
    prompts = {
        "<4K": Part(requests=500, slo_met=450, slo_attainment=0.9),
        "16-32K": Part(requests=CLASS_REQUESTS_MIN, slo_met=15, slo_attainment=0.3),
        ">=32K": Part(requests=CLASS_REQUESTS_MIN - 1, slo_met=0, slo_attainment=0.0),
    }
    goal = by_name(found(GOODPUTS, prompts))["default, worst prompt class / overall attainment"]
    assert goal.value == pytest.approx(0.3 / 0.8)
    assert (goal.met, goal.where) == (False, "16-32K at 0.5")


def test_a_load_that_was_not_run_is_not_measured() -> None:
    whole = found(GOODPUTS)
    part = msgspec.structs.replace(whole, cells=tuple(cell for cell in whole.cells if cell.load < 1.2))
    missing = [goal.name for goal in goals(part, list(GOODPUTS)) if goal.met is None]
    assert "default / honest_rival at 1.5" in missing
    assert "default at 1.5 / its own peak" in missing
