"""What a strategy is: how those that wait are ordered, and what may be done with those that are in the way."""

from collections.abc import Callable
from typing import NamedTuple

from policies.waiting import Key, Waiting


class Rule(NamedTuple):
    """One strategy.

    `key` orders a line, least first; it is asked once, when a request is deferred, so it looks only at what does not
    change while the request waits. `sets_aside`: when not all that wait can be in time, some are set aside
    (`policies.ordering.set_aside`), and long prefills keep to their lane (`policies.ordering.long_lane`). `by_urgency`:
    kinds take turns by the urgency of their quotas (`policies.ordering.kind_turns`), instead of by their first in line.
    """

    key: Callable[[Waiting], Key]
    sets_aside: bool = False
    by_urgency: bool = False
