"""How long an answer will be: predictors by name, what is kept of their answers, and what happens when one fails.

The predictor that the settings name is asked. Where it knows nothing, or raises, or answers nonsense (not three whole
numbers in order, none above what is there already, more than TOKENS_MAX), the constant one answers; for the one from
outside the quantile is asked in between. What is longer than the client's cap is cut to it. A failure never stops
admission: it is counted when the request is sent, and the decision names who answered.

Every predictor learns from every answer, so that another one can be picked at any time. Whether the one that answered
keeps its word is its calibration.

The idea of admitting by the history of output lengths is LightLLM's past-future scheduler (ASPLOS 2025).
"""

from collections.abc import Callable
from enum import StrEnum

import msgspec

from events.base import Event, RequestId
from events.decisions import MiscoverageNoticed
from events.request import OutputPredicted, RequestArrived
from policies.predictors import constant, external, moving_average, quantile
from policies.predictors.base import Interval
from policies.predictors.calibration import Calibration, alarm, answers, bias_ppm, coverage_ppm, take_in, told
from policies.predictors.external import External
from policies.predictors.length_histogram import TOKENS_MAX
from policies.predictors.moving_average import Averages
from policies.predictors.output_question import Foretold, Question
from policies.predictors.quantile import Quantiles


class OutputPredictor(StrEnum):
    """Who is asked first."""

    QUANTILE = "quantile"
    MOVING_AVERAGE = "moving_average"
    CONSTANT = "constant"
    EXTERNAL = "external"


class Outputs(msgspec.Struct):
    """What all predictors of output length know; `calibrations` by the name of who answered."""

    quantiles: Quantiles = msgspec.field(default_factory=Quantiles)
    averages: Averages = msgspec.field(default_factory=dict)
    external: External = msgspec.field(default_factory=External)
    calibrations: dict[str, Calibration] = msgspec.field(default_factory=dict)


Predict = Callable[[Outputs, Question], Interval | None]
"""Answers, or None where it knows nothing. Changes nothing."""


def _average_key(question_key: str) -> str:
    return "\n".join(question_key.split("\n", 2)[:2])


KINDS: dict[str, Predict] = {
    OutputPredictor.QUANTILE: lambda outputs, question: quantile.predict(outputs.quantiles, question),
    OutputPredictor.MOVING_AVERAGE: lambda outputs, question: moving_average.predict(
        outputs.averages, _average_key(question.key), question
    ),
    OutputPredictor.CONSTANT: lambda _outputs, question: constant.predict(question),
    OutputPredictor.EXTERNAL: lambda outputs, question: external.predict(outputs.external, question),
}
"""The predictors by name."""


def foretell(
    outputs: Outputs, request: RequestArrived, *, kind: str, target_ppm: int, tokens_default: int, so_far: int = 0,
    key: str = "",
) -> Foretold:  # fmt: skip
    """How long the answer will be, given that it is longer than `so_far`; always more than that. Changes nothing: what
    failed is counted when it is `sent`. `key` is what it is grouped by where that was found before."""
    key = key or quantile.key_of(outputs.quantiles, request)
    who, interval, failed = _ask(outputs, Question(request, key, target_ppm, tokens_default, so_far), kind)
    return Foretold(
        predictor=str(who), low=interval.low, expected=interval.expected, high=interval.high, target_ppm=target_ppm,
        key=key, conversation=quantile.conversation_of(request), failed=str(failed),
    )  # fmt: skip


def _ask(outputs: Outputs, question: Question, kind: str) -> tuple[str, Interval, str]:
    """Who answered, what, and who failed."""
    failed = ""
    for name in (kind, OutputPredictor.QUANTILE.value) if kind == OutputPredictor.EXTERNAL else (kind,):
        try:
            interval = KINDS[name](outputs, question)
        except Exception:  # Whatever is wrong with a predictor must not stop admission.
            failed = failed or name
            continue
        if interval is None:
            continue
        if _makes_sense(interval, question.so_far):
            return name, _cut(interval, question), failed
        failed = failed or name
    return OutputPredictor.CONSTANT.value, constant.predict(question), failed


def _makes_sense(interval: object, so_far: int) -> bool:
    match interval:
        case (low, expected, high) if type(low) is type(expected) is type(high) is int:
            return 0 <= low <= expected <= high <= TOKENS_MAX and high > so_far
        case _:
            return False


def _cut(interval: Interval, question: Question) -> Interval:
    """To the client's cap where one is given and not yet reached."""
    cap = max(question.request.tokens_max, question.so_far + 1)
    if not question.request.tokens_max or interval.high <= cap:
        return interval
    return Interval(min(interval.low, cap), min(interval.expected, cap), cap)


def sent(outputs: Outputs, request_id: RequestId, foretold: Foretold) -> None:
    """The request goes to an engine by that word: who failed is counted, and what was said from outside is used up."""
    external.forget(outputs.external, request_id)
    if foretold.failed:
        _calibration(outputs, foretold.failed).failures += 1


def ended(outputs: Outputs, request: RequestArrived, foretold: Foretold, tokens: int) -> None:
    """The answer is complete: every predictor learns from it. An answer that the client's own cap bounds says nothing
    about whether the prediction holds."""
    judged = not request.tokens_max or foretold.high < request.tokens_max
    by_quantile = foretold.predictor == OutputPredictor.QUANTILE
    quantile.observe(outputs.quantiles, foretold, tokens, judged=judged and by_quantile)
    moving_average.observe(outputs.averages, _average_key(foretold.key), tokens)
    if judged:
        take_in(_calibration(outputs, foretold.predictor), foretold, tokens)


def heard(outputs: Outputs, event: OutputPredicted) -> None:
    """A predictor outside of the house said something."""
    external.take_in(outputs.external, event)


def alarms(outputs: Outputs) -> list[Event]:
    """What is to be said now of predictors that do not keep their word. Changes nothing; `noticed` follows when it
    stands in the log."""
    said = (alarm(name, calibration) for name, calibration in outputs.calibrations.items())
    return [event for event in said if event is not None]


def calibrated(outputs: Outputs) -> dict[str, dict[str, int]]:
    """How each predictor that answered or failed has done of late, in plain values."""
    return {
        name: {
            "target_ppm": one.target_ppm,
            "coverage_ppm": coverage_ppm(one),
            "bias_ppm": bias_ppm(one),
            "answers": answers(one),
            "failures": one.failures,
        }
        for name, one in outputs.calibrations.items()
    }


def noticed(outputs: Outputs, event: MiscoverageNoticed) -> None:
    """An alarm stands in the log."""
    told(_calibration(outputs, event.predictor), event)


def _calibration(outputs: Outputs, predictor: str) -> Calibration:
    return outputs.calibrations.setdefault(predictor, Calibration())
