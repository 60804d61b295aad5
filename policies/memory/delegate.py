"""Choices that an engine makes alone, within a step: which slices leave a tier, who gives way, fetch or compute again.

An engine cannot ask the log while it makes a step. So it asks this machine, in its own process, under the newest
directive that it was told (a delegated choice, the design's own idea), and writes down what it told and asked
(`policies.memory.delegate_ops`). Given the same ops again, a fresh one answers the same: that is what
`tidegate replay verify --engine` holds a journal against.

- Evict: of the slices of a tier that nobody reads or writes and that are nobody's parent there (children go before
  their parents), the least rank by the directive's kind (`policies.memory.kinds`); hot ones after all others. Pinned
  and needed ones stay: then it cannot be done, and nothing leaves. Without a directive, lru: as vLLM does alone.
- Victim: Algorithm 3 (`policies.memory.victims`) with the directive's protection, for nobody in particular. An engine
  that ran out must preempt somebody, so where those allowed do not free enough, protection and patience (how often one
  may give way) are lifted; where nobody frees enough, all give way that can, in the same order.
- Fetch: the gate of `policies.memory.gate`, with a margin.

Example: tier DRAM holds a, b (child of a) and c, all let go, c hot. Two have to leave: b goes, then a; c stays.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, assert_never

import msgspec

from events.base import PPM
from events.decisions import EngineDirected
from events.slice import ChoiceKind, Tier
from policies.memory.delegate_ops import (
    AnyOp,
    Choice,
    Cleared,
    Directed,
    EvictAsked,
    FetchAsked,
    GaveWay,
    Held,
    LetGo,
    Removed,
    Stored,
    Used,
    VictimAsked,
)
from policies.memory.evictable import Shield
from policies.memory.gate import fetch_ns, worth_fetching
from policies.memory.kinds import EvictionKind, kind_of
from policies.memory.tier_cache import HORIZON_NS, TierCache, TierRows
from policies.memory.victims import CannotFree, Chosen, Running, choose, may_give_way

FETCH_MARGIN_PPM: Final = 200_000
"""A fetch has to be quicker than computing by this part of itself."""
PROTECTS_NOBODY_PPM: Final = PPM * PPM
PATIENCE_MAX: Final = 1 << 30
"""More often than this nobody gives way in the life of an engine."""
DIGEST_BYTES: Final = 16
_encode: Final = msgspec.json.Encoder().encode


class Snapshot(msgspec.Struct):
    """All that a delegate knows, as plain values."""

    directive: EngineDirected | None = None
    tiers: tuple[TierRows, ...] = ()


class Delegate:
    """The machine. Bounded by what the tiers hold, and by the limits of `policies.memory.reuse`."""

    def __init__(self) -> None:
        self._directive: EngineDirected | None = None
        self._shields: dict[str, Shield] = {}
        self._tiers: dict[Tier, TierCache] = {}

    def take(self, op: AnyOp) -> Choice | None:
        """Take in what happened, or answer a question. None where the op is no question."""
        match op:
            case EvictAsked():
                return self._evict(op)
            case VictimAsked():
                return self._victim(op)
            case FetchAsked():
                return self._fetch(op)
            case Directed():
                self._direct(op.directive)
            case Stored():
                self._tier(op.tier).stored(
                    op.slice_id, op.at_ns, parent=op.parent, cost_ns=op.cost_ns, size=op.size,
                    place=(op.from_end, op.length),
                )  # fmt: skip
            case Used():
                self._tier(op.tier).used(op.slices, op.at_ns, first=op.first, length=op.length)
            case Held():
                self._tier(op.tier).hold(op.slices)
            case LetGo():
                self._tier(op.tier).let_go(op.slices, op.at_ns)
            case Removed():
                self._tier(op.tier).remove(op.slices)
            case Cleared():
                self._tier(op.tier).clear()
            case GaveWay():
                pass
            case _:
                assert_never(op)
        return None

    def holds(self, tier: Tier, slice_id: str) -> bool:
        """Whether the tier has it, as far as the ops say."""
        cache = self._tiers.get(tier)
        return cache is not None and slice_id in cache

    def snapshot(self) -> Snapshot:
        """What it knows now; valid until the next op."""
        return Snapshot(self._directive, tuple(cache.rows(tier) for tier, cache in self._tiers.items()))

    @classmethod
    def restored(cls, snapshot: Snapshot) -> "Delegate":
        """One that goes on from there. The snapshot is its own from now on."""
        made = cls()
        if snapshot.directive is not None:
            made._direct(snapshot.directive)
        for rows in snapshot.tiers:
            made._tier(rows.tier).restore(rows)
        return made

    def _tier(self, tier: Tier) -> TierCache:
        cache = self._tiers.get(tier)
        if cache is None:
            cache = self._tiers[tier] = TierCache(self._shields)
            cache.direct(*_ranking(self._directive))
        return cache

    def _direct(self, directive: EngineDirected) -> None:
        shields = _shields(directive)
        changed = [slice_id for slice_id, shield in shields.items() if self._shields.get(slice_id) is not shield]
        changed += [slice_id for slice_id in self._shields if slice_id not in shields]
        self._directive = directive
        self._shields.clear()
        self._shields.update(shields)
        for cache in self._tiers.values():
            cache.direct(*_ranking(directive))
            cache.reshield(changed)

    def _evict(self, op: EvictAsked) -> Choice:
        # Of a frozenset is only asked whether it contains something: no order of it is ever seen.
        chosen, looked_at = self._tier(op.tier).evict(op.count, frozenset(op.protected))
        return Choice(
            kind=ChoiceKind.EVICT, directive_version=self._version, candidates=len(looked_at),
            candidates_digest=digest(looked_at), chosen=chosen,
        )  # fmt: skip

    def _victim(self, op: VictimAsked) -> Choice:
        victims = _victims(op.running, op.need_blocks, _protect_ppm(self._directive))
        return Choice(
            kind=ChoiceKind.VICTIM, directive_version=self._version, candidates=len(op.running),
            candidates_digest=digest(op.running), chosen=tuple(one.request_id for one in victims),
            for_request=op.for_request,
        )  # fmt: skip

    def _fetch(self, op: FetchAsked) -> Choice:
        takes_ns = fetch_ns(op.size, op.queue_bytes, op.bytes_per_s, op.latency_ns)
        worth = worth_fetching(takes_ns, op.recompute_ns, margin_ppm=FETCH_MARGIN_PPM)
        return Choice(
            kind=ChoiceKind.FETCH, directive_version=self._version, candidates=len(op.slices),
            candidates_digest=digest(op), chosen=op.slices if worth else (), for_request=op.for_request,
        )  # fmt: skip

    @property
    def _version(self) -> int:
        return self._directive.version if self._directive is not None else 0


def digest(looked_at: object) -> str:
    """Of what was looked at, in order: BLAKE2b-16 of its JSON, in hex."""
    return blake2b(_encode(looked_at), digest_size=DIGEST_BYTES).hexdigest()


def _holds(directive: EngineDirected | None) -> bool:
    """Whether it says how to choose; else the engine chooses as it likes."""
    return directive is not None and directive.eviction != ""


def _ranking(directive: EngineDirected | None) -> tuple[EvictionKind, int]:
    if directive is None or not _holds(directive):
        return EvictionKind.LRU, HORIZON_NS
    return kind_of(directive.eviction), directive.horizon_ns or HORIZON_NS


def _shields(directive: EngineDirected) -> dict[str, Shield]:
    shields: dict[str, Shield] = {}
    if _holds(directive):
        shields.update(dict.fromkeys(directive.hot, Shield.HOT))
        shields.update(dict.fromkeys((*directive.needed, *directive.pinned), Shield.KEPT))
    return shields


def _protect_ppm(directive: EngineDirected | None) -> int:
    return directive.protect_ppm if directive is not None and _holds(directive) else PROTECTS_NOBODY_PPM


def _victims(running: Sequence[Running], need_blocks: int, protect_ppm: int) -> tuple[Running, ...]:
    """Those allowed; where they do not free enough, all of them, and of the others as many as it takes."""
    allowed = [one for one in running if may_give_way(one, None, protect_ppm=protect_ppm)]
    found = choose(allowed, need_blocks=need_blocks, urgent=None, protect_ppm=protect_ppm)
    if isinstance(found, Chosen):
        return found.victims
    first = _last_resort(allowed, found.freed_max) if found.freed_max else ()
    spent = dict.fromkeys(one.request_id for one in allowed)
    others = [one for one in running if one.request_id not in spent]
    return first + _last_resort(others, need_blocks - found.freed_max)


def _last_resort(running: Sequence[Running], need_blocks: int) -> tuple[Running, ...]:
    """Whoever it is; where nobody frees enough, all that free anything."""
    found = choose(
        running, need_blocks=need_blocks, urgent=None, protect_ppm=PROTECTS_NOBODY_PPM, preempted_max=PATIENCE_MAX
    )
    if isinstance(found, CannotFree) and found.freed_max:
        return _last_resort(running, found.freed_max)
    return found.victims if isinstance(found, Chosen) else ()
