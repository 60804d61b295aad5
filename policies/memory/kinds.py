"""Which cached slice is worth the least: the kinds of eviction, by name. Algorithm 3, for slices.

A kind gives a slice that nobody uses a rank when it is let go; the smallest rank is evicted first. A rank does not
change while nobody uses the slice, so a heap keeps the order: an eviction costs O(log n).

- lru: let go longest ago.
- fifo: computed longest ago.
- hotness: the fewest uses of late (each use halves with time).
- slo_aware: the least value per byte, that is P(used again within the horizon) x what it costs to compute it again /
  bytes. Values age: a rank is the value on top of that of the slice evicted last, so what is not used for long is
  overtaken by what comes (GreedyDual-Size-Frequency, Cherkasova 1998). Marconi adds recency and FLOPs saved per byte;
  here recency is in the floor.

Example (slo_aware): of two slices of one size, one in ten of the first's like comes back and costs 20 ms, nine in ten
of the second's like and cost 10 ms: values 2 and 9, the first goes.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from policies.memory.reuse import Past, Use, come_back_ppm


class EvictionKind(StrEnum):
    """The kinds of slice eviction."""

    LRU = "lru"
    FIFO = "fifo"
    HOTNESS = "hotness"
    SLO_AWARE = "slo_aware"


Rank = Callable[[Use, Past], int]


def _lru(use: Use, past: Past) -> int:  # noqa: ARG001 - ranks are asked alike
    return use.let_go_ns


def _fifo(use: Use, past: Past) -> int:  # noqa: ARG001
    return use.stored_ns


def _hotness(use: Use, past: Past) -> int:  # noqa: ARG001
    return use.heat.order()


def _slo_aware(use: Use, past: Past) -> int:
    return past.floor + come_back_ppm(past, use) * max(1, use.cost_ns) // max(1, use.size)


RANKS: Final[Mapping[EvictionKind, Rank]] = {
    EvictionKind.LRU: _lru,
    EvictionKind.FIFO: _fifo,
    EvictionKind.HOTNESS: _hotness,
    EvictionKind.SLO_AWARE: _slo_aware,
}
"""Kind -> the rank of a slice that was just let go."""


def rank_of(kind: EvictionKind, use: Use, past: Past) -> int:
    """The rank of a slice that was just let go: the smallest is evicted first."""
    return RANKS[kind](use, past)


def kind_of(name: str) -> EvictionKind:
    """The kind of that name; one that this version does not know is lru."""
    return EvictionKind(name) if name in EvictionKind.__members__.values() else EvictionKind.LRU
