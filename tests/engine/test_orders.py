"""Orders about slices on a real engine: decided in the log, carried out once, answered once, and made again alike."""

import asyncio
import random

from events.base import SliceId
from events.decisions import Move, TransferOrdered
from events.engine import EngineMeasured
from events.slice import (
    SlicesCleared,
    SlicesHit,
    SlicesRemoved,
    SlicesStored,
    Tier,
    TierMeasured,
    TransferFinished,
)
from kvstore.fingerprint import fingerprints, salted_key
from tests.engine.steered import ENGINE, Steered

ANSWER_TOKENS = 4
SLICE_TOKENS = 256


def prompt(seed: int, *, slices: int = 4) -> list[int]:
    chance = random.Random(1_000 + seed)
    return [chance.randrange(2, 500) for _ in range(slices * SLICE_TOKENS + 20)]


def names(tokens: list[int]) -> tuple[SliceId, ...]:
    return fingerprints(tokens, key=salted_key(""))


async def test_at_its_start_the_agent_says_that_nothing_is_known_any_more(steered_engine: Steered) -> None:
    cleared = await steered_engine.house.until(SlicesCleared, lambda event: event.reason == "started", count=3)

    assert {event.tier for event in cleared} == set(Tier)
    assert {event.engine_id for event in cleared} == {ENGINE}


async def test_what_the_device_and_dram_hold_stands_in_the_log_by_its_names(steered_engine: Steered) -> None:
    tokens = prompt(0)
    await asyncio.to_thread(steered_engine.ask, tokens, tokens=ANSWER_TOKENS)

    for tier in (Tier.HBM, Tier.DRAM):
        wanted = set(names(tokens))

        def holds(event: SlicesStored, tier: Tier = tier, wanted: set[SliceId] = wanted) -> bool:
            if event.tier is tier:
                wanted -= set(event.slices)
            return not wanted

        await steered_engine.house.until(SlicesStored, holds)


async def test_what_leaves_the_device_is_said_to_be_gone(steered_engine: Steered) -> None:
    first = prompt(10)
    await asyncio.to_thread(steered_engine.ask, first, tokens=ANSWER_TOKENS)
    for seed in range(11, 15):  # More than the device holds.
        await asyncio.to_thread(steered_engine.ask, prompt(seed), tokens=ANSWER_TOKENS)

    await steered_engine.house.until(
        SlicesRemoved, lambda event: event.tier is Tier.HBM and bool(set(names(first)) & set(event.slices))
    )


async def test_hits_are_said_of_the_tier_that_they_came_from(steered_engine: Steered) -> None:
    tokens = prompt(20)
    hints = {"request_id": "again", "slices": list(names(tokens))}
    await asyncio.to_thread(steered_engine.ask, tokens, tokens=ANSWER_TOKENS, hints=hints | {"request_id": "once"})
    await asyncio.to_thread(steered_engine.ask, tokens, tokens=ANSWER_TOKENS, hints=hints)

    [hit, *_] = await steered_engine.house.until(
        SlicesHit, lambda event: event.tier is Tier.HBM and event.slices[:1] == names(tokens)[:1]
    )
    assert hit.slices == names(tokens)


async def test_engine_is_measured_with_the_directive_that_it_goes_by(steered_engine: Steered) -> None:
    [measured, *_] = await steered_engine.house.until(EngineMeasured, lambda event: event.directive_version > 0)

    assert measured.engine_id == ENGINE
    [device, *_] = await steered_engine.house.until(
        TierMeasured, lambda event: event.tier is Tier.HBM and event.directive_version > 0
    )
    assert 0 < device.bytes_used <= device.bytes_max


async def test_every_order_has_a_cause_is_answered_once_and_follows_from_the_log(steered_engine: Steered) -> None:
    # DRAM is half full with five of these, and what is on the SSD too is dropped from it.
    for seed in range(30, 38):
        await asyncio.to_thread(steered_engine.ask, prompt(seed), tokens=ANSWER_TOKENS)
    house = steered_engine.house
    [ordered, *_] = await house.until(TransferOrdered, lambda event: event.from_tier is Tier.DRAM)
    # Partly, where a slice was in use: it is still written to the SSD.
    await house.until(TransferFinished, lambda event: event.slices_done > 0)

    report = await house.verify()
    events = await house.events()

    assert report["identical"], report
    orders = [recorded for recorded in events if isinstance(recorded.event, TransferOrdered)]
    answers = [recorded.event.order for recorded in events if isinstance(recorded.event, TransferFinished)]
    assert ordered.move in (Move.DROP, Move.DEMOTE)
    assert all(recorded.cause for recorded in orders)
    assert len(answers) == len(set(answers)), "an order is answered once"
    assert set(answers) <= {recorded.event.order for recorded in orders if isinstance(recorded.event, TransferOrdered)}


async def test_what_was_dropped_by_order_is_gone_in_the_log_and_answers_come_out_the_same(
    steered_engine: Steered,
) -> None:
    house = steered_engine.house
    events = [recorded.event for recorded in await house.events()]
    done = {event.order: event.slices_done for event in events if isinstance(event, TransferFinished)}
    [order, *_] = [
        event
        for event in events
        if isinstance(event, TransferOrdered) and done.get(event.order) and event.move is Move.DROP
    ]

    gone = {
        name
        for event in events
        if isinstance(event, SlicesRemoved) and event.tier is order.from_tier
        for name in event.slices
    }
    assert len(gone & set(order.slices)) >= done[order.order]

    tokens = prompt(30)
    before = await asyncio.to_thread(steered_engine.ask, tokens, tokens=ANSWER_TOKENS)
    steered_engine.forget()
    assert await asyncio.to_thread(steered_engine.ask, tokens, tokens=ANSWER_TOKENS) == before


async def test_idle_engine_carries_an_order_out(steered_engine: Steered) -> None:
    # All that was asked is answered; nothing but the order can make the engine core step.
    house = steered_engine.house
    events = [recorded.event for recorded in await house.events()]
    answered = {event.order for event in events if isinstance(event, TransferFinished)}
    orders = {event.order for event in events if isinstance(event, TransferOrdered)}
    assert orders

    for order in orders - answered:
        await house.until(TransferFinished, lambda event, order=order: event.order == order)  # type: ignore[misc]
