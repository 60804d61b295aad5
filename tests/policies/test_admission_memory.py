"""Admission: what fits the memory of an engine, and what waits for it."""

from events.decisions import (
    DeferReason,
    RejectReason,
    WakeAsked,
)
from tests.policies.house import admitted, deferred, house, rejected
from tests.policies.words import (
    MS,
    S,
    arrived,
    beat,
    engine,
    finished,
    first_token,
    measured,
    settings,
    tick,
)
from tests.spec import START_NS, at, said


def test_it_waits_while_the_predicted_peak_is_above_the_budget_and_goes_when_it_is_not() -> None:
    spec = house(decoding=arrived("a", 500, out=100))
    spec.when(arrived("b", 500, out=100)).then(
        deferred("b", DeferReason.KV_BUDGET, until_ns=START_NS + 950 * MS, work_ns=50 * MS), said(WakeAsked)
    )
    spec.when(finished("a")).then(admitted("b"))


def test_memory_that_one_frees_before_another_needs_it_is_promised_twice() -> None:
    # 400+100 and 400+190 are 1,090 tokens of 1,000 at full length; but the first ends when both have grown by 100.
    house(settings(tpot_margin_ppm=0), decoding=arrived("a", 400, out=100)).when(arrived("b", 390, out=190)).then(
        admitted("b")
    )


def test_a_safety_margin_of_the_blocks_is_never_promised() -> None:
    house(settings(safety_ppm=100_000)).when(arrived("r", 899, out=50)).then(admitted("r", output_tokens_predicted=1))
    house(settings(safety_ppm=100_000)).when(arrived("r", 900)).then(rejected("r", RejectReason.TOO_LONG))


def test_what_others_use_on_the_engine_counts_once_it_was_seen_twice() -> None:
    once = house(measured(used_ppm=900_000))
    once.when(arrived("r", 200)).then(admitted("r"))
    twice = house(measured(used_ppm=900_000), measured(used_ppm=950_000))
    twice.when(arrived("r", 200)).then(deferred("r", DeferReason.KV_BUDGET), said(WakeAsked))
    twice.when(measured(used_ppm=0)).then(admitted("r"))


def test_what_ours_use_is_not_taken_for_somebody_elses() -> None:
    spec = house(decoding=arrived("a", 300, out=100))
    spec.after(measured(used_ppm=340_000, running=1), measured(used_ppm=360_000, running=1))
    assert spec.state.accounts["e1"].foreign_blocks == 0


def test_promises_made_since_the_engine_was_measured_count() -> None:
    spec = house(measured(), measured(), arrived("a", 450, out=100))
    spec.when(arrived("b", 450, out=100)).then(deferred("b", DeferReason.KV_BUDGET), said(WakeAsked))


def test_a_request_that_outgrows_its_prediction_is_promised_more() -> None:
    short = [event for n in range(20) for event in (arrived(f"s{n}", 10), finished(f"s{n}", out=20))]
    spec = house(*short, arrived("a", 400, out=500), first_token("a"))
    load = spec.state.accounts["e1"].load
    assert load.blocks_final == 43, "400 + 21 tokens: 20 were seen, in a bucket that ends at 21"
    spec.when(beat(a=30)).then_nothing()
    assert load.blocks_final == 90, "nothing longer was ever seen, so the client's own cap"


def test_an_engine_that_does_not_tell_its_kv_is_not_judged_by_it() -> None:
    house(engines=(engine("e1", blocks=0),)).when(arrived("r", 1_900, out=1)).then(admitted("r"))


def test_sequences_are_bounded() -> None:
    spec = house(arrived("a", 10), engines=(engine("e1", seqs_max=1),))
    spec.when(arrived("b", 10)).then(deferred("b", DeferReason.SEQS_MAX), said(WakeAsked))


def test_a_request_that_holds_its_place_too_long_is_dropped_from_the_books() -> None:
    spec = house(settings(request_max_ns=60 * S), arrived("a", 500, out=500), first_token("a"))
    minute = [at(n * S, event) for n in range(1, 63) for event in (tick(n), beat())]
    spec.after(*minute)
    assert spec.state.accounts["e1"].load.seqs == 0
    assert not spec.state.running
