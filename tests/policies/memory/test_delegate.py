"""Choices within a step: what leaves a tier, who gives way, fetch or compute again; and under which directive."""

from typing import Any

import pytest

from events.base import EngineId, RequestId, SliceId
from events.decisions import EngineDirected
from events.slice import ChoiceKind, Tier
from policies.memory.delegate import Delegate, digest
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
from policies.memory.victims import Running

S, MIB = 10**9, 1 << 20
DRAM = Tier.DRAM


def stored(name: str, at_s: int = 0, *, parent: str = "", cost_ns: int = S, tier: Tier = DRAM) -> Stored:
    return Stored(at_ns=at_s * S, tier=tier, slice_id=name, parent=parent, cost_ns=cost_ns, size=MIB)


def let_go(*names: str, at_s: int = 1, tier: Tier = DRAM) -> LetGo:
    return LetGo(at_ns=at_s * S, tier=tier, slices=names)


def held(*names: str) -> Held:
    return Held(tier=DRAM, slices=names)


def used(*names: str, at_s: int) -> Used:
    return Used(at_ns=at_s * S, tier=DRAM, slices=names, length=len(names))


def evict(count: int, *, protected: tuple[str, ...] = (), at_s: int = 100, tier: Tier = DRAM) -> EvictAsked:
    return EvictAsked(at_ns=at_s * S, tier=tier, count=count, protected=protected)


def directed(version: int = 1, *, eviction: str = "lru", **about: Any) -> Directed:
    names = {key: tuple(map(SliceId, about.pop(key, ()))) for key in ("pinned", "needed", "hot")}
    said = {"protect_ppm": 800_000} | about | names
    return Directed(directive=EngineDirected(engine_id=EngineId("e1"), version=version, eviction=eviction, **said))


def one(name: str, **about: Any) -> Running:
    known: dict[str, Any] = {"blocks_freed": 10, "lost_ns": S, "slack_ns": 60 * S, "tokens_expected": 100}
    return Running(request_id=RequestId(name), **(known | about))


def victim(*running: Running, need: int = 10) -> VictimAsked:
    return VictimAsked(at_ns=0, need_blocks=need, running=running, for_request=RequestId("u"))


def answer(*ops: AnyOp) -> Choice:
    """What the last of these ops, a question, is answered after the others."""
    delegate = Delegate()
    choices = [delegate.take(op) for op in ops]
    assert choices[-1] is not None, "the last op is a question"
    return choices[-1]


THREE = (stored("a"), stored("b", 1), stored("c", 2), let_go("c", at_s=3), let_go("a", at_s=4), let_go("b", at_s=5))
CHAIN = (stored("a"), stored("b", parent="a"), stored("c", parent="b"), let_go("a", "b", "c"))

EVICTIONS: list[tuple[str, tuple[AnyOp, ...], tuple[str, ...]]] = [
    ("without a directive, what was let go longest ago", (*THREE, evict(2)), ("c", "a")),
    ("by the directive's kind", (*THREE, directed(eviction="fifo"), evict(2)), ("a", "b")),
    ("a kind that nobody knows is lru", (*THREE, directed(eviction="best"), evict(1)), ("c",)),
    ("a directive that names none lifts the one before", (directed(eviction="fifo"), *THREE,
     directed(2, eviction=""), evict(1)), ("c",)),
    ("the least worth first", (stored("dear", cost_ns=9 * S), stored("cheap", cost_ns=S), let_go("cheap", "dear"),
     directed(eviction="slo_aware"), evict(1)), ("cheap",)),
    ("children before parents", (*CHAIN, evict(2)), ("c", "b")),
    ("a parent whose child is in use stays", (*CHAIN, held("c"), evict(1)), ()),
    ("a parent whose child is gone goes", (*CHAIN, Removed(tier=DRAM, slices=("c", "b")), evict(1)), ("a",)),
    ("what is held stays", (*THREE, held("c"), evict(3)), ()),
    ("what is held goes once it is let go again", (*THREE, held("c"), let_go("c", at_s=9), evict(1)), ("c",)),
    ("what is used goes later", (*THREE, used("c", at_s=9), evict(1)), ("a",)),
    ("what is being written stays", (*THREE, stored("d"), evict(4)), ()),
    ("what is protected stays", (*THREE, evict(2, protected=("c",))), ("a", "b")),
    ("all or none", (*THREE, evict(4)), ()),
    ("hot ones after all others", (*THREE, directed(hot=("c", "a")), evict(2)), ("b", "c")),
    ("pinned ones stay", (*THREE, directed(pinned=("c",)), evict(3)), ()),
    ("needed ones stay", (*THREE, directed(needed=("c",)), evict(2)), ("a", "b")),
    ("a pin that ended protects no more", (directed(pinned=("c",)), *THREE, directed(2), evict(1)), ("c",)),
    ("tiers are apart", (*THREE, stored("z", tier=Tier.SSD), let_go("z", tier=Tier.SSD), evict(1, tier=Tier.SSD)),
     ("z",)),
    ("nothing is left of a tier that was cleared", (*THREE, Cleared(tier=DRAM), evict(1)), ()),
    ("what does not exist is no harm", (Removed(tier=DRAM, slices=("x",)), let_go("x"), held("x"),
     used("x", at_s=1), evict(1)), ()),
]  # fmt: skip


@pytest.mark.parametrize(("ops", "leave"), [row[1:] for row in EVICTIONS], ids=[row[0] for row in EVICTIONS])
def test_slices_leave_by_the_rule(ops: tuple[AnyOp, ...], leave: tuple[str, ...]) -> None:
    assert answer(*ops).chosen == leave


def test_what_cannot_be_evicted_all_is_as_before_the_question() -> None:
    assert answer(*CHAIN, evict(9), evict(3)).chosen == ("c", "b", "a")


def test_what_left_is_not_there_any_more() -> None:
    delegate = Delegate()
    for op in (*THREE, evict(1)):
        delegate.take(op)

    assert not delegate.holds(DRAM, "c")
    assert delegate.holds(DRAM, "a")
    assert not delegate.holds(Tier.SSD, "a")


def test_use_after_an_eviction_teaches_that_its_like_come_back() -> None:
    # Two kinds of slice by the length of their prompt: the long ones come back each time, the short ones never do.
    delegate = Delegate()
    delegate.take(directed(eviction="slo_aware"))
    for at_s in range(0, 40, 2):
        for name, length in ((f"short{at_s}", 1), ("long", 9)):
            delegate.take(Stored(at_ns=at_s * S, tier=DRAM, slice_id=name, cost_ns=S, size=1, length=length))
            delegate.take(let_go(name, at_s=at_s))
        delegate.take(Removed(tier=DRAM, slices=(f"short{at_s}",)))
        delegate.take(Used(at_ns=at_s * S, tier=DRAM, slices=("long",), length=9))
    delegate.take(stored("short"))
    delegate.take(let_go("short", at_s=50))

    choice = delegate.take(evict(1))

    assert choice is not None
    assert choice.chosen == ("short",)


VICTIMS: list[tuple[str, tuple[AnyOp, ...], tuple[str, ...]]] = [
    ("most slack first", (victim(one("a"), one("b", slack_ns=500 * S)),), ("b",)),
    ("as many as it takes", (victim(one("a"), one("b"), one("c"), need=15),), ("a", "b")),
    ("a nearly complete answer is protected by the directive", (directed(),
     victim(one("a", tokens_done=90, first_token=True, slack_ns=500 * S), one("b"))), ("b",)),
    ("without a directive nobody is", (victim(one("a", tokens_done=90, first_token=True, slack_ns=500 * S), one("b")),),
     ("a",)),
    ("nor under one that leaves it to the engine", (directed(eviction="", protect_ppm=0),
     victim(one("a", tokens_done=90, first_token=True, slack_ns=500 * S), one("b"))), ("a",)),
    ("the protected come last, and only as many as it takes", (directed(), victim(
        one("a", tokens_done=90, first_token=True), one("b", tokens_done=95, first_token=True), one("c"), need=20)),
     ("c", "a")),
    ("patience ends before the engine does", (directed(), victim(one("a", preempted=9), one("b", preempted=9))),
     ("a",)),
    ("where nobody frees enough, all that free anything", (victim(one("a"), one("b", blocks_freed=0), need=99),),
     ("a",)),
    ("nobody frees anything", (victim(one("a", blocks_freed=0)),), ()),
]  # fmt: skip


@pytest.mark.parametrize(("ops", "give_way"), [row[1:] for row in VICTIMS], ids=[row[0] for row in VICTIMS])
def test_requests_give_way_by_algorithm_3(ops: tuple[AnyOp, ...], give_way: tuple[str, ...]) -> None:
    assert answer(*ops).chosen == give_way


FETCHES: list[tuple[str, dict[str, int], bool]] = [
    ("quicker than computing", {"size": 100 * MIB, "bytes_per_s": 10**9, "recompute_ns": S}, True),
    ("slower than computing", {"size": 2_000 * MIB, "bytes_per_s": 10**9, "recompute_ns": S}, False),
    ("behind a queue", {"size": 100 * MIB, "queue_bytes": 2 * 10**9, "bytes_per_s": 10**9, "recompute_ns": S}, False),
    ("hardly quicker", {"size": 950 * 10**6, "bytes_per_s": 10**9, "recompute_ns": S}, False),
    ("after a long way", {"size": 1, "bytes_per_s": 10**9, "latency_ns": S, "recompute_ns": S}, False),
    ("computing is free", {"size": 1, "bytes_per_s": 10**9, "recompute_ns": 0}, False),
]


@pytest.mark.parametrize(("amounts", "worth"), [row[1:] for row in FETCHES], ids=[row[0] for row in FETCHES])
def test_slices_are_fetched_where_that_is_quicker(amounts: dict[str, int], worth: bool) -> None:
    asked = FetchAsked(at_ns=0, tier=Tier.SSD, slices=("a", "b"), for_request=RequestId("r"), **amounts)

    choice = answer(asked)

    assert choice.chosen == (("a", "b") if worth else ())
    assert (choice.kind, choice.for_request, choice.candidates) == (ChoiceKind.FETCH, RequestId("r"), 2)


def test_every_choice_names_the_newest_directive_and_what_was_looked_at() -> None:
    running = (one("a"), one("b"))

    first, second = answer(victim(*running)), answer(directed(4), directed(7), victim(*running))

    assert (first.directive_version, second.directive_version) == (0, 7)
    assert first.candidates_digest == second.candidates_digest == digest(running)
    assert (first.candidates, first.for_request) == (2, RequestId("u"))


def test_other_candidates_have_another_digest() -> None:
    assert answer(victim(one("a"))).candidates_digest != answer(victim(one("a", lost_ns=2 * S))).candidates_digest


def test_what_came_of_a_choice_is_no_question() -> None:
    assert Delegate().take(GaveWay(at_ns=1, request_id=RequestId("a"))) is None
