"""How a cached slice was used, and how likely slices like it come back: what the kinds of eviction go by.

Slices are alike (one `group`) when they were used about as often, stand about as far from the end of the prompt that
used them last, and that prompt was about as long (all by powers of two). Of each group is counted how many were let
go and how many of those came back within the horizon, the evicted ones too: those are remembered by name for a while,
else a group that is always evicted early would look as if it never came back.

Learning reuse by class of object is what LHD does (Beckmann, NSDI 2018); names without contents are ARC's ghosts.
"""

from collections.abc import Hashable

import msgspec

from events.base import PPM

USES_MAX = 6
"""Slices used more often than this are alike in that respect."""
GONE_MAX = 16_384
"""Evicted slices that are remembered by name."""
LET_GO_MAX = 1_024
"""When so many of a group were let go its counts are halved: it follows what changes."""
HEAT_ONE = 1 << 16
HALVINGS_MAX = 64
"""After so many half-lives nothing is left of a heat."""
HALF_LIVES = 4
"""Half-lives of heat in a horizon."""


class Heat(msgspec.Struct):
    """Uses of late: each counts HEAT_ONE and halves with every half-life since (between two of them on a straight
    line). Kept so that heats compare the same at any later time: `amount` as of half-life number `epoch`."""

    epoch: int = 0
    amount: int = 0

    def add(self, now_ns: int, half_life_ns: int) -> None:
        """One more use."""
        epoch, beyond_ns = divmod(now_ns, half_life_ns)
        if epoch > self.epoch:
            self.amount >>= min(epoch - self.epoch, HALVINGS_MAX)
            self.epoch = epoch
        self.amount += HEAT_ONE + HEAT_ONE * beyond_ns // half_life_ns

    def order(self) -> int:
        """Larger is hotter, at any time: about the logarithm of what it would be if nothing had halved."""
        if not self.amount:
            return 0
        whole = self.amount.bit_length() - 1
        return ((self.epoch + whole) << 16) + ((self.amount << 16) >> whole) - HEAT_ONE


class Use(msgspec.Struct):
    """A slice's past, and what it takes to compute it (`cost_ns`) and to keep it (`size`, in any one unit)."""

    stored_ns: int
    cost_ns: int
    size: int
    uses: int = 1
    heat: Heat = msgspec.field(default_factory=Heat)
    group: int = 0
    let_go_ns: int = 0


class Group(msgspec.Struct):
    """Of slices that are alike: so many were let go, so many came back."""

    let_go: int = 0
    came_back: int = 0


class Gone(msgspec.Struct):
    """An evicted slice: its group and its uses when it was let go, and when that was."""

    group: int
    uses: int
    let_go_ns: int


class Past(msgspec.Struct):
    """What a cache has learned. `floor` is the value of what was evicted last (for kinds that age by it)."""

    groups: dict[int, Group] = msgspec.field(default_factory=dict)
    gone: dict[Hashable, Gone] = msgspec.field(default_factory=dict)
    floor: int = 0


def stored(past: Past, key: Hashable, now_ns: int, *, cost_ns: int, size: int, horizon_ns: int) -> Use:
    """A slice was computed: anew, or again after it was evicted."""
    use = Use(now_ns, cost_ns, size)
    before = past.gone.pop(key, None)
    if before is not None:
        use.uses += before.uses
        if now_ns - before.let_go_ns <= horizon_ns:
            _group(past, before.group).came_back += 1
    use.heat.add(now_ns, half_life_ns(horizon_ns))
    return use


def used(past: Past, use: Use, now_ns: int, *, let_go: bool, horizon_ns: int) -> None:
    """Another request uses it; `let_go`: nobody did just now."""
    use.uses += 1
    use.heat.add(now_ns, half_life_ns(horizon_ns))
    if let_go and now_ns - use.let_go_ns <= horizon_ns:
        _group(past, use.group).came_back += 1


def let_go(past: Past, use: Use, now_ns: int, *, from_end: int, length: int) -> None:
    """Nobody uses it now. It stood `from_end` slices before the end of a prompt of `length` slices."""
    use.let_go_ns = now_ns
    use.group = (min(use.uses, USES_MAX) << 16) | (from_end.bit_length() << 8) | length.bit_length()
    group = _group(past, use.group)
    group.let_go += 1
    if group.let_go >= LET_GO_MAX:
        group.let_go >>= 1
        group.came_back >>= 1


def evicted(past: Past, key: Hashable, use: Use) -> None:
    """It was dropped."""
    past.gone[key] = Gone(use.group, use.uses, use.let_go_ns)
    if len(past.gone) > GONE_MAX:
        del past.gone[next(iter(past.gone))]


def come_back_ppm(past: Past, use: Use) -> int:
    """How likely it is used again within the horizon. Of a group never seen: even odds."""
    group = past.groups.get(use.group)
    if group is None:
        return PPM // 2
    return min(PPM, (group.came_back + 1) * PPM // (group.let_go + 2))


def uses_of_late(heat: Heat, now_ns: int, half_life: int) -> int:
    """About how often, each use halved with every half-life since."""
    return heat.amount >> max(0, now_ns // half_life - heat.epoch) >> (HEAT_ONE.bit_length() - 1)


def half_life_ns(horizon_ns: int) -> int:
    """Of heat."""
    return max(1, horizon_ns // HALF_LIVES)


def _group(past: Past, group: int) -> Group:
    found = past.groups.get(group)
    if found is None:
        found = past.groups[group] = Group()
    return found
