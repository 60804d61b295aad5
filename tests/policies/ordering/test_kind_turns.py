"""LLM and embedding requests take turns by urgency, and neither starves the other."""

from hypothesis import given
from hypothesis import strategies as some

from events.base import RequestKind
from events.decisions import ShareReason, SharesSet
from policies.ordering import Ordering, decided
from policies.ordering.kind_turns import SCALE, KindTurns, tag, weigh, went
from tests.policies.words import arrived

LLM, EMBEDDING = RequestKind.LLM, RequestKind.EMBEDDING


def weighed(llm: int, embedding: int) -> KindTurns:
    turns = KindTurns()
    event = SharesSet(
        engine_id="", llm_ppm=500_000, embedding_ppm=500_000, reason=ShareReason.ARMED, llm_urgency=llm,
        embedding_urgency=embedding,
    )  # type: ignore[arg-type]  # fmt: skip
    weigh(turns, event)
    return turns


def play(turns: KindTurns, rounds: int, tokens: dict[RequestKind, int]) -> dict[RequestKind, int]:
    """Both kinds wait all the time; what went of each."""
    gone = {LLM: 0, EMBEDDING: 0}
    for _ in range(rounds):
        kind = min((LLM, EMBEDDING), key=lambda one: tag(turns, one))
        went(turns, kind, tokens[kind])
        gone[kind] += tokens[kind]
    return gone


def test_shares_follow_the_urgency() -> None:
    gone = play(weighed(3, 1), 4_000, {LLM: 100, EMBEDDING: 100})
    assert gone == {LLM: 300_000, EMBEDDING: 100_000}


def test_without_urgency_the_shares_are_equal() -> None:
    gone = play(KindTurns(), 1_000, {LLM: 900, EMBEDDING: 100})
    assert abs(gone[LLM] - gone[EMBEDDING]) <= 900


def test_a_kind_that_did_not_wait_saves_nothing_up() -> None:
    turns = KindTurns()
    for _ in range(100):
        went(turns, LLM, 100)
    assert play(turns, 10, {LLM: 100, EMBEDDING: 100}) == {LLM: 500, EMBEDDING: 500}


@given(some.integers(0, 10**6), some.integers(0, 10**6), some.integers(1, 5_000), some.integers(1, 5_000))
def test_neither_kind_waits_for_more_than_its_turn(a: int, b: int, llm: int, embedding: int) -> None:
    turns, tokens = weighed(a, b), {LLM: llm, EMBEDDING: embedding}
    weights = {LLM: max(1, a), EMBEDDING: max(1, b)}
    passed = {LLM: 0, EMBEDDING: 0}
    for _ in range(200):
        kind, other = sorted((LLM, EMBEDDING), key=lambda one: tag(turns, one))
        went(turns, kind, tokens[kind])
        passed[kind], passed[other] = 0, passed[other] + tokens[kind]
        assert passed[other] <= tokens[other] * weights[kind] // weights[other] + 2 * tokens[kind] + weights[kind]


def test_who_is_refused_takes_no_turn() -> None:
    known = Ordering()
    decided(known, arrived("a"), served=True, tokens=100)
    decided(known, arrived("b"), served=False)
    assert tag(known.turns, LLM) == 100 * SCALE
