"""What may go wrong in virtual time, drawn by a seed."""

from enum import StrEnum
from random import Random

import msgspec

from events.base import NS_PER_MS, NS_PER_S

OUT_MS = (500, 15_000)
"""How long an engine is gone."""


class FaultKind(StrEnum):
    """`engine_lost` comes back after `for_ns`; a lost holder never does."""

    ENGINE_LOST = "engine_lost"
    HOLDER_LOST = "holder_lost"
    CLIENT_GONE = "client_gone"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One of them at `at_ns` after the start. `pick` chooses engine, holder or request: modulo those there are."""

    at_ns: int
    kind: FaultKind
    pick: int
    for_ns: int = 0


def draw_faults(
    seed: int, *, span_ns: int, engines_lost: int = 2, holders_lost: int = 1, clients_gone: int = 10
) -> tuple[Fault, ...]:  # fmt: skip
    """That many of each kind within the span, in order of time."""
    rng = Random(seed)  # noqa: S311
    counts = {
        FaultKind.ENGINE_LOST: engines_lost, FaultKind.HOLDER_LOST: holders_lost, FaultKind.CLIENT_GONE: clients_gone,
    }  # fmt: skip
    faults = [
        Fault(
            at_ns=rng.randrange(max(1, span_ns)),
            kind=kind,
            pick=rng.randrange(NS_PER_S),
            for_ns=rng.randint(*OUT_MS) * NS_PER_MS if kind is FaultKind.ENGINE_LOST else 0,
        )
        for kind, count in counts.items()
        for _ in range(count)
    ]
    return tuple(sorted(faults, key=lambda fault: (fault.at_ns, fault.kind, fault.pick)))
