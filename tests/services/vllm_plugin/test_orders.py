"""An order is answered exactly once, whoever ends it, and what is not worth beginning never begins."""

import threading
import time
from typing import Any

from events.base import EngineId, Event, SliceId
from events.decisions import CancelReason, Move, MoveReason, TransferCancelled, TransferOrdered
from events.slice import Tier, TransferEnd, TransferFinished
from services.vllm_plugin.orders import ANSWERED_MAX, ORDERS_MAX, Order, Orders


def ordered(name: str, **about: Any) -> TransferOrdered:
    known: dict[str, Any] = {
        "engine_id": EngineId("e1"), "move": Move.DEMOTE, "reason": MoveReason.PRESSURE, "from_tier": Tier.DRAM,
    }  # fmt: skip
    return TransferOrdered(order=name, slices=(SliceId("a"), SliceId("b")), **(known | about))


def cancelled(name: str) -> TransferCancelled:
    return TransferCancelled(order=name, engine_id=EngineId("e1"), reason=CancelReason.NOT_NEEDED)


class Told:
    """Orders, and what was answered: (order, end, why)."""

    def __init__(self) -> None:
        self.facts: list[TransferFinished] = []
        self.orders = Orders(self._take)

    def _take(self, fact: Event) -> None:
        assert isinstance(fact, TransferFinished)
        self.facts.append(fact)

    @property
    def ends(self) -> list[tuple[str, TransferEnd, str]]:
        return [(fact.order, fact.end, fact.why) for fact in self.facts]


def test_order_is_taken_up_once_and_answered_once() -> None:
    told = Told()
    told.orders.give(ordered("m1", tries=2))
    [order] = told.orders.take()

    told.orders.finish(order, TransferEnd.PARTLY, slices_done=1, bytes_moved=7, why="1 failed")
    told.orders.finish(order, TransferEnd.DONE, slices_done=2)

    [fact] = told.facts
    assert (fact.order, fact.end, fact.slices_done, fact.bytes_moved) == ("m1", TransferEnd.PARTLY, 1, 7)
    assert (fact.tries, fact.why, fact.engine_id) == (2, "1 failed", EngineId("e1"))
    assert fact.took_ns > 0
    assert told.orders.take() == []


def test_orders_are_taken_up_in_the_order_of_the_log() -> None:
    told = Told()
    for name in ("m1", "p1", "m2"):
        told.orders.give(ordered(name))

    assert told.orders.waiting
    assert [order.said.order for order in told.orders.take()] == ["m1", "p1", "m2"]
    assert not told.orders.waiting


def test_order_that_ended_before_it_began_keeps_no_engine_stepping() -> None:
    told = Told()
    refused = told.orders.give(ordered("m1"))
    assert refused
    told.orders.give(ordered("m2"))

    told.orders.finish(refused, TransferEnd.FAILED, why="this engine has no tiers")
    told.orders.cancel(cancelled("m2"))

    assert not told.orders.waiting


def test_order_that_is_read_again_is_not_carried_out_again() -> None:
    told = Told()
    told.orders.give(ordered("m1"))
    [order] = told.orders.take()

    assert told.orders.give(ordered("m1")) is None
    told.orders.finish(order, TransferEnd.DONE, slices_done=2)
    assert told.orders.give(ordered("m1")) is None

    assert told.orders.take() == []
    assert told.ends == [("m1", TransferEnd.DONE, "")]


def test_order_that_is_cancelled_before_it_begins_never_begins() -> None:
    told = Told()
    told.orders.give(ordered("m1"))
    told.orders.give(ordered("m2"))

    told.orders.cancel(cancelled("m1"))

    assert told.ends == [("m1", TransferEnd.CANCELLED, "not_needed")]
    assert [order.said.order for order in told.orders.take()] == ["m2"]


def test_order_that_is_cancelled_under_way_is_its_carriers_to_end() -> None:
    told = Told()
    told.orders.give(ordered("m1"))
    [order] = told.orders.take()

    told.orders.cancel(cancelled("m1"))

    assert order.cancelled
    assert told.ends == []
    told.orders.finish(order, TransferEnd.CANCELLED, slices_done=1)
    assert told.ends == [("m1", TransferEnd.CANCELLED, "")]


def test_cancelling_what_nobody_knows_says_nothing() -> None:
    told = Told()

    told.orders.cancel(cancelled("m9"))

    assert told.ends == []


def test_order_whose_time_has_passed_is_answered_and_not_begun() -> None:
    told = Told()
    told.orders.give(ordered("m1"), until_ns=time.monotonic_ns() - 1)
    told.orders.give(ordered("m2"), until_ns=time.monotonic_ns() + 10**12)

    assert [order.said.order for order in told.orders.take()] == ["m2"]
    assert told.ends == [("m1", TransferEnd.NOT_NEEDED, "too late")]


def test_more_orders_than_can_wait_are_refused_at_once() -> None:
    told = Told()
    for number in range(ORDERS_MAX):
        assert told.orders.give(ordered(f"m{number}")) is not None

    assert told.orders.give(ordered("one more")) is None

    assert told.ends == [("one more", TransferEnd.FAILED, "too many orders at once")]
    assert len(told.orders.take()) == ORDERS_MAX
    assert told.orders.refused == 1


def test_all_that_is_open_fails_when_the_engine_ends() -> None:
    told = Told()
    told.orders.give(ordered("m1"))
    [begun] = told.orders.take()
    told.orders.give(ordered("m2"))

    told.orders.fail_all("the engine ends")
    told.orders.finish(begun, TransferEnd.DONE, slices_done=2)

    assert told.ends == [("m1", TransferEnd.FAILED, "the engine ends"), ("m2", TransferEnd.FAILED, "the engine ends")]
    assert told.orders.take() == []


def test_memory_of_answered_orders_is_bounded() -> None:
    told = Told()
    for number in range(ANSWERED_MAX + 10):
        told.orders.give(ordered(f"m{number}"))
        [order] = told.orders.take()
        told.orders.finish(order, TransferEnd.DONE)

    assert len(told.orders._answered) == ANSWERED_MAX


def test_two_threads_answer_each_order_once() -> None:
    told = Told()
    for number in range(500):
        told.orders.give(ordered(f"m{number}"))
    taken = told.orders.take()

    def finish(some: list[Order]) -> None:
        for order in some:
            told.orders.finish(order, TransferEnd.DONE)

    threads = [threading.Thread(target=finish, args=(some,)) for some in (taken, taken[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(fact.order for fact in told.facts) == sorted(f"m{number}" for number in range(500))
