"""Admission: engines and holders that fail."""

from typing import Any

import pytest

from events.base import EngineId, HolderId, RequestId
from events.decisions import (
    HolderLost,
    RejectReason,
)
from events.engine import EngineRemoved, Health
from events.request import AbortReason, HolderStopped
from tests.policies.house import BOTH, admitted, full, house, rejected
from tests.policies.words import (
    S,
    aborted,
    arrived,
    beat,
    engine,
    finished,
    first_token,
    health,
    measured,
    tick,
)
from tests.spec import at, said


def test_a_request_that_lost_its_engine_goes_to_another() -> None:
    spec = house(arrived("a", 100), engines=BOTH)
    spec.after(aborted("a", AbortReason.ENGINE_LOST, engine_id=EngineId("e1"), final=False))
    spec.when(arrived("a", 100, attempt=1)).then(admitted("a", "e2", attempt=1))


def test_an_engine_that_a_holder_lost_gets_nothing_until_something_is_heard_of_it() -> None:
    spec = house(arrived("a", 100), aborted("a", AbortReason.ENGINE_LOST, engine_id=EngineId("e1"), final=False))
    spec.when(arrived("b", 100)).then(rejected("b", RejectReason.NO_ENGINE))
    spec.when(measured()).then_nothing()
    spec.when(arrived("a", 100, attempt=1)).then(admitted("a", "e1"))


def test_a_lost_engine_keeps_its_requests_in_the_books_until_they_end() -> None:
    spec = house(arrived("a", 100), health("e1", Health.LOST), engines=BOTH)
    assert spec.state.accounts["e1"].load.seqs == 1
    spec.after(aborted("a", AbortReason.ENGINE_LOST))
    assert spec.state.accounts["e1"].load.seqs == 0


def test_a_removed_engine_is_forgotten_with_its_last_request() -> None:
    spec = house(arrived("a", 100), EngineRemoved(engine_id=EngineId("e1")), engines=BOTH)
    assert list(spec.state.accounts) == ["e1", "e2"]
    spec.after(finished("a"))
    assert list(spec.state.accounts) == ["e2"]


def test_an_engine_that_is_described_anew_keeps_what_runs_there() -> None:
    spec = house(arrived("a", 100, out=100), engine("e1", blocks=200))
    assert spec.state.accounts["e1"].load.blocks_final == 20
    spec.after(finished("a"))
    assert spec.state.accounts["e1"].load.blocks_final == 0


def test_a_silent_holder_is_lost_with_all_it_held() -> None:
    spec = house(arrived("b", 500, slack=60 * S), decoding=arrived("a", 500, out=400))
    spec.after(*(at(n * S, tick(n)) for n in range(1, 5)))
    spec.when(at(5 * S, tick(5))).then(HolderLost(holder=HolderId("h"), requests=(RequestId("a"), RequestId("b"))))
    assert spec.state.accounts["e1"].load.blocks_final == 0
    spec.when(at(6 * S, tick(6))).then_nothing()


@pytest.mark.parametrize(
    "word", [beat(), first_token("a"), arrived("z", 10, now=3 * S)], ids=["beat", "token", "arrival"]
)
def test_whatever_a_holder_says_is_a_sign_of_life(word: Any) -> None:
    spec = house(arrived("a", 100), *(at(n * S, tick(n)) for n in range(1, 4)), at(3 * S, word))
    spec.after(*(at(n * S, tick(n)) for n in range(4, 8))).when(at(8 * S, tick(8))).then(said(HolderLost))


def test_an_outage_of_the_log_loses_no_holder() -> None:
    spec = house(beat(), arrived("a", 100))
    for n in range(1, 4):  # Ticks that each bring the most that a tick may: nobody could speak in between.
        spec.when(at(n * 2 * S, tick(n))).then_nothing()
    spec.when(at(6 * S, beat())).then_nothing()


def test_a_holder_that_starts_anew_has_lost_what_it_held() -> None:
    spec = house(beat(epoch="1"), arrived("a", 100), beat(epoch="1"))
    spec.when(beat(epoch="2")).then(HolderLost(holder=HolderId("h"), requests=(RequestId("a"),)))
    spec.when(beat(epoch="2")).then_nothing()
    spec.when(beat(epoch="3")).then_nothing()  # It holds nothing: there is nothing to lose.
    assert spec.state.holders.heard["h"].epoch == "3"


def test_a_holder_that_leaves_in_good_order_frees_what_it_held() -> None:
    spec = full(arrived("c", 490, out=10, slack=10 * S, holder="other"))
    spec.when(HolderStopped(holder=HolderId("h"))).then(admitted("c"))
