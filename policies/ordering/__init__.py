"""In which order those that wait are looked at: strategies, one file each, a registry by name.

Whatever the strategy, nobody is starved: the first in the order is passed by at most `passes_max` later ones, and every
deferred request gets a word by its latest start, because what has not gone by then is refused, or goes late
(`policies.late_service`), with the next tick (one is asked for at that time).
"""

import msgspec

from events.decisions import SharesSet
from events.request import RequestArrived
from policies.admission_settings import AdmissionSettings, Strategy
from policies.ordering import (
    adaptive,
    cost_optimized,
    fairness,
    fifo,
    hybrid,
    kind_turns,
    long_lane,
    priority,
    slo_aware,
)
from policies.ordering.fairness import Standings
from policies.ordering.kind_turns import KindTurns
from policies.ordering.rule import Rule

STRATEGIES: dict[Strategy, Rule] = {
    Strategy.FIFO: fifo.RULE,
    Strategy.PRIORITY: priority.RULE,
    Strategy.SLO_AWARE: slo_aware.RULE,
    Strategy.COST_OPTIMIZED: cost_optimized.RULE,
    Strategy.HYBRID: hybrid.RULE,
}
"""All but `adaptive`, which picks among them."""


class Ordering(msgspec.Struct, kw_only=True):
    """What the order depends on besides those that wait. Bounded by the limits of its parts.

    `pressed` is the regime of `adaptive`. `ordered_by` is what the lines are sorted by now."""

    standings: Standings = msgspec.field(default_factory=Standings)
    turns: KindTurns = msgspec.field(default_factory=KindTurns)
    pressed: bool = False
    ordered_by: str = ""


def rule_of(ordering: Ordering, settings: AdmissionSettings) -> Rule:
    """The strategy that is in force."""
    if settings.strategy is Strategy.ADAPTIVE:
        return adaptive.rule(ordering.pressed)
    return STRATEGIES[settings.strategy]


def name_of(ordering: Ordering, settings: AdmissionSettings) -> str:
    """What lines are sorted by: changes when they have to be sorted anew."""
    pressed = settings.strategy is Strategy.ADAPTIVE and ordering.pressed
    return f"{settings.strategy.value}{':pressed' if pressed else ''}"


def decided(ordering: Ordering, request: RequestArrived, *, served: bool, tokens: int = 0) -> None:
    """It was admitted (with that many `tokens` to prefill; `served`: to be in time) or refused."""
    fairness.decided(ordering.standings, request, served=served)
    ordering.pressed = adaptive.is_pressed(ordering.pressed, ordering.standings)
    if tokens:
        kind_turns.went(ordering.turns, request.kind, tokens)


def lags(ordering: Ordering, request: RequestArrived, settings: AdmissionSettings) -> bool:
    """Whether it belongs to those that are served too little."""
    return fairness.lags(ordering.standings, request, fairness_ppm=settings.fairness_ppm)


def lane_ppm(ordering: Ordering, settings: AdmissionSettings) -> int:
    """The share of the engines that may be in long prefills now."""
    return long_lane.width_ppm(
        fairness.served_ppm(ordering.standings),
        pressed_ppm=settings.long_lane_ppm, calm_ppm=settings.long_lane_calm_ppm,
    )  # fmt: skip


def served_ppm(ordering: Ordering) -> int:
    """The share of all that was decided of late that was served in time."""
    return fairness.served_ppm(ordering.standings)


def kept_tokens(ordering: Ordering, settings: AdmissionSettings) -> int:
    """Prompt tokens for which room is kept (0 = none): see `policies.kept_room`."""
    return fairness.kept_tokens(ordering.standings, fairness_ppm=settings.fairness_ppm)


def shares_set(ordering: Ordering, event: SharesSet) -> None:
    """Quota divided the memory anew."""
    kind_turns.weigh(ordering.turns, event)
