"""Which engine a request goes to: filter -> score -> pick. One file per kind, a registry by name.

What cannot serve a request is filtered out before (`policies.judgement`). A kind gives every candidate a score from 0
to 1,000,000 (ppm); the highest is picked. Ties go to the engine that holds fewer tokens, then to the one that was
registered first.
"""

from collections.abc import Callable, Sequence

from policies.admission_settings import Placement
from policies.placement import (
    affinity,
    dynamo_kv,
    least_loaded,
    load_balanced,
    locality,
    prefix_affinity,
    round_robin,
    slo_aware,
    topology_aware,
)
from policies.placement.candidate import Asked, Candidate

Score = Callable[[Candidate, Asked], int]

KINDS: dict[Placement, Score] = {
    Placement.SLO_AWARE: slo_aware.score,
    Placement.ROUND_ROBIN: round_robin.score,
    Placement.LEAST_LOADED: least_loaded.score,
    Placement.PREFIX_AFFINITY: prefix_affinity.score,
    Placement.LOAD_BALANCED: load_balanced.score,
    Placement.AFFINITY: affinity.score,
    Placement.LOCALITY: locality.score,
    Placement.TOPOLOGY_AWARE: topology_aware.score,
    Placement.DYNAMO_KV: dynamo_kv.score,
}
LOOKS_AT_ROOM = frozenset({Placement.LOAD_BALANCED, Placement.AFFINITY, Placement.LOCALITY, Placement.TOPOLOGY_AWARE})
"""Kinds whose candidates need `budget_left_ppm` and `conflict`."""
WAITS_FOR_BEST = frozenset({Placement.SLO_AWARE})
"""Kinds that go by what a request costs, its waiting included: it may be right to wait for the best engine."""
TURNS_MAX = 1_024
"""Lines of which turns are counted; the one that nothing was placed of for longest goes first."""


def count_turn(turns: dict[str, int], line: str) -> None:
    """One more request of this line was placed."""
    turns[line] = turns.pop(line, 0) + 1
    if len(turns) > TURNS_MAX:
        del turns[next(iter(turns))]


def ranked(kind: Placement, candidates: Sequence[Candidate], asked: Asked) -> list[Candidate]:
    """The candidates, best first."""
    score = KINDS[kind]
    if len(candidates) == 1:
        return list(candidates)
    return sorted(candidates, key=lambda candidate: (-score(candidate, asked), candidate.load_tokens))
