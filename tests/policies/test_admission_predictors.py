"""Admission goes by the predictor of output length that is set, says who answered, and is stopped by none."""

from typing import Any

import pytest

from events.base import Event, RequestId
from events.decisions import MiscoverageNoticed, RequestAdmitted
from events.request import OutputPredicted
from policies.admission import ADMISSION
from policies.predictors.base import Interval
from policies.predictors.output_length import KINDS, Outputs
from policies.predictors.output_question import Question
from tests.policies.words import MS, S, arrived, engine, finished, settings, tick
from tests.spec import At, Spec, at, given, said


def house(*more: Event, **changes: Any) -> Spec:
    """One engine of 10,000 tokens, all of them promised."""
    return given(ADMISSION, engine("e1", blocks=1_000), tick(0), settings(safety_ppm=0, **changes), *more)


def served(count: int, out: int, *, first: int = 0, cap: int = 0) -> list[Event | At]:
    """Requests that come and end one after another, each with `out` output tokens."""
    spoken: list[Event | At] = []
    for number in range(first, first + count):
        name, ms = f"s{number}", (number + 1) * MS
        spoken += [at(ms, arrived(name, out=cap, now=ms)), at(ms, finished(name, out=out))]
    return spoken


def admitted(predictor: str, **fields: Any) -> Any:
    return said(RequestAdmitted, predictor=predictor, **fields)


def failing(_outputs: Outputs, _question: Question) -> Interval:
    raise RuntimeError("broken")


@pytest.mark.parametrize("kind", ["quantile", "moving_average"])
def test_what_was_learned_is_what_is_promised(kind: str) -> None:
    spec = house(output_predictor=kind).after(*served(40, 10))
    spec.when(at(S, arrived("r", out=500, now=S))).then(
        admitted(kind, output_tokens_predicted=10, output_tokens_low=10, kv_cache_tokens=110)
    )
    row = spec.explained(at(2 * S, arrived("x", now=2 * S)).event)["requests"][0]
    assert row["predictors"][kind]["coverage_ppm"] > 900_000
    assert row["predictors"][kind]["failures"] == 0


def test_the_constant_goes_by_the_cap_whatever_was_learned() -> None:
    house(output_predictor="constant").after(*served(40, 10)).when(at(S, arrived("r", out=500, now=S))).then(
        admitted("constant", output_tokens_predicted=500, output_tokens_low=1)
    )


@pytest.mark.parametrize(
    "broken",
    [failing, lambda *_: Interval(0, 0, 0), lambda *_: Interval(1, 1, 10**9), lambda *_: (1.0, 2.0, 3.0), lambda *_: 7],
)
def test_a_predictor_that_fails_never_stops_admission(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    monkeypatch.setitem(KINDS, "quantile", broken)
    spec = house()
    for number in range(3):
        name, ms = f"r{number}", number * MS
        spec.when(at(ms, arrived(name, out=80, now=ms))).then(admitted("constant", output_tokens_predicted=80))
        spec.when(at(ms, finished(name, out=5))).then_nothing()
    assert spec.state.outputs.calibrations["quantile"].failures == 3
    row = spec.explained(at(S, arrived("x", now=S)).event)["requests"][0]
    assert row["predictors"]["quantile"]["failures"] == 3


def test_one_that_fails_while_an_answer_runs_on_does_not_stop_it_either(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.policies.words import beat, first_token

    spec = house().after(*served(40, 10)).when(at(S, arrived("r", out=500, now=S)))
    spec.then(admitted("quantile", output_tokens_predicted=10))
    monkeypatch.setitem(KINDS, "quantile", failing)
    spec.after(at(S + 9 * MS, first_token("r")))
    spec.when(at(S + 99 * MS, beat(r=20))).then_nothing()
    assert spec.state.accounts["e1"].residents["r"].output_reserved == 500


def test_a_word_from_outside_comes_before_the_request_and_is_used_up_by_it() -> None:
    spec = house(output_predictor="external").after(*served(40, 10))
    outside = OutputPredicted(request_id=RequestId("r"), source="m", output_tokens_low=30, output_tokens_high=90)
    spec.after(at(S, outside)).when(at(S, arrived("r", out=500, now=S))).then(
        admitted("external", output_tokens_predicted=90, output_tokens_low=30)
    )
    assert not spec.state.outputs.external.said
    spec.when(at(S, arrived("other", out=500, now=S))).then(admitted("quantile", output_tokens_predicted=10))


def test_a_target_that_is_set_live_is_the_one_that_is_answered() -> None:
    spec = house().after(*served(40, 10), *served(4, 300, first=40))
    spec.when(at(S, arrived("a", out=2_000, now=S))).then(admitted("quantile", output_tokens_predicted=10))
    spec.after(at(S, settings(output_quantile_ppm=950_000)))
    spec.when(at(S, arrived("b", out=2_000, now=S)))
    (decision,) = spec.decisions
    assert isinstance(decision, RequestAdmitted)
    assert 256 < decision.output_tokens_predicted <= 319


def test_a_predictor_that_does_not_keep_its_word_is_told_once() -> None:
    spec = house(output_predictor="constant", output_tokens_default=20).after(*served(120, 10))
    said_of = []
    for number in range(120, 240):
        spec.after(*served(1, 40, first=number))
        said_of += [event for event in spec.decisions if isinstance(event, MiscoverageNoticed)]
    assert [(event.predictor, event.target_ppm, event.cleared) for event in said_of] == [("constant", 800_000, False)]
    assert said_of[0].coverage_ppm < 740_000
