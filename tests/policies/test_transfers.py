"""The book of orders: what it remembers is bounded by named limits."""

from typing import Any

from events.base import EngineId
from events.decisions import Move, MoveReason, TransferOrdered
from events.slice import TransferEnd
from policies import transfers
from policies.migration import MIGRATION
from policies.migration_state import BROUGHT_MAX, State
from policies.transfers import GIVEN_UP_MAX, LINKS_MAX, OTHERS_MAX, Transfers
from tests.policies.tier_words import DRAM, SSD, answered
from tests.policies.words import S, slices, tick
from tests.spec import START_NS, at, given


def promote(order: str, *names: str, on: str = "e1", **more: Any) -> TransferOrdered:
    return TransferOrdered(
        order=order, engine_id=EngineId(on), move=Move.PROMOTE, reason=MoveReason.HOT, slices=slices(*names),
        from_tier=SSD, to_tier=DRAM, until_ns=START_NS + 9 * S, **more,
    )  # fmt: skip


def said(book: Transfers, event: TransferOrdered) -> None:
    transfers.ordered(book, event, START_NS, link_ns=0, share_ppm=1)


def test_orders_of_others_are_remembered_the_newest() -> None:
    book = Transfers("m")
    for number in range(OTHERS_MAX + 9):
        said(book, promote(f"p{number}", "a"))
    assert list(book.others) == [f"p{number}" for number in range(9, OTHERS_MAX + 9)]


def test_slices_that_were_given_up_are_remembered_the_newest() -> None:
    book, names = Transfers("m"), [f"s{number}" for number in range(GIVEN_UP_MAX + 9)]
    said(book, promote("m1", *names))
    transfers.finished(book, answered("m1", TransferEnd.FAILED), START_NS, tries_max=1, missing=True)
    assert list(book.given_up[EngineId("e1")]) == names[9:]


def test_links_are_bounded() -> None:
    book = Transfers("m")
    for number in range(LINKS_MAX + 9):
        said(book, promote(f"m{number}", "a", on=f"e{number}"))
    assert len(book.links) == LINKS_MAX


def test_what_prefetch_brought_is_remembered_the_newest_until_its_time() -> None:
    per_order, spec = 1_000, given(MIGRATION, at(0, tick(0)))
    for number in range(BROUGHT_MAX // per_order + 1):
        spec.after(promote(f"p{number}", *(f"s{number}.{n}" for n in range(per_order))))
    state: State = spec.state
    assert len(state.brought) == BROUGHT_MAX
    assert "s0.0" not in state.brought
    for second in range(1, 10):
        spec.after(at(second * S, tick(second)))
    assert state.brought == {}
