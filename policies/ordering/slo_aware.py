"""The least deadline first; when not all can be in time, the longest prefills are set aside.

Earliest deadline first serves everybody in time where that is possible at all, and hardly anybody under overload: one
long prefill makes all behind it late. So under overload the most requests are kept rather than the oldest
(`policies.ordering.set_aside`), and engines are kept free for the short (`policies.ordering.long_lane`).

Sources: Jackson's rule (earliest due date, 1955); Moore, "An n job, one machine sequencing algorithm for minimizing the
number of late jobs" (1968).

Example: deadlines at 1.0 s (0.2 s of prefill), 1.1 s (0.9 s) and 1.2 s (0.3 s), one engine, all at 0 s. In this order
the third would be late, so the second, the longest, is set aside: two of three are in time instead of one.
"""

from policies.ordering.rule import Rule
from policies.waiting import Key, Waiting


def key(one: Waiting) -> Key:
    """The deadline (the latest start and the prefill after it), then the latest start."""
    return (one.until_ns + one.work_ns, one.until_ns)


RULE = Rule(key, sets_aside=True)
