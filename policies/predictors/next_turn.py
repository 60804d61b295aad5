"""When the next turn of a session will come: an interval, from the pauses that it made so far.

A pause is the time from the end of a turn's answer to the arrival of the next turn (somebody thinks, or a tool runs).
Of each session, and of each tenant over all its sessions, are kept a decayed mean and mean deviation; a session without
a pause of its own goes by its tenant's. The interval is mean - 2 deviations to mean + 4 deviations.

The estimator is Jacobson's for round trips ("Congestion Avoidance and Control", 1988): the same question, when does
something come back.

Example: pauses of 10, 12, 11 s: mean 10.3 s, deviation 3.4 s; the next turn is expected 3.6 to 23.8 s after the end.
"""

from typing import NamedTuple

import msgspec

TENANTS_MAX = 512
"""Tenants whose pauses are known, those heard of last."""
_MEAN_FADE, _DEVIATION_FADE = 8, 4
_BEFORE, _AFTER = 2, 4


class Pauses(msgspec.Struct, array_like=True):
    """Decayed, in ns; `count` pauses were seen."""

    mean_ns: int = 0
    deviation_ns: int = 0
    count: int = 0


class Window(NamedTuple):
    """From when until when, counted from the end of the turn before."""

    from_ns: int
    to_ns: int


def learn(pauses: Pauses, pause_ns: int) -> None:
    """One more pause."""
    if not pauses.count:
        pauses.mean_ns, pauses.deviation_ns = pause_ns, pause_ns // 2
    else:
        off_ns = pause_ns - pauses.mean_ns
        pauses.mean_ns += off_ns // _MEAN_FADE
        pauses.deviation_ns += (abs(off_ns) - pauses.deviation_ns) // _DEVIATION_FADE
    pauses.count += 1


def window(own: Pauses, tenants: Pauses | None) -> Window | None:
    """When the next turn is expected; None where nothing is known of the session, nor of its tenant."""
    known = own if own.count else tenants
    if known is None or not known.count:
        return None
    return Window(max(0, known.mean_ns - _BEFORE * known.deviation_ns), known.mean_ns + _AFTER * known.deviation_ns)
