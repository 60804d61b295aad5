"""The highest priority first, and among equals the one that must start first. Nobody is set aside.

A low priority is not starved: the first in line is passed at most `passes_max` times, and every request gets a word by
its latest start. Source: vLLM's `--scheduling-policy priority`, with the latest start instead of the arrival.

Example: priority 5 goes before priority 0; of two with priority 0 the one whose latest start is at 1.2 s goes before
the one at 1.5 s.
"""

from policies.ordering.rule import Rule
from policies.waiting import Key, Waiting


def key(one: Waiting) -> Key:
    """Priority, then latest start."""
    return (-one.request.priority, one.until_ns)


RULE = Rule(key)
