"""The prefix cache of a simulated engine: units of prompt KV, shared by reference, evicted when nobody holds them.

A unit is a run of `unit_tokens` tokens of a prompt, named by an id under the unit before it. A running request
holds the whole chain that leads to its last unit, so a unit's parent is held at least as often, and was released
no earlier: first released, first evicted takes children before their parents by itself.
"""

from collections.abc import Hashable, Sequence


class Unit:
    """One cached unit; `refs` requests hold it."""

    __slots__ = ("blocks", "children", "key", "parent", "refs")

    def __init__(self, key: Hashable, parent: "Unit | None", blocks: int) -> None:
        self.key, self.parent, self.blocks = key, parent, blocks
        self.refs = 0
        self.children: dict[Hashable, Unit] = {}


class PrefixCache:
    """All cached units. `blocks` is what they take in all, `evictable` the part that nobody holds."""

    def __init__(self) -> None:
        self._roots: dict[int, Unit] = {}
        self._released: dict[Unit, None] = {}
        self.blocks = 0
        self.evictable = 0

    def root(self, unit_blocks: int) -> Unit:
        """Where chains of units of this size begin; holds nothing itself."""
        return self._roots.setdefault(unit_blocks, Unit(None, None, unit_blocks))

    def match(self, unit_blocks: int, keys: Sequence[Hashable]) -> list[Unit]:
        """The longest cached chain that `keys` begin with. Changes nothing."""
        found: list[Unit] = []
        at = self.root(unit_blocks)
        for key in keys:
            unit = at.children.get(key)
            if unit is None:
                break
            found.append(unit)
            at = unit
        return found

    def evictable_of(self, units: Sequence[Unit]) -> int:
        """Blocks of these units that count as evictable now and would not once they are held."""
        return sum(unit.blocks for unit in units if not unit.refs)

    def hold(self, units: Sequence[Unit]) -> None:
        """One more request holds these units."""
        for unit in units:
            if not unit.refs:
                del self._released[unit]
                self.evictable -= unit.blocks
            unit.refs += 1

    def release(self, units: Sequence[Unit]) -> None:
        """One request less holds these units: a whole chain, first to last."""
        for unit in reversed(units):
            assert unit.refs > 0, "only what is held is released"
            unit.refs -= 1
            if not unit.refs:
                self._released[unit] = None
                self.evictable += unit.blocks

    def add(self, parent: Unit, key: Hashable) -> tuple[Unit, bool]:
        """The unit `key` under `parent`, held by one more; whether it is new (its blocks are then the caller's)."""
        unit = parent.children.get(key)
        if unit is not None:
            self.hold((unit,))
            return unit, False
        unit = Unit(key, parent, parent.blocks)
        unit.refs = 1
        parent.children[key] = unit
        self.blocks += unit.blocks
        return unit, True

    def evict(self, blocks: int) -> int:
        """Evict the units released first until at least `blocks` blocks are free; how many are."""
        freed = 0
        while freed < blocks:
            unit = next(iter(self._released))
            assert not unit.children, "children are evicted before their parents"
            assert unit.parent is not None, "a root is never evicted"
            del self._released[unit]
            del unit.parent.children[unit.key]
            freed += unit.blocks
        self.blocks -= freed
        self.evictable -= freed
        return freed

    def check_integrity(self) -> None:
        """Assert that counts are what the chains say."""
        units: list[Unit] = []
        stack = list(self._roots.values())
        while stack:
            children = list(stack.pop().children.values())
            units += children
            stack += children
        assert self.blocks == sum(unit.blocks for unit in units), "blocks are those of the units"
        assert self.evictable == sum(unit.blocks for unit in units if not unit.refs), "evictable is what nobody holds"
        assert len(self._released) == sum(not unit.refs for unit in units), "what nobody holds is in the queue"
        for unit in units:
            assert unit.refs >= max((child.refs for child in unit.children.values()), default=0), (
                "chains are held whole"
            )
