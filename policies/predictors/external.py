"""Output length from outside of the house: what `output_predicted` facts say, until the request is sent.

A model that reads prompts can know more than any history. Its word comes in as a fact, so replay needs no such model.
Nonsense (not above 0, disordered, longer than anything) is not taken in and counted.
"""

import msgspec

from events.base import RequestId
from events.request import OutputPredicted
from policies.predictors.base import Interval
from policies.predictors.length_histogram import TOKENS_MAX
from policies.predictors.output_question import Question

SAID_MAX = 4_096
"""Predictions kept for requests that were not sent yet; the oldest goes first."""


class Said(msgspec.Struct, frozen=True, array_like=True):
    """Output tokens, both ends."""

    low: int
    high: int


class External(msgspec.Struct):
    """What was said of requests to come, oldest first, and how often it was nonsense."""

    said: dict[RequestId, Said] = msgspec.field(default_factory=dict)
    refused: int = 0


def take_in(external: External, event: OutputPredicted) -> None:
    """Remember it. The last word counts."""
    low, high = event.output_tokens_low, event.output_tokens_high
    if not 0 <= low <= high or not 0 < high <= TOKENS_MAX:
        external.refused += 1
        return
    external.said.pop(event.request_id, None)
    external.said[event.request_id] = Said(low, high)
    if len(external.said) > SAID_MAX:
        del external.said[next(iter(external.said))]


def forget(external: External, request_id: RequestId) -> None:
    """It was sent, or ended."""
    external.said.pop(request_id, None)


def predict(external: External, question: Question) -> Interval | None:
    """What was said; None where nothing was, or the answer is that long already. In between, the middle is expected."""
    said = external.said.get(question.request.request_id)
    if said is None or said.high <= question.so_far:
        return None
    low = max(said.low, question.so_far + 1)
    return Interval(low, (low + said.high) // 2, said.high)
