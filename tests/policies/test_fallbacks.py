"""What admission goes by when it does not know: every fallback, one line each."""

from typing import Any

import pytest

from events.base import EngineId, RequestId
from events.decisions import DeferReason, WakeAsked
from events.request import OutputPredicted, RequestArrived
from policies.predictors import output_length
from policies.predictors.base import Interval
from policies.predictors.output_length import Outputs
from policies.predictors.output_question import Question
from tests.policies.house import admitted, deferred, house
from tests.policies.words import S, arrived, beat, finished, first_token, measured, settings, tick
from tests.spec import Spec, at, said

QUANTILE = settings(output_predictor="quantile", output_tokens_default=70)


def history(out: int, tenant: str = "t") -> list[Any]:
    """Enough answers of that length to go by."""
    return [
        event
        for n in range(20)
        for event in (arrived(f"h{n}", 10, out=400, tenant=tenant), first_token(f"h{n}"), finished(f"h{n}", out=out))
    ]


LENGTHS: dict[str, tuple[tuple[Any, ...], RequestArrived, int, str]] = {
    # what was said before, what arrives, what is promised for its answer, who said so
    "known": (tuple(history(15)), arrived("r", 10, out=400), 15, "quantile"),
    "unknown: the client's cap": ((), arrived("r", 10, out=400), 400, "constant"),
    "unknown, and no cap: the default": ((), arrived("r", 10, out=0), 70, "constant"),
    "nobody outside said anything: the history": (
        (*history(15), settings(output_predictor="external")), arrived("r", 10, out=400), 15, "quantile",
    ),
    "nonsense from outside: the history": (
        (
            *history(15),
            settings(output_predictor="external"),
            OutputPredicted(
                request_id=RequestId("r"), source="model", output_tokens_low=9, output_tokens_high=-1
            ),
        ),
        arrived("r", 10, out=400), 15, "quantile",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "request_", "promised", "predictor"), LENGTHS.values(), ids=LENGTHS)
def test_the_length_of_an_answer(
    before: tuple[Any, ...], request_: RequestArrived, promised: int, predictor: str
) -> None:
    house(QUANTILE, *before).when(request_).then(admitted("r", output_tokens_predicted=promised, predictor=predictor))


def _raises(outputs: Outputs, question: Question) -> Interval | None:
    raise ZeroDivisionError(outputs, question)


def _no_numbers(_outputs: Outputs, _question: Question) -> Any:
    return Interval(1.5, 2.5, 3.5)  # type: ignore[arg-type]


def _backwards(_outputs: Outputs, _question: Question) -> Interval:
    return Interval(9, 5, 1)


def _too_much(_outputs: Outputs, _question: Question) -> Interval:
    return Interval(1, 2, 10**30)


@pytest.mark.parametrize("predict", [_raises, _no_numbers, _backwards, _too_much], ids=lambda one: one.__name__[1:])
def test_a_predictor_that_fails_is_replaced_by_the_constant_one_and_counted(
    monkeypatch: pytest.MonkeyPatch, predict: Any
) -> None:
    monkeypatch.setitem(output_length.KINDS, "quantile", predict)
    spec = house(QUANTILE).when(arrived("r", 10, out=400))
    spec.then(admitted("r", output_tokens_predicted=400, predictor="constant"))
    assert spec.state.outputs.calibrations["quantile"].failures == 1


def silent(spec: Spec, until_s: int) -> Spec:
    """Nothing is measured for so long."""
    return spec.after(*(at(n * S, event) for n in range(1, until_s + 1) for event in (beat(), tick(n))))


def test_stale_telemetry_is_taken_as_last_known_and_what_was_promised_since_counts() -> None:
    """40 of 100 blocks are somebody else's; nobody has said so for ten seconds, and 30 were promised meanwhile."""
    spec = silent(house(measured(used_ppm=400_000), measured(used_ppm=400_000), arrived("a", 200, out=100)), 10)
    spec.when(arrived("b", 250, out=100, now=10 * S)).then(deferred("b", DeferReason.KV_BUDGET), said(WakeAsked))
    spec.when(arrived("c", 200, out=50, now=10 * S)).then(admitted("c"))


def test_what_an_engine_never_told_is_not_held_against_it() -> None:
    spec = silent(house(), 10)
    spec.when(arrived("a", 900, out=100, now=10 * S)).then(admitted("a", engine_id=EngineId("e1")))
