"""Shares: how an engine's memory is divided between LLM requests and embedding jobs, and who waits for that."""

import pytest

from events.decisions import DeferReason, ShareReason, WakeAsked
from events.request import RequestArrived
from tests.policies.house import admitted, deferred, house
from tests.policies.words import S, arrived, embedding, engine, finished, settings, shares
from tests.spec import Spec, said

MIXED = (engine("e1", embedding=True, batch_tokens_max=1_000),)
FREE = settings(backlog_max_ns=0, tpot_margin_ppm=0)


def mixed(*events: object) -> Spec:
    """An engine for both kinds, of 100 blocks."""
    return house(FREE, *events, engines=MIXED)


@pytest.mark.parametrize(
    ("llm_ppm", "request_", "goes"),
    [
        (500_000, arrived("r", 400, out=50), True),
        (500_000, arrived("r", 491, out=50), False),
        (500_000, embedding("r", 490), True),
        (500_000, embedding("r", 491), False),
        (1_000_000, arrived("r", 900, out=50), True),
        (1_000_000, embedding("r", 10), False),
        (0, arrived("r", 10, out=10), False),
        (0, embedding("r", 900), True),
    ],
    ids=["llm within", "llm above", "embedding within", "embedding above", "all llm", "no embedding", "no llm", "all"],
)
def test_a_share_caps_what_a_kind_may_hold(llm_ppm: int, request_: RequestArrived, goes: bool) -> None:
    """A block of each kind is held already."""
    spec = mixed(arrived("one", 5, out=5), embedding("other", 10), shares(llm_ppm)).when(request_)
    spec.then(*((admitted("r"),) if goes else (deferred("r", DeferReason.SHARE), said(WakeAsked))))


def test_the_first_of_its_kind_may_be_larger_than_the_share() -> None:
    mixed(shares(100_000)).when(arrived("r", 500, out=10)).then(admitted("r"))
    mixed(shares(900_000)).when(embedding("r", 500)).then(admitted("r"))
    mixed(shares(0)).when(arrived("r", 500)).then(deferred("r", DeferReason.SHARE), said(WakeAsked))


def test_a_share_of_less_than_a_block_lets_one_after_the_other_go() -> None:
    """Rounded down to nothing it would starve its kind, though somebody gave it a share."""
    spec = mixed(shares(1)).when(arrived("a", 300, out=10)).then(admitted("a"))
    spec.when(arrived("b", 300, out=10)).then(deferred("b", DeferReason.SHARE), said(WakeAsked))
    spec.when(finished("a")).then(admitted("b"))
    mixed(shares(999_999)).when(embedding("r", 500)).then(admitted("r"))


def test_the_share_counts_all_that_its_kind_holds_and_nothing_else() -> None:
    spec = mixed(shares(500_000), arrived("a", 300, out=50))
    spec.when(embedding("vector", 300)).then(admitted("vector"))
    spec.when(arrived("b", 200, out=50)).then(deferred("b", DeferReason.SHARE), said(WakeAsked))
    spec.when(finished("vector")).then_nothing()
    spec.when(finished("a")).then(admitted("b"))


def test_without_shares_there_is_no_cap() -> None:
    mixed().when(embedding("r", 1_000)).then(admitted("r"))
    mixed().when(arrived("r", 900, out=100)).then(admitted("r"))


def test_what_embedding_jobs_hold_is_not_promised_to_llm_requests() -> None:
    """The whole of it until they end: they do not shrink while an answer grows."""
    spec = mixed(embedding("vector", 400))
    spec.when(arrived("a", 400, out=201)).then(deferred("a", DeferReason.KV_BUDGET), said(WakeAsked))
    spec.when(arrived("b", 300, out=200)).then(admitted("b"))


def test_whoever_waits_goes_when_the_share_grows_or_is_lifted() -> None:
    waits = shares(500_000), embedding("a", 10), embedding("vector", 600, slack=9 * S)
    spec = mixed(*waits)
    spec.when(shares(400_000)).then_nothing()
    spec.when(shares(390_000)).then(admitted("vector"))
    mixed(*waits).when(shares(500_000, reason=ShareReason.LIFTED)).then(admitted("vector"))


def test_a_smaller_share_takes_nothing_back() -> None:
    spec = mixed(arrived("a", 500, out=100))
    spec.when(shares(100_000)).then_nothing()
    assert "a" in spec.state.running


def test_the_pools_shares_hold_where_an_engine_has_none_of_its_own() -> None:
    spec = mixed(shares(900_000), shares(200_000, ""), engine("e2", embedding=True), shares(300_000, "nowhere"))
    assert [one.llm_ppm for one in spec.state.accounts.values()] == [900_000, 200_000]
    spec.after(shares(0, reason=ShareReason.LIFTED))
    assert [one.llm_ppm for one in spec.state.accounts.values()] == [200_000, 200_000]
    spec.after(shares(0, "", reason=ShareReason.LIFTED))
    assert [one.llm_ppm for one in spec.state.accounts.values()] == [-1, -1]


def test_an_engine_for_one_kind_is_not_divided() -> None:
    spec = house(shares(200_000, ""), shares(300_000), engine("e2", llm=False, embedding=True))
    assert [one.llm_ppm for one in spec.state.accounts.values()] == [-1, -1]


def test_an_answer_is_promised_no_more_than_its_kinds_share() -> None:
    mixed(shares(500_000)).when(arrived("r", 440, out=500)).then(admitted("r", output_tokens_predicted=60))
