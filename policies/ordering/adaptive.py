"""First come, first served while nearly all are in time; `slo_aware` under pressure.

The order of arrival is what people expect and the only one that nobody can call unfair, so it is given up only where it
costs: when less than PRESSED_PPM of what was decided of late was served in time. It comes back when more than CALM_PPM
is. Between the two what was, stays: a regime that flips with every burst would order by neither rule. Both are read
from counters that the log feeds (`policies.ordering.fairness`), so a replay changes over at the same record.

Example: 96 % served, calm: order of arrival. 94 %: deadlines. 97 %: still deadlines. 99 %: order of arrival again.
"""

from events.base import PPM
from policies.ordering import fifo, slo_aware
from policies.ordering.fairness import Standings
from policies.ordering.rule import Rule

PRESSED_PPM = 950_000
CALM_PPM = 980_000

CALM, PRESSED = fifo.RULE, slo_aware.RULE


def is_pressed(before: bool, standings: Standings) -> bool:
    """The regime after what was decided last."""
    overall = standings.overall
    limit_ppm = CALM_PPM if before else PRESSED_PPM
    return overall.served * PPM < overall.offered * limit_ppm


def rule(pressed: bool) -> Rule:
    """What orders in this regime."""
    return PRESSED if pressed else CALM
