"""The prefetch actor: for whom something is fetched, when, and when it is taken back."""

from typing import Any

import pytest

from events.base import NS_PER_MS, EngineId, Event, RequestId
from events.control import PolicyConfigured
from events.decisions import (
    CancelReason,
    HolderLost,
    LinkSuspended,
    Move,
    MoveReason,
    PreemptReason,
    RejectReason,
    RequestPreempted,
    RequestRejected,
    TransferOrdered,
)
from events.engine import EngineRemoved, Health
from policies.prefetch import HOT_LIFE_NS, PREFETCH
from policies.prefetch_state import SESSIONS_MAX, State
from policies.transfers import FAILED_MIN
from tests.policies.tier_words import (
    DRAM,
    HBM,
    SIZE,
    SSD,
    admitted,
    answered,
    back,
    deferred,
    failed,
    gauged,
    pinned,
    stored,
    tiered,
)
from tests.policies.words import MS, S, aborted, arrived, engine, expired, finished, first_token, health, slices, tick
from tests.spec import START_NS, At, Spec, at, given, said


def configured(**changes: Any) -> PolicyConfigured:
    return PolicyConfigured(actor="prefetch", settings=changes)


def wants(name: str, prompt: str = "abcde", **more: Any) -> Event:
    """A request that begins with these slices, and has 30 s."""
    return arrived(name, 10 * len(prompt) + 5, slices=slices(*prompt), slack=30 * S, **more)


def house(*events: Event | At) -> Spec:
    """An engine with a, b in device memory, c in DRAM and d, e in SSD alone; tiers are measured and have room."""
    there = [stored(HBM, *"ab"), stored(DRAM, *"c"), stored(SSD, *"cde")]
    return given(PREFETCH, at(0, tick(0)), tiered(), gauged(DRAM, used=1), gauged(SSD, used=3), *there, *events)


def later(spec: Spec, seconds: int) -> list[Event]:
    """So many seconds pass, a tick each; what was said meanwhile."""
    return [one for n in range(seconds) for one in spec.after(At(spec.ns - START_NS + S, tick(n))).decisions]


# What is certain.


def test_what_a_deferred_request_begins_with_comes_up() -> None:
    house(wants("r")).when(deferred("r")).then(
        TransferOrdered(
            order="p1", engine_id=EngineId("e1"), move=Move.PROMOTE, reason=MoveReason.WAITING_REQUEST,
            slices=slices("d", "e"), from_tier=SSD, to_tier=DRAM, for_request=RequestId("r"), bytes_planned=2 * SIZE,
            expected_ns=2 * NS_PER_MS // 10, recompute_ns=10 * NS_PER_MS, until_ns=START_NS + 9 * S,
        )
    )  # fmt: skip


def test_what_an_admitted_request_begins_with_comes_up_where_it_was_sent_until_its_deadline() -> None:
    house(wants("r")).when(admitted("r")).then(
        said(TransferOrdered, slices=slices("d", "e"), engine_id="e1", until_ns=START_NS + 30 * S)
    )


def test_what_is_served_late_is_fetched_for_until_its_first_token_is_predicted() -> None:
    spec = house(arrived("r", 55, slices=slices(*"abcde"), slack=500 * MS), at(S, tick(1)))
    spec.when(admitted("r", ttft_ns=2 * S)).then(
        said(TransferOrdered, slices=slices("d", "e"), engine_id="e1", until_ns=START_NS + 3 * S)
    )


def preempted(name: str) -> RequestPreempted:
    return RequestPreempted(
        request_id=RequestId(name), engine_id=EngineId("e1"), for_request=RequestId("u"),
        reason=PreemptReason.MORE_URGENT,
    )  # fmt: skip


def test_a_preempted_request_wants_its_prompt_again() -> None:
    spec = house(wants("r"), admitted("r"), answered("p1", done=0), first_token("r"))
    spec.when(preempted("r")).then(said(TransferOrdered, order="p2", slices=slices("d", "e"), engine_id="e1"))


@pytest.mark.parametrize(
    "events",
    [
        [configured(enabled="off")],
        [configured(link_share_ppm=0)],
        [gauged(SSD, read=100_000)],
        [gauged(SSD, queue=100)],
        [stored(DRAM, *"de")],
        [stored(HBM, *"cde")],
        [health("e1", Health.LOST)],
        [EngineRemoved(engine_id=EngineId("e1"))],
        [engine("e1")],
    ],
    ids=["off", "no link time", "slower than computing", "a long queue", "is there", "is in device memory", "lost",
         "removed", "reports no slices"],
)  # fmt: skip
def test_nothing_is_fetched_where_that_makes_no_sense(events: list[Event]) -> None:
    house(wants("r"), *events).when(deferred("r")).then_nothing()


def test_a_deferred_request_is_fetched_for_where_most_of_its_beginning_is() -> None:
    peer = [tiered("e2"), gauged(DRAM, on="e2"), gauged(SSD, on="e2"), stored(SSD, *"abcdef", on="e2")]
    spec = house(*peer, wants("r", "abcdef")).when(deferred("r"))
    spec.then(said(TransferOrdered, engine_id="e2", slices=slices(*"abcdef")))
    spec.when(admitted("r")).then(back("p1", CancelReason.NOT_NEEDED, on="e2"), said(TransferOrdered, engine_id="e1"))


def test_of_another_model_nothing_is_there() -> None:
    house(wants("r", model="other")).when(deferred("r")).then_nothing()


def test_what_cannot_be_there_in_time_is_left_out() -> None:
    slow = gauged(SSD, read=1_000_000, queue=3)
    spec = house(slow, tiered(blocks=100), arrived("r", 55, slices=slices(*"abcde"), slack=4_500_000))
    spec.when(admitted("r")).then(said(TransferOrdered, slices=slices("d")))
    late = house(slow, arrived("r", 55, slices=slices(*"abcde"), slack=3 * MS))
    late.when(admitted("r")).then_nothing()


def test_large_needs_are_several_orders_within_the_links_share() -> None:
    prompt = [chr(300 + n) for n in range(80)]
    wanting = arrived("r", 805, slices=slices(*prompt), slack=30 * S)
    spec = house(stored(SSD, *prompt), wanting).when(deferred("r"))
    assert [len(order.slices) for order in spec.decisions if isinstance(order, TransferOrdered)] == [32, 32, 16]
    tight = house(stored(SSD, *prompt), gauged(SSD, read=100_000), configured(margin_ppm=0), wanting)
    tight.after(configured(order_slices_max=2, link_share_ppm=500_000))
    tight.when(deferred("r")).then_nothing()  # 10 ms a slice, computing all in steps of 100 tokens is quicker.
    tight.after(gauged(SSD, read=1_000_000), configured(link_share_ppm=3_000)).when(deferred("r"))
    tight.then(said(TransferOrdered, slices=slices(*prompt[:2])), said(TransferOrdered, slices=slices(*prompt[2:3])))
    tight.when(at(S, tick(1))).then(
        said(TransferOrdered, slices=slices(*prompt[3:5])), said(TransferOrdered, slices=slices(*prompt[5:6]))
    )


def test_what_is_on_its_way_is_not_ordered_again_for_another_request() -> None:
    spec = house(wants("r"), deferred("r"), wants("s", "abcdef")).when(deferred("s")).then_nothing()
    spec.when(at(S, tick(1))).then_nothing()
    theirs = TransferOrdered(
        order="m7", engine_id=EngineId("e1"), move=Move.PROMOTE, reason=MoveReason.HOT, slices=slices("d"),
        from_tier=SSD, to_tier=DRAM, bytes_planned=SIZE, until_ns=START_NS + 9 * S,
    )  # fmt: skip
    house(theirs, wants("r")).when(deferred("r")).then(said(TransferOrdered, slices=slices("e")))


def test_what_is_certain_takes_the_place_of_what_nobody_needs() -> None:
    full = gauged(DRAM, used=3, room=3)
    house(full, wants("r")).when(deferred("r")).then(said(TransferOrdered, slices=slices("d", "e")))
    house(full, pinned("c", "x", "y"), stored(DRAM, "x"), wants("r")).when(deferred("r")).then(
        said(TransferOrdered, slices=slices("d"))
    )
    house(full, stored(DRAM, "x", "y"), wants("o", "cxy"), admitted("o"), wants("r")).when(deferred("r")).then_nothing()


ENDS: list[Event] = [
    first_token("r"), finished("r"), aborted("r"), expired("r"),
    RequestRejected(request_id=RequestId("r"), reason=RejectReason.QUEUE_FULL),
    HolderLost(holder=wants("r").holder, requests=(RequestId("r"),)),  # type: ignore[attr-defined]
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.event_kind())
def test_an_order_is_taken_back_when_its_request_wants_it_no_more(end: Event) -> None:
    spec = house(wants("r"), deferred("r")).when(end).then(back("p1", CancelReason.NOT_NEEDED))
    spec.when(at(S, tick(1))).then_nothing()


def test_but_not_while_another_request_wants_it() -> None:
    house(wants("r"), deferred("r"), wants("s"), deferred("s")).when(finished("r")).then_nothing()


def test_what_did_not_fit_is_looked_at_again_with_every_tick_the_oldest_first() -> None:
    spec = house(configured(open_max=1), stored(SSD, *"xyz"), wants("r"), deferred("r"), wants("s", "xyz"))
    spec.when(deferred("s")).then_nothing()
    spec.after(answered("p1", done=2), stored(DRAM, *"de"))
    spec.when(at(S, tick(1))).then(said(TransferOrdered, order="p2", slices=slices(*"xyz")))


def test_ticks_within_a_second_look_no_further() -> None:
    spec = house(configured(open_max=1), stored(SSD, *"xyz"), wants("r"), deferred("r"), wants("s", "xyz"))
    spec.after(deferred("s"), at(S, tick(1)), answered("p1", done=2), stored(DRAM, *"de"))
    spec.when(at(S + 300 * MS, tick(2))).then_nothing()
    spec.when(at(2 * S, tick(3))).then(said(TransferOrdered, order="p2"))


# What is likely.


def chatty(*events: Event | At, pause_s: int = 10) -> Spec:
    """A session that paused so long each of three times, while nothing was ordered; its last turn has just ended."""
    spec = house(*events, configured(enabled="off", hot_prefixes="off"))
    for turn in range(4):
        name = f"t{turn}"
        spec.after(wants(name, now=turn * pause_s * S, session="s"), admitted(name), first_token(name), finished(name))
        if turn < 3:
            later(spec, pause_s)
    return spec.after(configured(enabled="on"))


def test_a_next_turn_is_fetched_for_when_it_is_near() -> None:
    spec = chatty()
    state: State = spec.state
    [session] = state.sessions.values()
    low_ns = session.pauses.mean_ns - 2 * session.pauses.deviation_ns
    high_ns = session.pauses.mean_ns + 4 * session.pauses.deviation_ns
    assert 4 * S < low_ns < 5 * S
    assert later(spec, 4) == []
    assert later(spec, 1) == [
        TransferOrdered(
            order="p1", engine_id=EngineId("e1"), move=Move.PROMOTE, reason=MoveReason.NEXT_TURN,
            slices=slices("d", "e"), from_tier=SSD, to_tier=DRAM, bytes_planned=2 * SIZE,
            expected_ns=2 * NS_PER_MS // 10, recompute_ns=10 * NS_PER_MS, until_ns=START_NS + 30 * S + high_ns,
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    "events",
    [[configured(next_turns="off")], [gauged(DRAM, used=100)], [stored(DRAM, *"de")], [gauged(SSD, read=100_000)]],
    ids=["off", "no free room", "is there", "slow"],
)
def test_it_is_not_where_that_makes_no_sense(events: list[Event]) -> None:
    assert later(chatty().after(*events), 8) == []


def test_a_turn_that_does_not_come_is_not_expected_for_ever() -> None:
    spec = chatty()
    assert [one.event_kind() for one in later(spec, 40)] == ["transfer_ordered", "transfer_cancelled"]
    [session] = spec.state.sessions.values()
    assert session.ended_ns == 0
    learned = session.pauses.count
    spec.after(wants("t9", session="s"))
    assert session.pauses.count == learned, "so late, the pause says nothing"


def test_a_session_without_a_pause_of_its_own_goes_by_its_tenants() -> None:
    spec = chatty()
    spec.after(wants("n", "cd", session="new"), finished("n"), wants("t9", session="s"))
    [order] = later(spec, 8)
    assert isinstance(order, TransferOrdered)
    assert (order.reason, order.slices) == (MoveReason.NEXT_TURN, ("d",))
    assert [session.pauses.count for session in spec.state.sessions.values()] == [4, 0]


def popular(*events: Event | At) -> Spec:
    """Slices a to e were asked for five times and are served."""
    came: list[Event] = []
    for n in range(5):
        came += [wants(f"q{n}"), finished(f"q{n}")]
    return house(*came, *events)


def test_hot_prefixes_come_up_where_there_is_free_room() -> None:
    popular().when(at(S, tick(1))).then(
        said(TransferOrdered, reason=MoveReason.HOT_PREFIX, slices=slices("d", "e"), for_request="",
             until_ns=START_NS + S + HOT_LIFE_NS)
    )  # fmt: skip
    popular(gauged(DRAM, used=99)).when(at(S, tick(1))).then(said(TransferOrdered, slices=slices("d")))


@pytest.mark.parametrize(
    "events",
    [
        [configured(hot_prefixes="off")],
        [configured(hot_uses_min=9)],
        [gauged(DRAM, used=100)],
        [gauged(SSD, queue=1_000)],
    ],
    ids=["off", "not hot", "no free room", "a long queue"],
)
def test_they_do_not_where_that_makes_no_sense(events: list[Event]) -> None:
    popular(*events).when(at(S, tick(1))).then_nothing()


def test_what_is_certain_goes_before_what_is_likely() -> None:
    spec = popular(configured(open_max=1), stored(SSD, *"xyz"), wants("r", "xyz"))
    spec.when(deferred("r")).then(said(TransferOrdered, reason=MoveReason.WAITING_REQUEST, slices=slices(*"xyz")))
    spec.when(at(S, tick(1))).then_nothing()


# What becomes of orders.


def test_a_failed_order_is_tried_again_with_a_limit_while_somebody_wants_it() -> None:
    spec = house(wants("r"), deferred("r")).when(failed("p1"))
    spec.then(said(TransferOrdered, order="p2", tries=2, slices=slices("d", "e"), for_request="r"))
    spec.after(stored(DRAM, "d")).when(failed("p2", done=1))
    spec.then(said(TransferOrdered, order="p3", tries=3, slices=slices("e")))
    spec.when(failed("p3")).then_nothing()
    spec.when(at(S, tick(1))).then_nothing()
    house(wants("r"), deferred("r"), finished("r")).when(failed("p1")).then_nothing()


def test_hot_prefixes_and_next_turns_are_tried_again_too() -> None:
    popular(at(S, tick(1))).when(failed("p1")).then(said(TransferOrdered, reason=MoveReason.HOT_PREFIX, tries=2))
    spec = chatty()
    later(spec, 5)
    spec.when(failed("p1")).then(said(TransferOrdered, reason=MoveReason.NEXT_TURN, tries=2, slices=slices("d", "e")))


def test_an_order_past_its_time_is_too_late() -> None:
    spec = house(wants("r"), deferred("r", until_s=2))
    assert later(spec, 3) == [back("p1", CancelReason.TOO_LATE)]


def test_orders_of_a_lost_engine_are_taken_back() -> None:
    spec = house(wants("r"), deferred("r")).when(health("e1", Health.LOST)).then(back("p1", CancelReason.ENGINE_GONE))
    spec.when(at(S, tick(1))).then_nothing()


def test_a_link_that_fails_is_suspended() -> None:
    names = [chr(300 + n) for n in range(FAILED_MIN)]
    spec = house(configured(tries_max=1), stored(SSD, *names))
    for n, name in enumerate(names, start=1):
        spec.after(wants(name, name), deferred(name)).when(failed(f"p{n}"))
    spec.then(said(LinkSuspended, from_tier=SSD, failed=FAILED_MIN, of=FAILED_MIN))
    spec.after(wants("r")).when(deferred("r")).then_nothing()


def test_what_it_knows_can_be_asked() -> None:
    spec = chatty().after(wants("r", now=30 * S), deferred("r", until_s=60))
    told = spec.explained(tick(9))
    [waiting], [turn], [one] = told["waiting"], told["next_turns"], told["engines"]
    assert (waiting["request_id"], waiting["hbm"], waiting["dram"], waiting["ssd"]) == ("r", 2, 1, 2)
    assert (turn["session"], turn["from_ns"] < turn["to_ns"]) == ("s", True)
    assert (one["engine_id"], one["works"]) == ("e1", True)
    assert [order["reason"] for order in told["transfers"]["open"]] == ["waiting_request"]


def test_what_it_remembers_of_sessions_is_bounded() -> None:
    spec = house()
    for n in range(SESSIONS_MAX + 9):
        spec.after(wants(f"r{n}", "a", session=f"s{n}"), finished(f"r{n}"))
    assert len(spec.state.sessions) == SESSIONS_MAX
    assert spec.state.needs.open == {}
