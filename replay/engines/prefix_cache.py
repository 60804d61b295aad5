"""The prefix cache of a simulated engine: units of prompt KV, shared by reference, evicted when nobody holds them.

A unit is a run of `unit_tokens` tokens of a prompt, named by an id under the unit before it. A running request
holds the whole chain that leads to its last unit, so a unit's parent is held at least as often, and was released
no earlier: first released, first evicted takes children before their parents by itself.

That is how it goes until a directive comes. Then the kind of `policies.memory.kinds` that it names ranks what nobody
holds; hot units go after all others, and kept ones (pinned, or needed by a request that waits) last of all, with the
units above them. Only units without children can be evicted.

Blocks that no prompt names (the end of a prompt, an answer) are kept as long as units are when they are let go of, as
in vLLM, which cannot know that nobody will ask for them. Such a rest has no parent, is evicted block by block, and can
be taken back by the request that left it. A unit of which some blocks made room is a rest too, next in line: who comes
to it can take what is left.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence

from events.decisions import EngineDirected
from policies.memory import reuse
from policies.memory.evictable import Evictable, Shield
from policies.memory.kinds import EvictionKind, kind_of, rank_of
from policies.memory.reuse import Past, Use
from replay.engines.changes import Changes

HORIZON_NS = 300_000_000_000
"""Within this time a reuse counts, and over it heat fades, where a directive does not say."""
REST_FROM_END = 1 << 32
"""Rests are alike to kinds that learn what comes back, and like nothing else."""


class Unit:
    """One cached unit; `refs` requests hold it. `depth` units stand above it. Without a parent it is a rest, or where
    chains begin. It was let go as number `turn`."""

    __slots__ = ("blocks", "children", "depth", "key", "parent", "rank", "refs", "shield", "turn", "use")

    def __init__(self, key: Hashable, parent: "Unit | None", blocks: int) -> None:
        self.key, self.parent, self.blocks = key, parent, blocks
        self.depth: int = 0 if parent is None or parent.parent is None else parent.depth + 1
        self.refs = self.rank = self.turn = 0
        self.shield = Shield.NONE
        self.use: Use | None = None
        self.children: dict[Hashable, Unit] = {}


class PrefixCache:
    """All cached units. `blocks` is what they take in all, `evictable` the part that nobody holds, `kept` the part of
    that which a directive keeps; `evictions` counts units. `cost_ns(unit blocks, depth)` is what a unit costs to
    compute."""

    def __init__(self, cost_ns: Callable[[int, int], int] = lambda blocks, depth: blocks) -> None:  # noqa: ARG005
        self._roots: dict[int, Unit] = {}
        self._released: dict[Unit, None] = {}
        self._turn = 0
        self._cost_ns = cost_ns
        self._kind: EvictionKind | None = None
        self._queue: Evictable[Unit] = Evictable()
        self._past = Past()
        self._horizon_ns = HORIZON_NS
        self._shields: dict[Hashable, Shield] = {}
        self._shielded: dict[Unit, None] = {}
        self._changes: Changes | None = None
        self._block_bytes = 0
        self._named: dict[Hashable, Unit] = {}
        self._bitten: tuple[Unit, Unit] | None = None  # Under which unit, and what is left.
        self.before_eviction: Callable[[Unit], None] | None = None
        """Hears of each unit that is about to make room."""
        self.now_ns = 0
        self.blocks = self.evictable = self.kept = self.evictions = self._rests = 0

    def watch(self, changes: Changes, *, block_bytes: int) -> None:
        """From now on, while it is empty: note what comes and goes, and know units by their keys, which are unique
        then however long the chain before them is."""
        assert not self.blocks, "what is there already would not be known"
        self._changes, self._block_bytes = changes, block_bytes

    def named(self, key: Hashable) -> Unit | None:
        """The unit of that key, if the cache is watched."""
        return self._named.get(key)

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

    def evictable_beside(self, units: Sequence[Unit], *, kept: bool) -> int:
        """Blocks that can be evicted once these units are held; with those that a directive keeps, or without."""
        held = [unit for unit in units if not unit.refs]
        beside = self.evictable - sum(unit.blocks for unit in held)
        if kept or not self.kept:
            return beside
        return beside - self.kept + sum(unit.blocks for unit in held if unit.shield is Shield.KEPT)

    def hold(self, units: Sequence[Unit]) -> None:
        """One more request holds these units."""
        for unit in units:
            if unit.use is not None:
                reuse.used(self._past, unit.use, self.now_ns, let_go=not unit.refs, horizon_ns=self._horizon_ns)
            if not unit.refs:
                del self._released[unit]
                self.evictable -= unit.blocks
                if self._kind is not None:
                    self._queue.drop(unit)
                    if unit.shield is Shield.KEPT:
                        self.kept -= unit.blocks
            unit.refs += 1

    def release(self, units: Sequence[Unit]) -> None:
        """One request less holds these units: a whole chain, first to last."""
        for unit in reversed(units):
            assert unit.refs > 0, "only what is held is released"
            unit.refs -= 1
            if not unit.refs:
                self._line_up(unit)
                self.evictable += unit.blocks
                if self._kind is not None:
                    self._let_go(unit, self._kind, from_end=len(units) - 1 - unit.depth, length=len(units))

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
        if self._changes is not None:
            self._named[key] = unit
            self._changes.stored(key, unit.blocks * self._block_bytes)
        if self._kind is not None:
            self._describe(unit)
            self._shield(unit)
        return unit, True

    def leave(self, blocks: int) -> Unit:
        """Keep so many blocks that no prompt names. They are evicted before the units that are released next."""
        self._rests += 1
        rest = Unit(("rest", self._rests), None, blocks)
        self._line_up(rest)
        self._count(blocks)
        if self._kind is not None:
            self._describe(rest)
            self._let_go(rest, self._kind, from_end=REST_FROM_END, length=1)
        return rest

    def take_back(self, rest: Unit) -> None:
        """What is left of a rest that is there belongs to a request again."""
        if self._bitten is not None and rest is self._bitten[1]:
            self._bitten = None
        else:
            del self._released[rest]
            if self._kind is not None:
                self._queue.drop(rest)
        self._count(-rest.blocks)

    def has(self, rest: Unit) -> bool:
        """Whether anything of a rest is there."""
        return rest in self._released

    def bitten(self, parent: Unit, key: Hashable) -> Unit | None:
        """What is left of the unit `key` under `parent`, if a part of it made room."""
        if self._bitten is None or self._bitten[0] is not parent or self._bitten[1].key != key:
            return None
        return self._bitten[1]

    def _count(self, blocks: int) -> None:
        self.blocks += blocks
        self.evictable += blocks

    def adopt(self, parent: Unit, key: Hashable) -> None:
        """A unit that nobody holds yet, under one that is there; it counts as used now, and those above it with it."""
        above: list[tuple[Unit, Shield]] = []
        at: Unit | None = parent
        while at is not None and at.parent is not None and not at.refs:
            above.append((at, at.shield))
            at = at.parent
        unit, new = self.add(parent, key)
        assert new, "what is there is not adopted"
        self.release((unit,))
        for each, before in above:
            del self._released[each]
            self._line_up(each)
            if self._kind is not None and each.shield is Shield.KEPT and before is not Shield.KEPT:
                self.kept += each.blocks
        if self._kind is not None:
            self._queue.drop(parent)

    def forget(self, unit: Unit) -> bool:
        """Drop a unit by order, not to make room; False where it is held, or others stand under it."""
        if unit.refs or unit.children:
            return False
        if self._kind is not None:
            self._queue.drop(unit)
        self._take_out(unit)
        self.blocks -= unit.blocks
        self.evictable -= unit.blocks
        return True

    def evict(self, blocks: int) -> int:
        """Evict `blocks` blocks, of a unit its last first; how many are free now."""
        freed = 0
        while freed < blocks:
            if self._bitten is not None:
                freed += self._bite(self._bitten[1], blocks - freed)
                continue
            unit = next(iter(self._released)) if self._kind is None else self._queue.pop()
            assert not unit.children, "children are evicted before their parents"
            if unit.parent is None:
                freed += self._evict_rest(unit, blocks - freed)
                continue
            freed += unit.blocks
            self.evictions += 1
            if self.before_eviction is not None:
                self.before_eviction(unit)
            parent = self._take_out(unit)
            if freed > blocks:
                self._bitten = (parent, Unit(unit.key, None, freed - blocks))
                freed = blocks
        self._count(-freed)
        return freed

    def _bite(self, rest: Unit, blocks: int) -> int:
        """Evict up to so many blocks of the unit that is bitten already; how many."""
        blocks = min(blocks, rest.blocks)
        rest.blocks -= blocks
        if not rest.blocks:
            self._bitten = None
        return blocks

    def _evict_rest(self, rest: Unit, blocks: int) -> int:
        """Evict up to so many blocks of a rest that is out of the queue; how many."""
        blocks = min(blocks, rest.blocks)
        rest.blocks -= blocks
        if not rest.blocks:
            del self._released[rest]
        elif self._kind is not None:
            self._put_late(rest)
        self._past.floor = max(self._past.floor, rest.rank)
        return blocks

    def direct(self, directive: EngineDirected) -> None:
        """Evict by this from now on; a directive that names no kind lifts those before it. Costs a walk over the ends
        of chains and what is shielded; over all units when the kind changes."""
        if not directive.eviction:
            self._lift()
            return
        before, self._kind = self._kind, kind_of(directive.eviction)
        self._horizon_ns = directive.horizon_ns or HORIZON_NS
        self._shields = dict.fromkeys(directive.hot, Shield.HOT)
        self._shields.update(dict.fromkeys((*directive.needed, *directive.pinned), Shield.KEPT))
        if before is None:
            for unit in self._units():
                self._describe(unit)
        self._reshield()
        if self._kind is not before:
            for unit in self._released:
                unit.rank = rank_of(self._kind, _known(unit), self._past)
        # Whoever was put in late, when others under it went, has its own turn again.
        for unit in list(self._released if before is None else self._queue):
            if not unit.children:
                self._queue.put_at(unit, unit.shield, unit.rank, unit.turn)

    def _lift(self) -> None:
        self._kind, self._queue, self._past, self.kept = None, Evictable(), Past(), 0
        self._shields.clear()
        self._shielded.clear()
        for unit in self._units():
            unit.use, unit.shield = None, Shield.NONE

    def check_integrity(self) -> None:
        """Assert that counts are what the chains say."""
        units = self._units()
        free = [unit for unit in units if not unit.refs]
        bitten = self._bitten[1].blocks if self._bitten is not None else 0
        assert self.blocks == sum(unit.blocks for unit in units) + bitten, "blocks are those of the units"
        assert self.evictable == sum(unit.blocks for unit in free) + bitten, "evictable is what nobody holds"
        assert len(self._released) == len(free), "what nobody holds is in the queue"
        for unit in units:
            children = unit.children.values()
            assert unit.refs >= max((child.refs for child in children), default=0), "chains are held whole"
            assert unit.shield >= max((child.shield for child in children), default=0), "chains are kept whole"
        assert len(self._shielded) == sum(unit.shield > Shield.NONE for unit in units), "what is shielded is known"
        assert self.kept == sum(unit.blocks for unit in free if unit.shield is Shield.KEPT), "kept is counted"
        if self._kind is not None:
            assert len(self._queue) == sum(not unit.children for unit in free), "every end of a chain can be evicted"

    def _take_out(self, unit: Unit) -> Unit:
        """It is not there any more; what it stood under."""
        assert unit.parent is not None, "a root is never evicted"
        del self._released[unit]
        del unit.parent.children[unit.key]
        self._shielded.pop(unit, None)
        if self._changes is not None:
            del self._named[unit.key]
            self._changes.removed(unit.key)
        if self._kind is not None:
            self._evicted(unit, unit.parent)
        return unit.parent

    def _units(self) -> list[Unit]:
        units = [unit for unit in self._released if unit.parent is None]
        stack = list(self._roots.values())
        while stack:
            children = list(stack.pop().children.values())
            units += children
            stack += children
        return units

    def _describe(self, unit: Unit) -> None:
        unit.use = reuse.stored(
            self._past, unit.key, self.now_ns, cost_ns=self._cost_ns(unit.blocks, unit.depth), size=unit.blocks,
            horizon_ns=self._horizon_ns,
        )  # fmt: skip

    def _line_up(self, unit: Unit) -> None:
        """Nobody holds it now."""
        self._turn += 1
        unit.turn = self._turn
        self._released[unit] = None

    def _reshield(self) -> None:
        """Every unit has the shield that the newest directive gives it."""
        for unit in self._shielded:
            unit.shield = Shield.NONE
        self._shielded.clear()
        for unit in self._units() if self._changes is None else self._known_by(self._shields):
            self._shield(unit)
        self.kept = sum(unit.blocks for unit in self._shielded if unit.shield is Shield.KEPT and not unit.refs)

    def _known_by(self, keys: Iterable[Hashable]) -> list[Unit]:
        return [unit for key in keys if (unit := self._named.get(key)) is not None]

    def _shield(self, unit: Unit) -> None:
        """Give a unit its shield, and the units above it at least as much."""
        shield = self._shields.get(unit.key, Shield.NONE)
        at = unit
        while at.parent is not None and at.shield < shield:
            at.shield = shield
            self._shielded[at] = None
            at = at.parent

    def _let_go(self, unit: Unit, kind: EvictionKind, *, from_end: int, length: int) -> None:
        use = _known(unit)
        reuse.let_go(self._past, use, self.now_ns, from_end=max(0, from_end), length=length)
        unit.rank = rank_of(kind, use, self._past)
        if unit.shield is Shield.KEPT:
            self.kept += unit.blocks
        if not unit.children:
            self._queue.put_at(unit, unit.shield, unit.rank, unit.turn)

    def _evicted(self, unit: Unit, parent: Unit) -> None:
        reuse.evicted(self._past, unit.key, _known(unit))
        self._past.floor = max(self._past.floor, unit.rank)
        if unit.shield is Shield.KEPT:
            self.kept -= unit.blocks
        if parent.parent is not None and not parent.children and not parent.refs:
            self._put_late(parent)

    def _put_late(self, unit: Unit) -> None:
        """It can be evicted, after all its equals; it was let go before them."""
        self._turn += 1
        self._queue.put_at(unit, unit.shield, unit.rank, self._turn)


def _known(unit: Unit) -> Use:
    assert unit.use is not None, "under a directive every unit's use is known"
    return unit.use
