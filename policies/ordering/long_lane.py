"""Long prefills on few engines at a time: so that a burst of short prompts always finds an engine.

An engine computes prompts one after the other, so behind a prefill of four seconds every prompt with a deadline of one
second is late. A prefill of at least `long_prefill_ns` therefore begins only while a part of the engines at most (at
least one) have so much prefill before them already; else it waits, as set aside. What lags behind
(`policies.ordering.fairness`) need not keep to the lane.

How wide the lane is depends on how much was refused of late. While nearly nobody is, there are engines for the short
ones all the same, and a lane that is full only keeps long ones waiting until they are too late: it is
`long_lane_calm_ppm` of the engines. Under overload every long prefill costs several short ones: it narrows to
`long_lane_ppm`, in a straight line between the shares served at which `policies.ordering.adaptive` changes over.

An engine counts as taken while its prefill backlog is at least half of `long_prefill_ns`.

Source: size interval task assignment (Harchol-Balter, Crovella and Murta, 1999): with heavy-tailed sizes, keeping the
large from the small does more than balancing load. Here the lane is a number of engines and not fixed ones, so that
prompts still follow their prefixes.

Example: 4 engines, 99 % served, 500,000 ppm: two. While prompts of 60K tokens are computed on two of them, a third one
waits until one has less than half of `long_prefill_ns` to go. At 94 % served, 250,000 ppm: the second waits already.
"""

from collections.abc import Iterable

from events.base import PPM
from policies.ordering.adaptive import CALM_PPM, PRESSED_PPM


def is_full(backlogs_ns: Iterable[int], *, work_ns: int, long_prefill_ns: int, long_lane_ppm: int) -> bool:
    """Whether a prefill of `work_ns` has to wait for the lane; `backlogs_ns` are those of all engines that serve it.
    Always false for a short one, and with `long_prefill_ns` 0."""
    if not long_prefill_ns or work_ns < long_prefill_ns:
        return False
    backlogs = list(backlogs_ns)
    taken = sum(backlog_ns * 2 >= long_prefill_ns for backlog_ns in backlogs)
    return taken >= max(1, len(backlogs) * long_lane_ppm // PPM)


def width_ppm(served_ppm: int, *, pressed_ppm: int, calm_ppm: int) -> int:
    """The share of the engines that the lane has while `served_ppm` of the requests are served: `calm_ppm` (at least
    `pressed_ppm`) while nearly all are, `pressed_ppm` under pressure."""
    calm = min(max(served_ppm - PRESSED_PPM, 0), CALM_PPM - PRESSED_PPM)
    return pressed_ppm + max(calm_ppm - pressed_ppm, 0) * calm // (CALM_PPM - PRESSED_PPM)
