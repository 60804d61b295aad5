"""How a share moves towards what is wanted: never far at once, not for trifles, and more carefully the more it swings.

    error = wanted - share; nothing below the deadband
    the way turned since the last move: the gain is halved (not below GAIN_MIN)
    the last HISTORY moves went one way: the gain is doubled again (not above 1)
    move = error x gain, at most `step_max_ppm`

An integral controller with a sign-driven gain, after the step sizes of Rprop (Riedmiller and Braun, 1993). Where the
wanted share itself falls by s for every unit of the share, a move leaves 1 - gain (1 + s) of the error. Twice the gain
is used only where the gain before it did not overshoot, so gain (1 + s) stays below 2 and every move leaves less error:
no limit cycle for s up to 1 / GAIN_MIN - 2, once the first swings have halved the gain, as long as it is not a bound
that cuts off what is wanted right where the share wants to rest.

Example: share 5 %, wanted 40 %, steps of 10 %: 15, 25, 35, 40. Then 10 % are wanted: with half the gain 30, 20, 15,
12.5, and with the whole gain again 10.
"""

import msgspec

from events.base import PPM

HISTORY = 4
"""Moves remembered: so many in one direction restore the gain."""
GAIN_MIN_PPM = PPM // 16
GAIN_DOUBLINGS = 4
"""From the least gain back to 1."""


class Share(msgspec.Struct, kw_only=True):
    """The embedding share of an engine, and what its last moves say about the gain. `way` is 1, -1 or 0 (no move yet),
    `same` how many moves in a row went that way (at most HISTORY)."""

    embedding_ppm: int
    gain_ppm: int = PPM
    way: int = 0
    same: int = 0


def settle_periods(low_ppm: int, high_ppm: int, step_max_ppm: int) -> int:
    """Within so many periods after the load has stopped changing a share stands still, whatever was before: the gain
    comes back, then full steps, then the rest."""
    return HISTORY + GAIN_DOUBLINGS + -(-(high_ppm - low_ppm) // step_max_ppm) + 1


def moved(share: Share, wanted_ppm: int, *, low_ppm: int, high_ppm: int, deadband_ppm: int, step_max_ppm: int) -> int:
    """The next embedding share, between the bounds; the same one where it stays. A share outside of its bounds goes
    straight to the nearer one. For a bound there is no deadband: a share that wants it comes to rest on it."""
    if not low_ppm <= share.embedding_ppm <= high_ppm:
        return min(max(share.embedding_ppm, low_ppm), high_ppm)
    wanted_ppm = min(max(wanted_ppm, low_ppm), high_ppm)
    error = wanted_ppm - share.embedding_ppm
    if not error or (abs(error) <= deadband_ppm and wanted_ppm not in (low_ppm, high_ppm)):
        return share.embedding_ppm
    way = 1 if error > 0 else -1
    step = min(max(1, abs(error) * _gain(share, way) // PPM), step_max_ppm)
    return share.embedding_ppm + way * step


def note(share: Share, embedding_ppm: int, *, learns: bool) -> None:
    """The share was set. `learns` is false for what an operator did: that says nothing about the load."""
    way = (embedding_ppm > share.embedding_ppm) - (embedding_ppm < share.embedding_ppm)
    if learns and way:
        share.gain_ppm = _gain(share, way)
        share.same = min(share.same + 1, HISTORY) if way == share.way else 1
        share.way = way
    share.embedding_ppm = embedding_ppm


def _gain(share: Share, way: int) -> int:
    """The gain of a move that way."""
    if share.way and way != share.way:
        return max(share.gain_ppm // 2, GAIN_MIN_PPM)
    return min(2 * share.gain_ppm, PPM) if share.same >= HISTORY else share.gain_ppm
