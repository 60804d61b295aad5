"""What may go wrong in virtual time, drawn by a seed."""

from collections.abc import Iterator
from enum import StrEnum
from random import Random
from typing import Final, NamedTuple

import msgspec

from events.base import NS_PER_MS, NS_PER_S, PPM, EngineId

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


class TransferFaults(msgspec.Struct, frozen=True, kw_only=True):
    """Of the transfers between tiers so many fail, at their end, and so many others stall for `stall_ns`."""

    seed: int
    failing_ppm: int = 0
    stalling_ppm: int = 0
    stall_ns: int = 2 * NS_PER_S


class Fate(NamedTuple):
    """What becomes of a transfer."""

    fails: bool
    stall_ns: int


FINE: Final = Fate(fails=False, stall_ns=0)


def fates(faults: TransferFaults, engine_id: EngineId) -> Iterator[Fate]:
    """The fate of each transfer of an engine, in the order in which they begin. Never ends."""
    rng = Random(f"{faults.seed}/{engine_id}")  # noqa: S311
    while True:
        drawn = rng.randrange(PPM)
        stalls = faults.failing_ppm <= drawn < faults.failing_ppm + faults.stalling_ppm
        yield Fate(fails=drawn < faults.failing_ppm, stall_ns=faults.stall_ns if stalls else 0)
