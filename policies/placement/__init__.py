"""Which engine a request goes to: filter -> score -> pick. One file per kind, a registry by name.

A kind gives every candidate a cost (lower is better); ties go to the engine that was registered first.
"""

from collections.abc import Callable, Sequence

from policies.admission_settings import Placement
from policies.placement import least_loaded, prefix_affinity, round_robin, slo_aware
from policies.placement.candidate import Asked, Candidate

Cost = Callable[[Candidate, Asked], tuple[int, ...]]

KINDS: dict[Placement, Cost] = {
    Placement.SLO_AWARE: slo_aware.cost,
    Placement.ROUND_ROBIN: round_robin.cost,
    Placement.LEAST_LOADED: least_loaded.cost,
    Placement.PREFIX_AFFINITY: prefix_affinity.cost,
}


def ranked(kind: Placement, candidates: Sequence[Candidate], asked: Asked) -> list[Candidate]:
    """The candidates, best first."""
    cost = KINDS[kind]
    if len(candidates) == 1:
        return list(candidates)
    return sorted(candidates, key=lambda candidate: cost(candidate, asked))
