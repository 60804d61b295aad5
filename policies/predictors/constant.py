"""Output length without any history: the client's own cap, or a default. It always answers, so all others fall back to
it."""

from policies.predictors.base import Interval
from policies.predictors.output_question import Question


def predict(question: Question) -> Interval:
    """One token to the cap, and the cap is expected, for nothing else is known. Where no cap is given: the default, or
    twice what is there already."""
    so_far = question.so_far
    longest = question.request.tokens_max or max(question.tokens_default, 2 * so_far)
    high = max(longest, so_far + 1)
    return Interval(so_far + 1, high, high)
