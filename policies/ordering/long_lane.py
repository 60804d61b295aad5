"""Long prefills on few engines at a time: so that a burst of short prompts always finds an engine.

An engine computes prompts one after the other, so behind a prefill of four seconds every prompt with a deadline of one
second is late. A prefill of at least `long_prefill_ns` therefore begins only while fewer than `long_lane_ppm` of the
engines (at least one) have so much prefill before them already; else it waits, as set aside. What lags behind
(`policies.ordering.fairness`) need not keep to the lane.

An engine counts as taken while its prefill backlog is at least half of `long_prefill_ns`.

Source: size interval task assignment (Harchol-Balter, Crovella and Murta, 1999): with heavy-tailed sizes, keeping the
large from the small does more than balancing load. Here the lane is a number of engines and not fixed ones, so that
prompts still follow their prefixes.

Example: 4 engines, 250,000 ppm: one. While a prompt of 60K tokens is computed somewhere, a second one waits until the
first has less than half of `long_prefill_ns` to go.
"""

from collections.abc import Iterable

from events.base import PPM


def is_full(backlogs_ns: Iterable[int], *, work_ns: int, long_prefill_ns: int, long_lane_ppm: int) -> bool:
    """Whether a prefill of `work_ns` has to wait for the lane; `backlogs_ns` are those of all engines that serve it.
    Always false for a short one, and with `long_prefill_ns` 0."""
    if not long_prefill_ns or work_ns < long_prefill_ns:
        return False
    backlogs = list(backlogs_ns)
    taken = sum(backlog_ns * 2 >= long_prefill_ns for backlog_ns in backlogs)
    return taken >= max(1, len(backlogs) * long_lane_ppm // PPM)
