"""Carries out orders about slices within a simulated engine: promote, demote, drop, replicate.

Each order is answered once, when the last of its slices has arrived or will not: `done`, `partly`, `failed`;
`cancelled` if it was taken back before; `not_needed` if all were there already. A slice that is moved over several
tiers goes one by one. What is demoted or dropped leaves its tier children before their parents, and only where nobody
uses it. What nobody waits for never goes before what a request waits for.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from events.base import EngineId
from events.decisions import Move, TransferCancelled, TransferOrdered
from events.slice import Tier, TransferEnd, TransferFinished
from policies.predictors.step_time import FS_PER_NS
from replay.engines.links import NOT_WANTED
from replay.engines.tier_cache import NO_ROOM, SliceAt
from replay.engines.tiers import NOT_HELD, ORDER, Tiers, Wish

ORDERS_MAX = 1_024
"""Orders that are carried out at once; more are refused."""
NO_TIER = "no_such_tier"
NO_ENGINE = "no_such_engine"
TOO_LATE = "too_late"
IN_USE = "in_use"
TOO_MANY = "too_many_orders"


class Device(Protocol):
    """Device memory, as orders see it."""

    def slice_at(self, key: Hashable) -> SliceAt | None:
        """A cached slice."""
        ...

    def adopt(self, at: SliceAt) -> bool:
        """Put a slice there that has come, which nobody uses yet; False where there is no room, or no parent."""
        ...

    def forget(self, key: Hashable) -> bool:
        """Drop a cached slice; False where somebody uses it, or others stand under it."""
        ...


class Peer(Protocol):
    """Another engine, as orders see it."""

    def accept(self, at: SliceAt, tier: Tier, now_ns: int) -> bool:
        """Take in a slice that has come over the link; False where there is no room."""
        ...


class _Open:
    """An order that is being carried out: `left` slices have not ended, `arrived` are where they should be."""

    __slots__ = ("arrived", "begun_fs", "bytes_moved", "is_cancelled", "left", "order", "there", "tries", "why")

    def __init__(self, order: TransferOrdered, begun_fs: int) -> None:
        self.order, self.begun_fs, self.left = order, begun_fs, len(order.slices)
        self.arrived: list[Hashable] = []
        self.there = self.bytes_moved = 0
        self.tries, self.why = 1, ""
        self.is_cancelled = False


class Carrier:
    """See the module."""

    def __init__(
        self, engine_id: EngineId, tiers: Tiers, device: Device, peers: Callable[[EngineId], Peer | None]
    ) -> None:
        self._engine_id, self._tiers, self._device, self._peers = engine_id, tiers, device, peers
        self._open: dict[str, _Open] = {}
        self._finished: list[TransferFinished] = []

    @property
    def is_busy(self) -> bool:
        """Whether an order is being carried out."""
        return bool(self._open)

    @property
    def has_answers(self) -> bool:
        """Whether an order has ended since `take_finished`."""
        return bool(self._finished)

    def order(self, order: TransferOrdered) -> None:
        """Begin now. One that is being carried out already is not begun again."""
        if order.order in self._open:
            return
        one = self._open[order.order] = _Open(order, self._tiers.links.now_fs)
        carry_out = {
            Move.PROMOTE: self._shift, Move.DEMOTE: self._shift, Move.DROP: self._drop, Move.REPLICATE: self._replicate
        }[order.move]  # fmt: skip
        if len(self._open) > ORDERS_MAX:
            one.why = TOO_MANY
            self._finish(one)
            return
        carry_out(one)
        if not order.slices:
            self._finish(one)

    def cancel(self, cancelled: TransferCancelled) -> None:
        """Begin no more of it; nothing happens if it is not being carried out."""
        one = self._open.get(cancelled.order)
        if one is not None:
            one.is_cancelled = True

    def take_finished(self) -> list[TransferFinished]:
        """What became of orders since this was last asked."""
        finished, self._finished = self._finished, []
        return finished

    # Kinds of order.

    def _shift(self, one: _Open) -> None:
        order = one.order
        route = _route(order.from_tier, order.to_tier)
        known = all(tier is Tier.HBM or self._tiers.cache(tier) is not None for tier in route)
        for key in order.slices:
            at = self._at(key, order.from_tier)
            if not route or not known:
                self._ended(one, key, NO_TIER)
            elif self._at(key, route[-1]) is not None:
                # Where all is written through, to demote is to leave the faster tier.
                one.there += order.move is Move.PROMOTE or at is None
                self._ended(one, key, "")
            elif at is None:
                self._ended(one, key, NOT_HELD)
            else:
                self._hop(one, at, route)

    def _hop(self, one: _Open, at: SliceAt, route: Sequence[Tier]) -> None:
        """From the first tier of the route to the second, and so on."""

        def then(why: str, tries: int) -> None:
            one.tries = max(one.tries, tries)
            if not why and tries:
                one.bytes_moved += at.bytes
            if not why and route[1] is Tier.HBM and not self._device.adopt(at):
                why = NO_ROOM
            if why or len(route) == 2:
                self._ended(one, at.key, why)
            else:
                self._hop(one, at, route[1:])

        wish = Wish(lambda: self._is_wanted(one), then)
        if route[1] is Tier.HBM:
            self._tiers.lift(at, urgent=False, wish=wish)
        else:
            self._tiers.move(at, route[0], route[1], urgent=False, wish=wish)

    def _drop(self, one: _Open) -> None:
        whys = self._take_all(one.order.slices, one.order.from_tier)
        for key, why in whys.items():
            self._ended(one, key, why)

    def _replicate(self, one: _Open) -> None:
        order = one.order
        for key in order.slices:
            at = self._at(key, order.from_tier)
            if at is None:
                self._ended(one, key, NOT_HELD)
            elif self._peers(order.to_engine) is None:
                self._ended(one, key, NO_ENGINE)
            else:
                wish = Wish(lambda: self._is_wanted(one), self._to_peer(one, at))
                self._tiers.send_away(at, self._tiers.cache(order.from_tier), wish=wish)

    def _to_peer(self, one: _Open, at: SliceAt) -> Callable[[str, int], None]:
        def then(why: str, tries: int) -> None:
            one.tries = max(one.tries, tries)
            peer = self._peers(one.order.to_engine)
            if not why and peer is None:
                why = NO_ENGINE
            if not why and peer is not None:
                one.bytes_moved += at.bytes
                why = "" if peer.accept(at, one.order.from_tier, self._tiers.now_ns) else NO_ROOM
            self._ended(one, at.key, why)

        return then

    # One slice.

    def _at(self, key: Hashable, tier: Tier) -> SliceAt | None:
        if tier is Tier.HBM:
            return self._device.slice_at(key)
        cache = self._tiers.cache(tier)
        return cache.get(key) if cache is not None else None

    def _take_out(self, key: Hashable, tier: Tier) -> str:
        if self._at(key, tier) is None:
            return NOT_HELD
        cache = self._tiers.cache(tier)
        gone = cache.drop(key) if cache is not None else self._device.forget(key)
        return "" if gone else IN_USE

    def _take_all(self, keys: Sequence[Hashable], tier: Tier) -> dict[Hashable, str]:
        """Take them out in whichever order they stand, children before their parents; why each stayed ("" = gone)."""
        whys = {key: self._take_out(key, tier) for key in keys}
        for key in reversed(keys):
            if whys[key] == IN_USE:
                whys[key] = self._take_out(key, tier)
        return whys

    def _is_wanted(self, one: _Open) -> bool:
        return not one.is_cancelled and not self._is_late(one)

    def _is_late(self, one: _Open) -> bool:
        return 0 < one.order.until_ns * FS_PER_NS < self._tiers.links.now_fs

    def _ended(self, one: _Open, key: Hashable, why: str) -> None:
        """This slice is where it should be, or will not get there."""
        if why:
            one.why = one.why or (TOO_LATE if why == NOT_WANTED and self._is_late(one) else why)
        else:
            one.arrived.append(key)
        one.left -= 1
        if not one.left:
            self._finish(one)

    def _finish(self, one: _Open) -> None:
        order = one.order
        del self._open[order.order]
        if order.move is Move.DEMOTE:
            self._take_all(one.arrived, order.from_tier)
        took_ns = (self._tiers.links.now_fs - one.begun_fs) // FS_PER_NS
        self._finished.append(
            TransferFinished(
                order=order.order, engine_id=self._engine_id, end=_end_of(one), slices_done=len(one.arrived),
                bytes_moved=one.bytes_moved, took_ns=took_ns, tries=one.tries,
                why="" if one.is_cancelled else one.why,
            )
        )  # fmt: skip


def _end_of(one: _Open) -> TransferEnd:
    wanted = len(one.order.slices)
    if wanted == one.there:
        return TransferEnd.NOT_NEEDED
    if len(one.arrived) == wanted:
        return TransferEnd.DONE
    if one.is_cancelled:
        return TransferEnd.CANCELLED
    return TransferEnd.PARTLY if one.arrived else TransferEnd.FAILED


def _route(source: Tier, target: Tier | None) -> list[Tier]:
    """The tiers from one to the other, both included; empty where there is no way."""
    if target is None or target is source:
        return []
    first, last = ORDER.index(source), ORDER.index(target)
    return list(ORDER[first : last + 1]) if first < last else list(reversed(ORDER[last : first + 1]))
