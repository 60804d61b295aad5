"""Room for prompts of a class that is served less than others: who has to leave it, and who not."""

from typing import Any

import pytest

from events.decisions import DeferReason
from events.request import RequestArrived
from policies.ordering.fairness import OFFERED_MIN, UNIT
from tests.policies.house import admitted, deferred, house
from tests.policies.words import S, arrived, engine, finished, first_token, settings
from tests.spec import Spec, at

LONG, SHORT = 20_000, 2_000
TIMES = OFFERED_MIN // UNIT
SIZE: dict[str, Any] = {"blocks": 10_000, "seqs_max": 64, "batch_tokens_max": 10_000, "context_tokens_max": 90_000}
"""100,000 tokens of KV; 10 ms per 10,000 tokens of prefill."""


def lagging(*names: str, fairness_ppm: int = 600_000) -> Spec:
    """Prompts of 20,000 tokens were all refused, short ones all served; 70,000 of e1's tokens are taken."""
    engines = [engine(name, **SIZE) for name in names]
    spec = house(settings(fairness_ppm=fairness_ppm), engines=tuple(engines))
    for number in range(TIMES):
        spec.after(at(0, arrived(f"long{number}", LONG, slack=1)))
        spec.after(at(0, arrived(f"short{number}", SHORT, slack=50 * S)), first_token(f"short{number}"))
        spec.after(finished(f"short{number}"))
    return spec.after(at(0, arrived("big", 70_000, out=1_000, slack=50 * S)), first_token("big"))


def asks(name: str, prompt: int) -> RequestArrived:
    return arrived(name, prompt, out=100, slack=50 * S)


@pytest.mark.parametrize(
    ("prompt", "then"),
    [
        (8_000, admitted("b")),  # 22,000 are left for one of 20,000.
        (12_000, deferred("b", DeferReason.KEPT_FOR_OTHERS)),
        (LONG, admitted("b")),  # It is one of those that lag.
    ],
)
def test_while_long_prompts_lag_one_of_them_must_still_fit(prompt: int, then: Any) -> None:
    lagging("e1").when(asks("b", prompt)).then(then)


def test_without_a_floor_of_fairness_no_room_is_kept() -> None:
    lagging("e1", fairness_ppm=0).when(asks("b", 12_000)).then(admitted("b"))


def test_room_on_another_engine_is_room_enough() -> None:
    lagging("e1", "e2").when(asks("b", 12_000)).then(admitted("b", "e1"))
