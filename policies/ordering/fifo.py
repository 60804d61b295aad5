"""First come, first served: what engines and plain proxies do.

Example: a prompt that came at 10 ms goes before one that came at 20 ms, however urgent the second is.
"""

from policies.ordering.rule import Rule
from policies.waiting import Key, Waiting


def key(one: Waiting) -> Key:
    """When it arrived."""
    return (one.arrived_ns, 0)


RULE = Rule(key)
