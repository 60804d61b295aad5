"""The migration actor: what goes down, out, up and over, and what is left alone."""

from typing import Any

import pytest

from events.base import NS_PER_MS, EngineId, Event
from events.control import PolicyConfigured
from events.decisions import (
    CancelReason,
    LinkSuspended,
    Move,
    MoveReason,
    TransferOrdered,
)
from events.engine import EngineRemoved, Health
from events.slice import Tier, TransferEnd
from policies.migration import LIFE_NS, MIGRATION
from policies.migration_state import State
from policies.tiered_engines import ENGINES_MAX
from policies.transfers import ANSWER_MAX_NS, FAILED_MIN, GIVE_UP_NS, SUSPEND_NS
from tests.policies.tier_words import (
    DRAM,
    HBM,
    SIZE,
    SSD,
    admitted,
    answered,
    back,
    cleared,
    deferred,
    failed,
    gauged,
    names_of,
    pinned,
    removed,
    stored,
    tiered,
)
from tests.policies.words import MS, S, arrived, engine, finished, first_token, health, slices, tick
from tests.spec import START_NS, At, Spec, at, given, said


def configured(**changes: Any) -> PolicyConfigured:
    return PolicyConfigured(actor="migration", settings=changes)


def asked(prompt: str, times: int = 1, *, name: str = "r") -> list[Event]:
    """That often somebody asked for these slices, and was served."""
    came: list[Event] = []
    for number in range(times):
        request = f"{name}{prompt}{number}"
        came += [arrived(request, 10 * len(prompt), slices=slices(*prompt)), finished(request)]
    return came


def house(*events: Event | At) -> Spec:
    """An engine with tiers that are measured and empty."""
    return given(MIGRATION, at(0, tick(0)), tiered(), gauged(DRAM), gauged(SSD), *events)


def dropped(*names: str, reason: MoveReason = MoveReason.PRESSURE, **more: Any) -> Any:
    return said(TransferOrdered, move=Move.DROP, reason=reason, slices=slices(*names), **more)


def later(spec: Spec, seconds: int) -> list[Event]:
    """So many seconds pass, a tick each (the house's time moves no faster); what was said meanwhile."""
    said_meanwhile: list[Event] = []
    for n in range(1, seconds + 1):
        said_meanwhile += spec.after(At(spec.ns - START_NS + S, tick(n))).decisions
    return said_meanwhile


# Relieve DRAM.

FULL = gauged(DRAM, used=5, room=5)
"""Five of five: one slice has to go with the default watermarks (high 4.85, low 4.75)."""


def test_what_is_in_ssd_too_is_dropped_from_dram() -> None:
    spec = house(*asked("abcde"), stored(DRAM, *"abcde"), stored(SSD, *"abcde"))
    spec.when(FULL).then(
        TransferOrdered(
            order="m1", engine_id=EngineId("e1"), move=Move.DROP, reason=MoveReason.PRESSURE, slices=slices("e"),
            from_tier=DRAM, recompute_ns=10 * NS_PER_MS, until_ns=START_NS + LIFE_NS,
        )
    )  # fmt: skip


def test_what_is_not_is_demoted_where_fetching_it_back_is_worth_it() -> None:
    house(*asked("abcde"), stored(DRAM, *"abcde")).when(FULL).then(
        TransferOrdered(
            order="m1", engine_id=EngineId("e1"), move=Move.DEMOTE, reason=MoveReason.PRESSURE, slices=slices("e"),
            from_tier=DRAM, to_tier=SSD, bytes_planned=SIZE, expected_ns=NS_PER_MS // 10,
            recompute_ns=10 * NS_PER_MS, until_ns=START_NS + LIFE_NS,
        )
    )  # fmt: skip


SLOW = gauged(SSD, read=90_000)
"""11 ms a slice, where computing it takes 10."""


def test_what_is_in_ssd_stays_in_dram_where_ssd_is_too_slow_to_be_of_use() -> None:
    spec = house(*asked("abcde"), stored(DRAM, *"abcde"), stored(SSD, *"abcde"), SLOW)
    spec.when(FULL).then_nothing()


@pytest.mark.parametrize(
    ("given_then", "why"),
    [
        ([SLOW], "fetching it back is slower than computing"),
        ([gauged(SSD, used=100)], "SSD is full"),
        ([gauged(SSD, room=0)], "there is no SSD"),
        ([configured(link_share_ppm=0)], "no link time may be used"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_may_come_back_stays_where_it_cannot_be_demoted(given_then: list[Event], why: str) -> None:
    assert why
    house(*asked("abcde"), stored(DRAM, *"abcde"), *given_then).when(FULL).then_nothing()


def test_what_hardly_ever_comes_back_is_dropped() -> None:
    worthless = [one for n in range(60) for one in asked(chr(200 + n))]
    spec = house(*worthless, stored(DRAM, *map(chr, range(200, 205))))
    spec.when(FULL).then(dropped(chr(204), reason=MoveReason.WORTHLESS))


def test_what_nobody_asked_for_as_far_as_is_known_is_worthless() -> None:
    house(stored(DRAM, *"abcde")).when(FULL).then(dropped("e", reason=MoveReason.WORTHLESS))


def test_without_ssd_dram_is_left_to_the_engine() -> None:
    spec = given(MIGRATION, at(0, tick(0)), tiered(), gauged(DRAM), stored(DRAM, *"abcde"))
    spec.when(FULL).then_nothing()


def test_below_the_high_watermark_nothing_goes() -> None:
    spec = house(*asked("abcd"), stored(DRAM, *"abcd"), stored(SSD, *"abcd"))
    spec.when(gauged(DRAM, used=96)).then_nothing()
    spec.when(gauged(DRAM, used=97)).then(dropped(*"cd"))
    spec.after(configured(high_ppm=1_000_000)).when(gauged(DRAM, used=99)).then_nothing()


def test_what_goes_already_is_not_ordered_again() -> None:
    spec = house(*asked("abcde"), stored(DRAM, *"abcde"), stored(SSD, *"abcde"))
    spec.when(FULL).then(dropped("e"))
    spec.when(FULL).then_nothing()
    spec.after(answered("m1", done=1)).when(FULL).then(dropped("e", order="m2"))


def test_the_less_valuable_goes_first_and_no_slice_before_one_behind_it() -> None:
    once = [*asked("xyz"), *(one for n in range(300, 390, 3) for one in asked(chr(n) + chr(n + 1) + chr(n + 2)))]
    spec = house(*asked("ab", 20), *once, stored(DRAM, *"abxyz"), stored(SSD, *"abxyz"), configured(low_ppm=1))
    spec.after(configured(order_slices_max=1)).when(FULL)
    assert [order.slices for order in spec.decisions if isinstance(order, TransferOrdered)] == [
        ("z",), ("y",), ("x",), ("b",), ("a",)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "keeping",
    [
        [pinned("e")],
        [arrived("w", 50, slices=slices(*"abcde")), deferred("w")],
        [arrived("w", 50, slices=slices(*"abcde")), admitted("w")],
        [TransferOrdered(order="p9", engine_id=EngineId("e1"), move=Move.PROMOTE, reason=MoveReason.NEXT_TURN,
                         slices=slices(*"abcde"), from_tier=SSD, to_tier=DRAM, until_ns=START_NS + 9 * S),
         answered("p9", done=5)],
    ],
    ids=["pinned", "a request waits for it", "a request was sent for it", "prefetch brought it"],
)  # fmt: skip
def test_what_is_needed_stays(keeping: list[Event]) -> None:
    spec = house(*asked("abcde"), stored(DRAM, *"abcde"), stored(SSD, *"abcde"), *keeping)
    spec.when(FULL).then_nothing()  # Nor goes what it stands on.


def test_what_a_request_wanted_may_go_when_it_has_its_first_token() -> None:
    wants = [arrived("w", 50, slices=slices(*"abcde")), admitted("w")]
    spec = house(stored(DRAM, *"abcde"), stored(SSD, *"abcde"), *wants)
    spec.when(FULL).then_nothing()
    spec.after(first_token("w")).when(FULL).then(dropped("e"))


def test_an_order_is_taken_back_when_what_it_takes_away_is_needed_after_all() -> None:
    spec = house(*asked("abcde"), stored(DRAM, *"abcde"), stored(SSD, *"abcde"), FULL)
    spec.after(arrived("w", 50, slices=slices(*"abcde")), deferred("w"))
    spec.when(at(S, tick(1))).then(back("m1", CancelReason.NOT_NEEDED))
    spec.when(at(2 * S, tick(2))).then_nothing()


# Relieve SSD.


def test_ssd_drops_what_is_worth_least() -> None:
    spec = house(*asked("xyz"), stored(SSD, *"abxyz"))
    spec.when(gauged(SSD, used=50, room=50))
    [order] = spec.decisions
    assert isinstance(order, TransferOrdered)
    assert (names_of(order), order.move, order.reason, order.from_tier) == (
        "b a z", Move.DROP, MoveReason.WORTHLESS, SSD
    )  # fmt: skip


# Promote.

HOT = configured(hot_uses_min=2)


def warm(*events: Event | At) -> Spec:
    """Slices a, b, c are hot and in SSD alone."""
    return house(HOT, *asked("abc", 3), stored(SSD, *"abc"), *events, at(S, tick(1)))


def test_hot_slices_come_up_parents_first() -> None:
    warm().when(gauged(DRAM)).then(
        TransferOrdered(
            order="m1", engine_id=EngineId("e1"), move=Move.PROMOTE, reason=MoveReason.HOT, slices=slices(*"abc"),
            from_tier=SSD, to_tier=DRAM, bytes_planned=3 * SIZE, expected_ns=3 * NS_PER_MS // 10,
            recompute_ns=30 * NS_PER_MS, until_ns=START_NS + S + LIFE_NS,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "events",
    [
        [stored(HBM, *"abc")],
        [stored(DRAM, *"abc")],
        [cleared(SSD)],
        [SLOW],
        [gauged(SSD, queue=1_000)],
        [configured(hot_uses_min=9)],
        [configured(enabled="off")],
        [configured(link_share_ppm=0)],
        [health("e1", Health.LOST)],
    ],
    ids=["in device memory", "in DRAM", "gone", "slow", "behind others", "not hot", "off", "no link", "lost"],
)
def test_they_stay_where_coming_up_makes_no_sense(events: list[Event]) -> None:
    warm(*events).when(gauged(DRAM)).then_nothing()


def test_dram_takes_what_it_has_room_for() -> None:
    spec = warm().when(gauged(DRAM, used=7, room=10)).then(said(TransferOrdered, slices=slices(*"ab")))
    spec.when(gauged(DRAM, used=7, room=10)).then_nothing()


def test_a_slice_without_its_forerunner_stays() -> None:
    spec = house(HOT, *asked("abc", 3), stored(SSD, *"bc"), at(S, tick(1)))
    spec.when(gauged(DRAM)).then_nothing()


def test_a_stock_engine_is_left_alone() -> None:
    spec = given(MIGRATION, at(0, tick(0)), engine("e1"), *asked("abcde"), stored(DRAM, *"abcde"))
    spec.when(FULL).then_nothing()


def test_an_engine_that_was_heard_before_it_was_registered_keeps_what_it_said() -> None:
    heard = [stored(DRAM, *"abcde"), stored(SSD, *"abcde")]
    spec = given(MIGRATION, at(0, tick(0)), *heard).when(FULL).then_nothing()
    spec.after(tiered()).when(FULL).then(dropped("e"))


@pytest.mark.parametrize("queue", [-9, 0])
def test_amounts_that_cannot_be_are_taken_for_none(queue: int) -> None:
    spec = warm(gauged(SSD, used=-3, read=-1, write=-1, queue=queue))
    spec.when(gauged(DRAM, used=-1)).then(said(TransferOrdered, move=Move.PROMOTE))


def test_engines_that_were_only_heard_of_keep_none_out_that_is_registered() -> None:
    strangers = [gauged(DRAM, on=f"x{n}") for n in range(ENGINES_MAX + 9)]
    spec = given(MIGRATION, at(0, tick(0)), *strangers, tiered(), stored(DRAM, *"abcde"), stored(SSD, *"abcde"))
    spec.when(FULL).then(dropped("e"))
    state: State = spec.state
    assert len(state.engines) == ENGINES_MAX


def test_where_nobody_knows_what_computing_takes_nothing_is_fetched_and_nothing_lost() -> None:
    spec = given(MIGRATION, at(0, tick(0)), tiered(step=None), gauged(DRAM), gauged(SSD), HOT)
    spec.after(*asked("abc", 3), stored(SSD, *"abc"), at(S, tick(1))).when(gauged(DRAM)).then_nothing()
    spec.after(stored(DRAM, *"vwxyz"), *asked("vwxyz")).when(FULL).then(
        said(TransferOrdered, move=Move.DEMOTE, slices=slices("z"))
    )


def test_what_computing_takes_is_learned_from_first_tokens() -> None:
    spec = given(MIGRATION, at(0, tick(0)), tiered(step=None), gauged(DRAM), gauged(SSD), HOT)
    for n in range(8):
        spec.after(arrived(f"q{n}", 100, now=n * S, slices=slices(f"q{n}")), admitted(f"q{n}"))
        spec.after(At(n * S + 100 * MS, first_token(f"q{n}")), At((n + 1) * S, tick(n)))
    spec.after(*asked("abc", 3), stored(SSD, *"abc"), at(9 * S, tick(9)))
    spec.when(gauged(DRAM)).then(said(TransferOrdered, reason=MoveReason.HOT, slices=slices(*"abc")))
    [order] = spec.decisions
    assert isinstance(order, TransferOrdered)
    assert round(order.recompute_ns / NS_PER_MS, 2) == 30


# Replicate.


def two(*events: Event) -> Spec:
    """Hot slices a, b are in e2's DRAM, and e1 has nothing."""
    peers = [tiered("e2"), gauged(DRAM, on="e2"), stored(DRAM, *"ab", on="e2")]
    return house(HOT, *asked("ab", 3), *peers, *events, at(S, tick(1)))


def test_hot_slices_go_to_an_engine_that_lacks_them_where_there_is_a_way() -> None:
    two().when(gauged(DRAM)).then_nothing()
    two(configured(peer_bytes_per_s=1_000_000)).when(gauged(DRAM)).then(
        TransferOrdered(
            order="m1", engine_id=EngineId("e2"), move=Move.REPLICATE, reason=MoveReason.SPREAD,
            slices=slices("a", "b"), from_tier=DRAM, to_tier=DRAM, to_engine=EngineId("e1"), bytes_planned=2 * SIZE,
            expected_ns=2 * MS, recompute_ns=20 * MS, until_ns=START_NS + S + LIFE_NS,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "events",
    [
        [health("e2", Health.LOST)],
        [configured(peer_bytes_per_s=50_000)],
        [stored(SSD, *"ab")],
        [gauged(DRAM, used=97)],
    ],
    ids=["its engine is lost", "slower than computing", "it has them below", "no room"],
)
def test_they_do_not_where_it_makes_no_sense(events: list[Event]) -> None:
    spec = two(configured(peer_bytes_per_s=1_000_000), *events)
    spec.when(events[0] if events[0].event_kind() == "tier_measured" else gauged(DRAM))
    assert all(order.move is not Move.REPLICATE for order in spec.decisions if isinstance(order, TransferOrdered))


# What becomes of orders.


def test_a_demote_that_fails_is_tried_again_with_a_limit() -> None:
    spec = house(*asked("abcde"), stored(DRAM, *"abcde")).when(FULL).then(said(TransferOrdered, order="m1", tries=1))
    spec.when(failed("m1")).then(said(TransferOrdered, order="m2", tries=2, move=Move.DEMOTE, slices=slices("e")))
    spec.when(failed("m2")).then(said(TransferOrdered, order="m3", tries=3, move=Move.DEMOTE, slices=slices("e")))
    spec.when(failed("m3")).then_nothing()


def test_what_is_missing_of_a_failed_order_is_tried_again_with_a_limit() -> None:
    spec = warm(gauged(SSD)).when(gauged(DRAM)).then(said(TransferOrdered, order="m1", tries=1))
    spec.after(stored(DRAM, "a")).when(failed("m1", done=1))
    spec.then(said(TransferOrdered, order="m2", tries=2, slices=slices("b", "c")))
    spec.after(stored(DRAM, "b")).when(failed("m2", done=1))
    spec.then(said(TransferOrdered, order="m3", tries=3, slices=slices("c")))
    spec.when(failed("m3")).then_nothing()
    spec.when(gauged(DRAM)).then_nothing()
    later(spec, GIVE_UP_NS // S)
    spec.after(*asked("abc", 3, name="again"), at(S + GIVE_UP_NS + S, tick(3)))
    spec.when(gauged(DRAM)).then(said(TransferOrdered, order="m4", tries=1, slices=slices("c")))


@pytest.mark.parametrize("end", [TransferEnd.DONE, TransferEnd.CANCELLED, TransferEnd.NOT_NEEDED])
def test_what_did_not_fail_is_not_tried_again(end: TransferEnd) -> None:
    warm().after(gauged(DRAM)).when(answered("m1", end)).then_nothing()


def test_what_somebody_else_did_has_not_failed() -> None:
    spec = house(*asked("abcde"), stored(DRAM, *"abcde"), stored(SSD, *"abcde")).when(FULL).then(dropped("e"))
    spec.after(removed(DRAM, "e")).when(failed("m1")).then_nothing()
    state: State = spec.state
    assert (state.transfers.tally.done, state.transfers.tally.failed, state.transfers.given_up) == (1, 0, {})


def test_an_order_that_takes_too_long_is_taken_back_and_forgotten_at_last() -> None:
    spec = warm().after(gauged(DRAM))
    assert later(spec, LIFE_NS // S) == [back("m1", CancelReason.TOO_LATE)]
    state: State = spec.state
    assert later(spec, ANSWER_MAX_NS // S - 1) == []
    assert list(state.transfers.open) == ["m1"]
    assert later(spec, 1) == []
    assert state.transfers.open == {}
    assert (state.transfers.tally.unanswered, state.transfers.tally.failed) == (1, 1)


@pytest.mark.parametrize("end", [EngineRemoved(engine_id=EngineId("e1")), health("e1", Health.LOST), engine("e1")])
def test_orders_of_an_engine_that_is_gone_are_taken_back_at_once(end: Event) -> None:
    spec = warm().after(gauged(DRAM)).when(end).then(back("m1", CancelReason.ENGINE_GONE))
    assert spec.state.transfers.open == {}
    spec.when(failed("m1")).then_nothing()


def test_orders_out_of_a_tier_of_which_nothing_is_known_any_more_are_taken_back() -> None:
    spec = warm().after(gauged(DRAM)).when(cleared(HBM)).then_nothing()
    spec.when(cleared(DRAM)).then_nothing()
    spec.when(cleared(SSD)).then(back("m1", CancelReason.ENGINE_GONE))
    spec.after(stored(SSD, *"abc")).when(gauged(DRAM)).then(said(TransferOrdered, order="m2", slices=slices(*"abc")))
    late = warm().after(gauged(DRAM))
    later(late, LIFE_NS // S)
    late.when(cleared(SSD)).then_nothing()
    assert late.state.transfers.open == {}


def test_switched_off_what_is_open_is_taken_back_once() -> None:
    spec = warm().after(gauged(DRAM), configured(enabled="off"))
    spec.when(at(2 * S, tick(2))).then(back("m1", CancelReason.NOT_NEEDED))
    spec.when(at(3 * S, tick(3))).then_nothing()


def test_a_link_is_suspended_tried_with_one_slice_and_used_again() -> None:
    spec = warm(configured(tries_max=1, order_slices_max=1))
    spec.after(*(one for n in range(FAILED_MIN) for one in asked(chr(300 + n), 3)))
    spec.after(stored(SSD, *map(chr, range(300, 300 + FAILED_MIN))), at(2 * S, tick(2)))
    for n in range(1, FAILED_MIN):
        spec.after(gauged(DRAM)).when(failed(f"m{n}")).then_nothing()
    spec.after(gauged(DRAM)).when(failed(f"m{FAILED_MIN}")).then(
        LinkSuspended(engine_id=EngineId("e1"), from_tier=SSD, until_ns=START_NS + 2 * S + SUSPEND_NS,
                      failed=FAILED_MIN, of=FAILED_MIN)
    )  # fmt: skip
    spec.when(gauged(DRAM)).then_nothing()
    assert later(spec, SUSPEND_NS // S) == []
    spec.when(gauged(DRAM)).then(said(TransferOrdered, order="m5"))
    spec.when(gauged(DRAM)).then_nothing()
    spec.when(failed("m5")).then(said(LinkSuspended, until_ns=START_NS + 2 * S + 3 * SUSPEND_NS, failed=1, of=1))
    assert later(spec, 2 * SUSPEND_NS // S) == []
    spec.when(gauged(DRAM)).then(said(TransferOrdered, order="m6"))
    spec.when(answered("m6", done=1)).then(said(LinkSuspended, until_ns=0))


def test_orders_on_a_suspended_link_are_taken_back() -> None:
    spec = warm(configured(tries_max=1, order_slices_max=1, open_max=9))
    spec.after(*(one for n in range(9) for one in asked(chr(300 + n), 3)), stored(SSD, *map(chr, range(300, 309))))
    spec.after(at(2 * S, tick(2)), *[gauged(DRAM)] * 5)
    spec.after(*(failed(f"m{n}") for n in range(1, FAILED_MIN)))
    spec.when(failed(f"m{FAILED_MIN}")).then(said(LinkSuspended), back("m5", CancelReason.LINK_SUSPENDED))


def test_at_most_so_many_orders_are_open() -> None:
    spec = warm(configured(order_slices_max=1, open_max=2)).after(gauged(DRAM), gauged(DRAM))
    spec.when(gauged(DRAM)).then_nothing()
    spec.after(answered("m1", done=1), stored(DRAM, "a")).when(gauged(DRAM)).then(said(TransferOrdered, order="m3"))


def test_what_prefetch_has_on_its_way_is_not_ordered() -> None:
    theirs = TransferOrdered(
        order="p1", engine_id=EngineId("e1"), move=Move.PROMOTE, reason=MoveReason.HOT_PREFIX, slices=slices("a"),
        from_tier=SSD, to_tier=DRAM, bytes_planned=SIZE, until_ns=START_NS + 9 * S,
    )  # fmt: skip
    spec = warm(theirs).when(gauged(DRAM)).then(said(TransferOrdered, order="m1", slices=slices("b", "c")))
    assert spec.state.transfers.count == 1


def test_what_it_knows_can_be_asked() -> None:
    spec = warm().after(gauged(DRAM), gauged(Tier.SSD, used=9, room=10, queue=4))
    told = spec.explained(gauged(DRAM))
    [one], moved = told["engines"], told["transfers"]
    assert (told["hot"], one["tiers"]["ssd"]["used_ppm"]) == (["a", "b", "c"], 900_000)
    assert [(order["order"], order["move"]) for order in moved["open"]] == [("m1", "promote")]


def test_a_bad_setting_names_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"migration.high_ppm = 0 \(allowed: a whole number from 1 to 1000000\)"):
        house(configured(high_ppm=0))


def test_of_requests_nothing_is_kept_where_no_engine_reports() -> None:
    spec = given(MIGRATION, at(0, tick(0)), engine("e1"), arrived("a", 30, slices=slices(*"abc")))
    assert (spec.state.book.known, spec.state.needs.open) == ({}, {})
