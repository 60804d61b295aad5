"""What is asked of a predictor of output length, and what is kept of its answer until the truth is known."""

from typing import NamedTuple

import msgspec

from events.request import RequestArrived
from policies.predictors.base import Interval


class Question(NamedTuple):
    """How long will the answer to `request` be, given that it is longer than `so_far`?

    The interval's `high` is to hold with `target_ppm`. `key` names what its answer is grouped by (see
    `policies.predictors.quantile`). `tokens_default` stands in where neither history nor the client says anything.
    """

    request: RequestArrived
    key: str
    target_ppm: int
    tokens_default: int
    so_far: int = 0


class Foretold(msgspec.Struct, frozen=True, kw_only=True):
    """What was predicted: an interval of output tokens, cut to the client's cap, and who said so.

    `failed` is the predictor that raised or answered nonsense, so that another one had to answer ("" = none). `key`
    and `conversation` (what the next turn will find this one by) are what the answer is filed under when it ends.
    """

    predictor: str = ""
    low: int = 0
    expected: int = 0
    high: int = 0
    target_ppm: int = 0
    key: str = ""
    conversation: str = ""
    failed: str = ""

    @property
    def interval(self) -> Interval:
        """The three lengths together."""
        return Interval(self.low, self.expected, self.high)
