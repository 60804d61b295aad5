"""Orders to move slices: which are open, what the links still may carry, which links are out of use, what is given up.

Migration and prefetch each keep one such book of their own orders, and heed the other's so that nothing is moved twice.

- Budget: of the time of a link (all that goes out of one tier of one engine) at most `link_share_ppm` are planned, as
  bytes at the speed last measured: a token bucket (as in RFC 2697) that holds the share of one second. A slice that
  alone takes more than the bucket goes when the bucket is full, and is paid off before the next.
- Open orders are limited; what is on its way is not ordered again.
- A failed try is repeated at once, with what is missing of it, `tries_max` times in all. Then its slices are given up
  for a while.
- Circuit breaker (Nygard, Release It!, 2007): where at least FAILED_MIN of the last WINDOW tries out of a tier failed,
  and at least half of them, the link is suspended, twice as long each time in a row; then one slice is tried.
- An order that was taken back and is not answered within ANSWER_MAX_NS counts as failed, and is forgotten.

Example: a link of 1 GB/s with a share of 200,000 ppm: six slices of 32 MiB are ordered at once, and six each second.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

from events.base import NS_PER_S, PPM, EngineId, SliceId
from events.decisions import CancelReason, LinkSuspended, Move, TransferCancelled, TransferOrdered
from events.slice import Tier, TransferEnd, TransferFinished

OTHERS_MAX = 1_024
"""Orders of others that are remembered while they are open, the newest."""
LINKS_MAX = 1_024
GIVEN_UP_MAX = 1_024
"""Slices of an engine that are remembered as given up, the newest."""
GIVE_UP_NS = 60 * NS_PER_S
ANSWER_MAX_NS = 30 * NS_PER_S
BUCKET_NS = NS_PER_S
"""A link's bucket holds its share of so much time."""
WINDOW, FAILED_MIN = 16, 4
SUSPEND_NS = 5 * NS_PER_S
SUSPENSIONS_MAX = 6
"""A suspension is twice as long as the one before it, so often in a row."""
_FAILED: Final = (TransferEnd.FAILED, TransferEnd.PARTLY)


class Verdict(StrEnum):
    """What came of the slice that was tried on a suspended link."""

    NONE = ""
    HEALED = "healed"
    FAILED = "failed"


class Open(msgspec.Struct):
    """An order that was not answered yet; taken back at `cancelled_ns` (0 = it was not)."""

    order: TransferOrdered
    said_ns: int
    cancelled_ns: int = 0


class Link(msgspec.Struct):
    """All that goes out of one tier of one engine. `spare_ns` of its time may be planned, as of `at_ns` (below 0: more
    than its share was). `failures` are the last `tries`, a bit each, the newest lowest. Suspended until `until_ns`, for
    the `times`-th time in a row; after that the order `trying` is tried."""

    engine_id: EngineId
    tier: Tier
    spare_ns: int
    at_ns: int
    failures: int = 0
    tries: int = 0
    until_ns: int = 0
    times: int = 0
    trying: str = ""
    verdict: Verdict = Verdict.NONE


class Tally(msgspec.Struct):
    """Orders so far, by how they ended. Drops use no link: they are `ordered` and `done`, and no more is said of them.
    Of the others, which are `moved` when they are done, `tries_failed` counts every failed try, the first ones too
    (`first_failed`), and `failed` those after which there was no other, whatever the reason."""

    ordered: int = 0
    done: int = 0
    moved: int = 0
    failed: int = 0
    cancelled: int = 0
    not_needed: int = 0
    unanswered: int = 0
    tries_failed: int = 0
    first_tried: int = 0
    first_failed: int = 0


class Transfers(msgspec.Struct):
    """The book of one actor, whose orders are named `prefix` and a number. `answered` is the order that the last
    `transfer_finished` was about, if it is one of ours and failed."""

    prefix: str
    count: int = 0
    open: dict[str, Open] = msgspec.field(default_factory=dict)
    others: dict[str, Open] = msgspec.field(default_factory=dict)
    links: dict[str, Link] = msgspec.field(default_factory=dict)
    given_up: dict[EngineId, dict[SliceId, int]] = msgspec.field(default_factory=dict)
    answered: TransferOrdered | None = None
    tally: Tally = msgspec.field(default_factory=Tally)


# What was said and heard.


def ordered(transfers: Transfers, event: TransferOrdered, now_ns: int, *, link_ns: int, share_ppm: int) -> None:
    """An order was said: ours, which takes `link_ns` of its link's time, or another's."""
    if not event.order.startswith(transfers.prefix):
        transfers.others[event.order] = Open(event, now_ns)
        if len(transfers.others) > OTHERS_MAX:
            del transfers.others[next(iter(transfers.others))]
        return
    transfers.count = max(transfers.count, int(event.order.removeprefix(transfers.prefix)))
    transfers.open[event.order] = Open(event, now_ns)
    transfers.tally.ordered += event.tries == 1
    transfers.tally.failed -= event.tries > 1  # The one before was not the last.
    link = _link(transfers, event, now_ns, share_ppm)
    if link is not None:
        link.spare_ns, link.at_ns = spare_ns(link, now_ns, share_ppm) - link_ns, now_ns
        if link.until_ns:
            link.trying = event.order


def _link(transfers: Transfers, event: TransferOrdered, now_ns: int, share_ppm: int) -> Link | None:
    """The link that an order uses; a drop uses none."""
    key = key_of(event.engine_id, event.from_tier)
    if event.move is Move.DROP:
        return None
    if key not in transfers.links and len(transfers.links) < LINKS_MAX:
        transfers.links[key] = Link(event.engine_id, event.from_tier, BUCKET_NS * share_ppm // PPM, now_ns)
    return transfers.links.get(key)


def key_of(engine_id: EngineId, tier: Tier) -> str:
    """How a link is filed."""
    return f"{tier} {engine_id}"


def cancelled(transfers: Transfers, event: TransferCancelled, now_ns: int) -> None:
    """An order was taken back. Of an engine that is gone no answer is expected."""
    one = transfers.open.get(event.order)
    if one is None:
        return
    one.cancelled_ns = now_ns
    if event.reason is CancelReason.ENGINE_GONE:
        del transfers.open[event.order]
        transfers.tally.cancelled += 1


def finished(transfers: Transfers, event: TransferFinished, now_ns: int, *, tries_max: int, missing: bool) -> None:
    """An order was answered. A second answer changes nothing. Where nothing is `missing` there is nothing to try again:
    somebody else has done what was left of it (an engine that evicted what was to be dropped). A transfer that failed
    speaks against its link all the same."""
    transfers.answered = None
    transfers.others.pop(event.order, None)
    one = transfers.open.pop(event.order, None)
    if one is None:
        return
    tally, moves, broke = transfers.tally, one.order.move is not Move.DROP, event.end in _FAILED
    failed, done = broke and missing, event.end is TransferEnd.DONE or (broke and not missing)
    _try_ended(transfers, one.order, failed=broke, counts=broke or event.end is TransferEnd.DONE)
    tally.done += done
    tally.moved += done and moves
    tally.not_needed += event.end is TransferEnd.NOT_NEEDED
    tally.cancelled += event.end is TransferEnd.CANCELLED or (failed and one.cancelled_ns > 0)
    if failed and not one.cancelled_ns:
        transfers.answered = one.order
        tally.failed += moves
        if one.order.tries >= tries_max:
            _give_up(transfers, one.order, now_ns)


def _try_ended(transfers: Transfers, order: TransferOrdered, *, failed: bool, counts: bool) -> None:
    """What a try says about its link: nothing, where it was not made."""
    if order.move is Move.DROP:
        return
    tally = transfers.tally
    tally.tries_failed += failed
    if counts and order.tries == 1:
        tally.first_tried += 1
        tally.first_failed += failed
    link = transfers.links.get(key_of(order.engine_id, order.from_tier))
    if link is None:
        return
    if link.trying == order.order:
        link.trying = ""
        link.verdict = Verdict.NONE if not counts else Verdict.FAILED if failed else Verdict.HEALED
    elif counts and not link.until_ns:
        link.failures = (link.failures << 1 | failed) & ((1 << WINDOW) - 1)
        link.tries = min(link.tries + 1, WINDOW)


def _give_up(transfers: Transfers, order: TransferOrdered, now_ns: int) -> None:
    given_up = transfers.given_up.setdefault(order.to_engine or order.engine_id, {})
    for slice_id in order.slices:
        given_up.pop(slice_id, None)
        given_up[slice_id] = now_ns + GIVE_UP_NS
    while len(given_up) > GIVEN_UP_MAX:
        del given_up[next(iter(given_up))]


def suspended(transfers: Transfers, event: LinkSuspended) -> None:
    """One of our links is out of use, or in use again."""
    link = transfers.links.get(key_of(event.engine_id, event.from_tier))
    if link is not None:
        link.times = link.times + 1 if event.until_ns else 0
        link.until_ns, link.failures, link.tries = event.until_ns, 0, 0
        link.trying, link.verdict = "", Verdict.NONE


def ticked(transfers: Transfers, now_ns: int) -> None:
    """Forget what nobody answers, what others will not do any more, and what was given up long enough."""
    silent = [name for name, one in transfers.open.items() if 0 < one.cancelled_ns <= now_ns - ANSWER_MAX_NS]
    for name in silent:
        one = transfers.open.pop(name)
        transfers.tally.unanswered += 1
        transfers.tally.failed += one.order.move is not Move.DROP
        _try_ended(transfers, one.order, failed=True, counts=True)
        _give_up(transfers, one.order, now_ns)
    for name, one in list(transfers.others.items()):
        if 0 < one.order.until_ns <= now_ns - ANSWER_MAX_NS:
            del transfers.others[name]
    for engine_id, slices in list(transfers.given_up.items()):
        left = {slice_id: until_ns for slice_id, until_ns in slices.items() if until_ns > now_ns}
        transfers.given_up[engine_id] = left
        if not left:
            del transfers.given_up[engine_id]


def lost(transfers: Transfers, engine_id: EngineId, tier: Tier | None = None) -> None:
    """An engine does not answer any more (or what was known of one tier is void, as when its agent was started anew):
    nobody waits for what was taken back there before."""
    for name, one in _touched(transfers, engine_id, tier):
        if one.cancelled_ns:
            del transfers.open[name]
            transfers.tally.cancelled += 1


def _touched(transfers: Transfers, engine_id: EngineId, tier: Tier | None) -> list[tuple[str, Open]]:
    """The open orders that an engine has to do with, or those out of one of its tiers."""
    return [
        (name, one)
        for name, one in transfers.open.items()
        if engine_id in (one.order.engine_id, one.order.to_engine) and tier in (None, one.order.from_tier)
    ]


def gone(transfers: Transfers, engine_id: EngineId) -> None:
    """An engine left the pool, links and all."""
    lost(transfers, engine_id)
    transfers.given_up.pop(engine_id, None)
    for key in [key for key, link in transfers.links.items() if link.engine_id == engine_id]:
        del transfers.links[key]
    for name in [name for name, one in transfers.others.items() if one.order.engine_id == engine_id]:
        del transfers.others[name]


# What may be ordered.


def spare_ns(link: Link, now_ns: int, share_ppm: int) -> int:
    """How much of the link's time may be planned now."""
    earned_ns = max(0, now_ns - link.at_ns) * share_ppm // PPM
    return min(BUCKET_NS * share_ppm // PPM, link.spare_ns + earned_ns)


def to_retry(transfers: Transfers, event: TransferFinished, *, tries_max: int) -> TransferOrdered | None:
    """The order that was just answered, if it failed and may be tried again. What of it is missing is told by where its
    slices are: carriers report those before they answer."""
    order = transfers.answered
    return order if order is not None and order.order == event.order and order.tries < tries_max else None


@dataclass(slots=True)
class Draft:
    """What one decision orders, on top of what the book holds. `open_max` orders may be open, of `slices_max` slices
    each. `kept` is for who orders: slices that must stay in a tier of an engine, once they were counted."""

    transfers: Transfers
    now_ns: int
    share_ppm: int
    open_max: int
    slices_max: int
    said: list[TransferOrdered] = field(default_factory=list)
    planned_ns: dict[str, int] = field(default_factory=dict)
    kept: dict[EngineId, int] = field(default_factory=dict)

    def full(self) -> bool:
        """Whether no order can be added."""
        return len(self.transfers.open) + len(self.said) >= self.open_max

    def _known(self) -> Iterator[TransferOrdered]:
        yield from (one.order for one in self.transfers.open.values())
        yield from (one.order for one in self.transfers.others.values())
        yield from self.said

    def busy(self, engine_id: EngineId) -> dict[SliceId, None]:
        """The slices of an engine that are not to be moved now: on their way, whoever ordered it, or given up."""
        found = dict.fromkeys(self.transfers.given_up.get(engine_id, ()))
        for order in self._known():
            if engine_id in (order.engine_id, order.to_engine):
                found.update(dict.fromkeys(order.slices))
        return found

    def incoming_bytes(self, engine_id: EngineId, tier: Tier) -> int:
        """What is on its way into a tier of an engine."""
        return sum(
            order.bytes_planned
            for order in self._known()
            if order.to_tier is tier and (order.to_engine or order.engine_id) == engine_id
        )

    def outgoing_slices(self, engine_id: EngineId, tier: Tier) -> int:
        """How many slices leave a tier of an engine already."""
        return sum(
            len(order.slices)
            for order in self._known()
            if order.engine_id == engine_id and order.from_tier is tier and order.move in (Move.DROP, Move.DEMOTE)
        )

    def queued_bytes(self, engine_id: EngineId, tier: Tier, since_ns: int) -> int:
        """What was ordered out of a tier since it was measured."""
        books = (self.transfers.open, self.transfers.others)
        orders = [one.order for book in books for one in book.values() if one.said_ns >= since_ns]
        return sum(
            order.bytes_planned
            for order in (*orders, *self.said)
            if order.engine_id == engine_id and order.from_tier is tier
        )

    def slices_of(self, engine_id: EngineId, tier: Tier, slice_ns: int) -> int:
        """How many slices that take the link so long each may be ordered out of that tier in one order now."""
        key = key_of(engine_id, tier)
        link, planned_ns = self.transfers.links.get(key), self.planned_ns.get(key, 0)
        bucket_ns = BUCKET_NS * self.share_ppm // PPM
        spare = (bucket_ns if link is None else spare_ns(link, self.now_ns, self.share_ppm)) - planned_ns
        if self.full() or not self.share_ppm:
            return 0
        if link is not None and link.until_ns:
            ready = self.now_ns >= link.until_ns and not link.trying and not planned_ns
            return 1 if ready else 0
        most = min(self.slices_max, spare // max(1, slice_ns)) if spare > 0 else 0
        return most or (1 if spare == bucket_ns else 0)

    def add(self, wanted: TransferOrdered, *, link_ns: int = 0) -> None:
        """One more order, under the next number; it takes `link_ns` of its link's time."""
        number = self.transfers.count + len(self.said) + 1
        self.said.append(msgspec.structs.replace(wanted, order=f"{self.transfers.prefix}{number}"))
        key = key_of(wanted.engine_id, wanted.from_tier)
        self.planned_ns[key] = self.planned_ns.get(key, 0) + link_ns


def taken_back(transfers: Transfers, name: str, reason: CancelReason) -> TransferCancelled:
    """The word that takes an order back."""
    return TransferCancelled(order=name, engine_id=transfers.open[name].order.engine_id, reason=reason)


def too_late(transfers: Transfers, now_ns: int) -> list[TransferCancelled]:
    """Take back what is worth nothing any more."""
    return [
        taken_back(transfers, name, CancelReason.TOO_LATE)
        for name, one in transfers.open.items()
        if not one.cancelled_ns and 0 < one.order.until_ns <= now_ns
    ]


def without_engine(transfers: Transfers, engine_id: EngineId, tier: Tier | None = None) -> list[TransferCancelled]:
    """Take back all that an engine which is gone has to do with; or all out of a tier of which nothing is known any
    more: whoever was to carry it out may have been started anew."""
    return [taken_back(transfers, name, CancelReason.ENGINE_GONE) for name, _ in _touched(transfers, engine_id, tier)]


def breakers(transfers: Transfers, now_ns: int) -> list[LinkSuspended | TransferCancelled]:
    """Links that go out of use now, with what is open there and was not begun; and those that are in use again."""
    said: list[LinkSuspended | TransferCancelled] = []
    for link in transfers.links.values():
        failed = link.failures.bit_count()
        if link.verdict is Verdict.HEALED:
            said.append(LinkSuspended(engine_id=link.engine_id, from_tier=link.tier, until_ns=0))
        elif link.verdict is Verdict.FAILED or (failed >= FAILED_MIN and 2 * failed >= link.tries):
            until_ns = now_ns + (SUSPEND_NS << min(link.times, SUSPENSIONS_MAX))
            said.append(LinkSuspended(
                engine_id=link.engine_id, from_tier=link.tier, until_ns=until_ns, failed=failed or 1,
                of=link.tries or 1,
            ))  # fmt: skip
            said += [
                taken_back(transfers, name, CancelReason.LINK_SUSPENDED)
                for name, one in transfers.open.items()
                if not one.cancelled_ns and one.order.move is not Move.DROP
                and (one.order.engine_id, one.order.from_tier) == (link.engine_id, link.tier)
            ]  # fmt: skip
    return said


def in_vain(
    transfers: Transfers, now_ns: int, needless: list[TransferCancelled]
) -> list[TransferCancelled | LinkSuspended]:
    """With every tick: what is too late or needless is taken back, once each; links that failed go out of use."""
    found: dict[str, TransferCancelled | LinkSuspended] = {}
    for event in (*too_late(transfers, now_ns), *needless, *breakers(transfers, now_ns)):
        name = event.order if isinstance(event, TransferCancelled) else key_of(event.engine_id, event.from_tier)
        found.setdefault(name, event)
    return list(found.values())


def described(transfers: Transfers, now_ns: int, *, share_ppm: int) -> dict[str, object]:
    """The book in plain values, for `explain`."""
    tally = transfers.tally
    ended = tally.moved + tally.failed
    return {
        "open": [
            {
                "order": name, "engine_id": one.order.engine_id, "move": one.order.move.value,
                "reason": one.order.reason.value, "slices": len(one.order.slices), "bytes": one.order.bytes_planned,
                "age_ns": now_ns - one.said_ns, "left_ns": one.order.until_ns - now_ns,
                "cancelled": one.cancelled_ns > 0,
            }
            for name, one in transfers.open.items()
        ],
        "links": [
            {
                "engine_id": link.engine_id, "from_tier": link.tier.value,
                "spare_ns": spare_ns(link, now_ns, share_ppm), "failed": link.failures.bit_count(),
                "of": link.tries, "suspended_ns": max(0, link.until_ns - now_ns), "trying": link.trying,
            }
            for link in transfers.links.values()
        ],
        "given_up": sum(map(len, transfers.given_up.values())),
        "ordered": tally.ordered,
        "done": tally.done,
        "failed": tally.failed,
        "cancelled": tally.cancelled,
        "not_needed": tally.not_needed,
        "unanswered": tally.unanswered,
        "failed_ppm": tally.failed * PPM // ended if ended else 0,
        "first_failed_ppm": tally.first_failed * PPM // tally.first_tried if tally.first_tried else 0,
    }  # fmt: skip
