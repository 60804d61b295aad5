"""What holds of both actors whatever happens: budgets, limits, nothing said twice, every order answered or forgotten.

A small pool is drawn: engines with tiers, requests that come and go, and carriers that do, fail, stall or never answer
orders. The carriers keep the tiers' true content and report it; the laws are held against that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from events.base import NS_PER_MS, NS_PER_S, PPM, EngineId, Event, SliceId
from events.control import PolicyConfigured
from events.decisions import CancelReason, LinkSuspended, Move, TransferCancelled, TransferOrdered
from events.engine import Health
from events.slice import SlicesRemoved, SlicesStored, Tier, TransferEnd, TransferFinished
from policies.decider import Decider, Progress, advance, begin
from policies.memory.gate import fetch_ns
from policies.migration import LIFE_NS, MIGRATION
from policies.prefetch import PREFETCH
from policies.transfers import ANSWER_MAX_NS
from tests.policies.tier_words import DRAM, SIZE, SSD, admitted, deferred, gauged, tiered
from tests.policies.words import arrived, finished, first_token, health, slices, tick
from tests.spec import START_NS, stored

ROOM = {DRAM: 12, SSD: 60}
SSD_SPEED = 200_000
"""5 ms a slice, so that budgets bind: in a second prefetch may have 100 read, migration 40."""
FAMILIES = ("ab", "acd", "acef", "ghijkl", "mnopqrstuvwxyz")


@dataclass
class Carrier:
    """The truth about one engine's tiers, and what it was ordered."""

    name: str
    held: dict[Tier, dict[SliceId, None]] = field(default_factory=lambda: {DRAM: {}, SSD: {}})
    lost: bool = False


@dataclass
class Pool:
    """A log's worth of facts, and the two actors that answer each."""

    random: Random
    fail: float = 0.1
    stall: float = 0.05
    silent: float = 0.0
    seq: int = 0
    now_ns: int = START_NS
    carriers: dict[str, Carrier] = field(default_factory=dict)
    actors: list[tuple[Decider[Any], Progress[Any]]] = field(
        default_factory=lambda: [(one, begin(one)) for one in (MIGRATION, PREFETCH)]
    )
    open: dict[str, TransferOrdered] = field(default_factory=dict)
    ordered: list[tuple[int, TransferOrdered]] = field(default_factory=list)
    cancelled: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, None] = field(default_factory=dict)
    stalled: dict[str, None] = field(default_factory=dict)
    suspended: dict[tuple[str, str, Tier], int] = field(default_factory=dict)

    def say(self, event: Event) -> None:
        """A fact; then all decisions that come of it, each heard by the other actor."""
        told: list[tuple[str, Event]] = [("", event)]
        while told:
            actor, one = told.pop(0)
            self.seq += 1
            recorded = stored(self.seq, one, self.now_ns)
            if actor:
                recorded = type(recorded)(
                    seq=self.seq, item=0, event=one, actor=actor, cause=f"{self.seq - 1}.0", ts_ns=self.now_ns
                )
            for decider, progress in self.actors:
                for decision in advance(decider, progress, recorded):
                    self.check(decider.name, decision)
                    told.append((decider.name, decision))

    def check(self, actor: str, decision: Event) -> None:
        """The laws of one decision."""
        match decision:
            case TransferOrdered():
                self._check_order(actor, decision)
            case TransferCancelled():
                assert decision.order in self.open, "only what is open is taken back"
                assert decision.order not in self.cancelled, "and once"
                self.cancelled[decision.order] = self.now_ns
                if decision.reason is CancelReason.ENGINE_GONE:
                    del self.open[decision.order]
            case LinkSuspended():
                self.suspended[actor, decision.engine_id, decision.from_tier] = decision.until_ns

    def _check_order(self, actor: str, order: TransferOrdered) -> None:
        carrier = self.carriers[order.engine_id]
        for name in [name for name, at_ns in self.cancelled.items() if at_ns <= self.now_ns - ANSWER_MAX_NS]:
            self.open.pop(name, None)  # Nobody expects an answer any more.
        assert order.order not in self.open and order.order[0] == actor[0], "its own next number"  # noqa: PT018
        assert order.slices and len(set(order.slices)) == len(order.slices), "something, each once"  # noqa: PT018
        assert all(one in carrier.held[order.from_tier] for one in order.slices), "what is there"
        assert order.until_ns > self.now_ns, "not too late already"
        assert not carrier.lost, "not of a lost engine"
        for other in self.open.values():
            if other.engine_id == order.engine_id and not set(other.slices).isdisjoint(order.slices):
                assert other.order[0] != order.order[0], "one actor does not move a slice twice at once"
        until_ns = self.suspended.get((actor, order.engine_id, order.from_tier), 0)
        assert order.move is Move.DROP or until_ns <= self.now_ns, "not over a suspended link"
        if order.move is Move.PROMOTE:
            assert order.expected_ns < order.recompute_ns, "what is quicker computed is not fetched"
        assert order.tries <= 3, "tries have a limit"
        self.open[order.order] = order
        mine = [one for one in self.open.values() if one.order[0] == order.order[0]]
        assert len(mine) <= {"m": 32, "p": 64}[order.order[0]], "open orders have a limit"
        self.ordered.append((self.now_ns, order))
        self._check_budget(actor, order)

    def _check_budget(self, actor: str, order: TransferOrdered) -> None:
        """Of any stretch of time up to now, at most the share of it and of one second, and one order more."""
        share = {"migration": 200_000, "prefetch": 500_000}[actor]
        link = [
            (at_ns, one)
            for at_ns, one in self.ordered
            if one.order[0] == order.order[0] and one.move is not Move.DROP
            and (one.engine_id, one.from_tier) == (order.engine_id, order.from_tier)
        ]  # fmt: skip
        planned_ns = 0
        for at_ns, one in reversed(link):
            planned_ns += fetch_ns(one.bytes_planned, 0, SSD_SPEED)
            allowed_ns = (self.now_ns - at_ns + NS_PER_S) * share // PPM
            assert planned_ns <= allowed_ns + 1, f"{actor}: the budget of a link is kept"

    def carry_out(self, name: str) -> None:
        """What the carrier does with an order: all or a part of it; nothing until it is taken back; nothing ever. What
        it was to drop and is not there any more is as good as dropped."""
        order = self.open[name]
        carrier, luck = self.carriers[order.engine_id], self.random.random()
        if carrier.lost or luck < self.silent:
            self.ignored[name] = None
            return
        if name in self.cancelled:
            self.answer(order, TransferEnd.CANCELLED, 0)
        elif name in self.stalled or luck < self.silent + self.stall:
            self.stalled[name] = None
        else:
            whole = luck >= self.silent + self.stall + self.fail
            self.move(order, len(order.slices) if whole else self.random.randrange(len(order.slices)))

    def move(self, order: TransferOrdered, most: int) -> None:
        """The first slices of an order are moved."""
        carrier, some = self.carriers[order.engine_id], order.slices[:most]
        if order.move in (Move.DROP, Move.DEMOTE):
            some = order.slices[len(order.slices) - most :]
        moved = some if order.move is Move.DROP else [one for one in some if one in carrier.held[order.from_tier]]
        if order.to_tier is not None:
            self.put(carrier, order.to_tier, moved)
        if order.move in (Move.DROP, Move.DEMOTE):
            self.take(carrier, order.from_tier, moved)
        whole = TransferEnd.DONE if len(moved) == len(order.slices) else TransferEnd.PARTLY
        self.answer(order, whole if moved else TransferEnd.FAILED, len(moved))

    def answer(self, order: TransferOrdered, end: TransferEnd, done: int) -> None:
        """Said once."""
        del self.open[order.order]
        self.say(TransferFinished(order=order.order, engine_id=order.engine_id, end=end, slices_done=done))

    def put(self, carrier: Carrier, tier: Tier, names: Sequence[SliceId]) -> None:
        """Slices come into a tier; it makes room by itself, the oldest first."""
        carrier.held[tier] |= dict.fromkeys(names)
        gone = list(carrier.held[tier])[: max(0, len(carrier.held[tier]) - ROOM[tier])]
        self.say(SlicesStored(engine_id=EngineId(carrier.name), tier=tier, slices=tuple(names), slice_bytes=SIZE))
        self.take(carrier, tier, gone)

    def take(self, carrier: Carrier, tier: Tier, names: Sequence[SliceId]) -> None:
        """Slices leave a tier."""
        for one in names:
            carrier.held[tier].pop(one, None)
        if names:
            self.say(SlicesRemoved(engine_id=EngineId(carrier.name), tier=tier, slices=tuple(names)))

    def measure(self) -> None:
        for carrier in self.carriers.values():
            for tier, held in carrier.held.items():
                more = {} if tier is DRAM else {"read": SSD_SPEED, "write": SSD_SPEED}
                self.say(gauged(tier, len(held), ROOM[tier], on=carrier.name, **more))


def opened(seed: int, **luck: float) -> Pool:
    """Two engines, measured."""
    pool = Pool(Random(seed), **luck)  # type: ignore[arg-type]
    pool.say(tick(0))
    pool.say(PolicyConfigured(actor="migration", settings={"hot_uses_min": 2}))
    for name in ("e1", "e2"):
        pool.carriers[name] = Carrier(name)
        pool.say(tiered(name))
    pool.measure()
    return pool


def live(pool: Pool, seconds: int) -> None:
    """Requests come, wait, run and end; orders are carried out now and then; tiers are measured every second."""
    random, running = pool.random, list[str]()
    for second in range(1, seconds + 1):
        for part in range(4):
            pool.now_ns = START_NS + second * NS_PER_S - (4 - part) * 200 * NS_PER_MS
            family, name = random.choice(FAMILIES), f"r{second}.{part}"
            chain = slices(*(family[: n + 1] for n in range(len(family))))
            came = pool.now_ns - START_NS
            pool.say(arrived(name, 10 * len(chain) + 1, slices=chain, now=came, slack=8 * NS_PER_S, session=family))
            if random.random() < 0.5:
                pool.say(deferred(name, until_s=second + 4))
            engine_id = random.choice(list(pool.carriers))
            pool.say(admitted(name, engine_id))
            running.append(name)
            if random.random() < 0.7:
                pool.put(pool.carriers[engine_id], SSD, chain)
            pool.put(pool.carriers[engine_id], DRAM, chain)
            while running and random.random() < 0.6:
                ended = running.pop(0)
                pool.say(first_token(ended))
                pool.say(finished(ended))
            for order in [one for one in pool.open if one not in pool.ignored and random.random() < 0.5]:
                pool.carry_out(order)
        for carrier in pool.carriers.values():
            if random.random() < 0.3:  # Engines let go of slices on their own, too.
                tier = random.choice([DRAM, SSD])
                pool.take(carrier, tier, list(carrier.held[tier])[::2])
        pool.now_ns = START_NS + second * NS_PER_S
        pool.measure()
        pool.say(tick(second))


def settle(pool: Pool, seconds: int) -> None:
    """Nothing comes any more, and what is ordered now is not answered either."""
    last = (pool.now_ns - START_NS) // NS_PER_S
    for second in range(last + 1, last + 1 + seconds):
        pool.now_ns = START_NS + second * NS_PER_S
        pool.say(tick(second))


def drain(pool: Pool) -> None:
    """Carriers do all that is open, and what comes of it."""
    while live_on := [one for one in pool.open if one not in pool.ignored and one not in pool.stalled]:
        pool.carry_out(live_on[0])


@pytest.mark.parametrize("seed", range(3))
def test_laws_hold_while_transfers_fail_and_stall(seed: int) -> None:
    pool = opened(seed)
    live(pool, 120)
    said = {(one.order[0], one.move) for _, one in pool.ordered}
    assert said == {("m", Move.DROP), ("m", Move.DEMOTE), ("m", Move.PROMOTE), ("p", Move.PROMOTE)}, "all was shown"
    drain(pool)
    books = [progress.state.transfers for _, progress in pool.actors]
    failed, moved = (sum(getattr(book.tally, name) for book in books) for name in ("failed", "moved"))
    first_failed, first_tried = (sum(getattr(b.tally, n) for b in books) for n in ("first_failed", "first_tried"))
    print(f"{first_failed} of {first_tried} failed at first, {failed} of {failed + moved} in the end")
    assert first_failed * 20 > first_tried, "or there is nothing to make good"
    assert failed * 20 <= moved + failed, "at most one in twenty fails after its tries"


@pytest.mark.parametrize("seed", range(2))
def test_every_order_is_answered_or_forgotten_in_the_end(seed: int) -> None:
    pool = opened(seed, silent=0.3)
    live(pool, 20)
    settle(pool, (LIFE_NS + ANSWER_MAX_NS) // NS_PER_S + 5)
    waited_ns, books = LIFE_NS + ANSWER_MAX_NS, [progress.state.transfers for _, progress in pool.actors]
    assert sum(book.tally.unanswered for book in books), "some were never answered"
    for book in books:
        assert [one for one in book.open.values() if one.said_ns < pool.now_ns - waited_ns] == []


@pytest.mark.parametrize("seed", range(2))
def test_a_pool_in_which_everything_fails_comes_to_rest(seed: int) -> None:
    pool = opened(seed, fail=1.0, stall=0.0)
    live(pool, 120)
    assert any(until_ns for until_ns in pool.suspended.values()), "links are suspended"
    at_rest = len(
        [one for at_ns, one in pool.ordered if one.move is not Move.DROP and at_ns > pool.now_ns - 5 * NS_PER_S]
    )
    assert at_rest <= 8, "and next to nothing is tried any more"


def test_what_an_engine_leaves_behind_is_forgotten() -> None:
    pool = opened(3)
    live(pool, 10)
    pool.carriers["e1"].lost = True
    pool.say(health("e1", Health.LOST))
    assert all(one.order.engine_id != "e1" for _, p in pool.actors for one in p.state.transfers.open.values())
    before = len(pool.ordered)
    settle(pool, 5)
    assert all(one.engine_id != "e1" for _, one in pool.ordered[before:])


@hypothesis_settings(max_examples=15, deadline=None)
@drawn(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_laws_hold_whatever_the_luck(seed: int, fail: float, stall: float, silent: float) -> None:
    live(opened(seed, fail=fail, stall=stall, silent=silent), 8)
