"""The goals that the default policy is held against, computed from what was found; see `Goal`."""

from collections.abc import Sequence

import msgspec

from replay.bench.policies import BASELINE, DEFAULT, RIVAL, Cell, Found

BELOW_BEST = 0.98
"""Nowhere more than 2 % below the best preset."""
BASELINE_RATIOS = ((1.0, 1.3), (1.2, 1.8))
RIVAL_RATIOS = ((1.2, 1.05), (1.5, 1.05))
"""(Load, at least so many times its goodput)."""
OWN_LOAD, OWN_PEAK_SHARE = 1.5, 0.95
CLASS_SHARE = 0.5
"""No prompt-length class attains less than this share of the overall attainment."""
CLASS_REQUESTS_MIN = 50
"""Classes with fewer requests over all seeds say too little."""


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """One goal on one workload. `value` is what was found (None: the loads that it needs were not run), `most` the most
    that is possible, where everything offered meets its SLO (None: not limited by that), `where` which case decides."""

    workload: str
    name: str
    at_least: float
    value: float | None
    most: float | None = None
    where: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is met; None where it was not measured."""
        return None if self.value is None else self.value >= self.at_least


def goals(found: Found, presets: Sequence[str]) -> list[Goal]:
    """All goals on one workload. `presets` are those that the default is held against."""
    return [
        _best(found, presets),
        *(_against(found, BASELINE, load, ratio) for load, ratio in BASELINE_RATIOS),
        *(_against(found, RIVAL, load, ratio) for load, ratio in RIVAL_RATIOS),
        _own(found),
        _classes(found),
    ]


def _goal(found: Found, name: str, at_least: float, value: float | None, where: str = "") -> Goal:
    return Goal(workload=found.workload.value, name=name, at_least=at_least, value=value, where=where)


def _cells(found: Found, variant: str) -> list[Cell]:
    return [cell for cell in found.cells if cell.variant == variant]


def _best(found: Found, presets: Sequence[str]) -> Goal:
    """The default against the best preset, at the load where it is worst."""
    name, least, where = "default / best preset, at every load", None, ""
    for own in _cells(found, DEFAULT):
        rivals = [cell for cell in found.cells if cell.load == own.load and cell.variant in presets]
        best = max(rivals, key=lambda cell: cell.goodput_per_s)
        share = own.goodput_per_s / best.goodput_per_s if best.goodput_per_s else 1.0
        if least is None or share < least:
            least, where = share, f"{best.variant} at {own.load:g}"
    return _goal(found, name, BELOW_BEST, least, where)


def _against(found: Found, other: str, load: float, at_least: float) -> Goal:
    name = f"default / {other} at {load:g}"
    own, beside = found.cell(DEFAULT, load), found.cell(other, load)
    if own is None or beside is None or not beside.goodput_per_s:
        return _goal(found, name, at_least, None)
    goal = _goal(found, name, at_least, own.goodput_per_s / beside.goodput_per_s)
    return msgspec.structs.replace(goal, most=own.offered_per_s / beside.goodput_per_s)


def _own(found: Found) -> Goal:
    name, last = f"default at {OWN_LOAD:g} / its own peak", found.cell(DEFAULT, OWN_LOAD)
    peak = max(_cells(found, DEFAULT), key=lambda cell: cell.goodput_per_s, default=None)
    if last is None or peak is None or not peak.goodput_per_s:
        return _goal(found, name, OWN_PEAK_SHARE, None)
    return _goal(found, name, OWN_PEAK_SHARE, last.goodput_per_s / peak.goodput_per_s, f"peak at {peak.load:g}")


def _classes(found: Found) -> Goal:
    """The prompt-length class that is worst off, at the load where it is."""
    name, least, where = "default, worst prompt class / overall attainment", None, ""
    for own in _cells(found, DEFAULT):
        for prompts, part in own.prompts.items():
            if part.requests < CLASS_REQUESTS_MIN or not own.attainment_llm:
                continue
            share = part.slo_attainment / own.attainment_llm
            if least is None or share < least:
                least, where = share, f"{prompts} at {own.load:g}"
    return _goal(found, name, CLASS_SHARE, least, where)
