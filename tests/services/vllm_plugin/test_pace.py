"""How fast prompts are computed, measured on the engine's own steps."""

import pytest

from services.vllm_plugin import pace as module
from services.vllm_plugin.pace import ASSUMED_TOKENS_PER_S, NS_PER_S, Pace

TOKENS = 1_000


class Clock:
    """A monotonic clock that is set by hand."""

    def __init__(self) -> None:
        self.now_ns = 1

    def monotonic_ns(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def step(pace: Pace, clock: Clock, *, token_ns: int, tokens: int = TOKENS) -> None:
    pace.scheduled(tokens)
    clock.now_ns += tokens * token_ns
    pace.ended()


def test_before_anything_was_measured_it_is_assumed() -> None:
    assert Pace().recompute_ns(ASSUMED_TOKENS_PER_S) == NS_PER_S


def test_first_step_counts_whole_and_later_ones_in_part(clock: Clock) -> None:
    pace = Pace()
    step(pace, clock, token_ns=400)
    assert pace.recompute_ns(10) == 4_000
    step(pace, clock, token_ns=800)
    assert pace.recompute_ns(10) == 5_000


def test_time_in_which_nothing_was_computed_does_not_count(clock: Clock) -> None:
    pace = Pace()
    step(pace, clock, token_ns=400)
    clock.now_ns += NS_PER_S
    step(pace, clock, token_ns=400)
    assert pace.recompute_ns(1) == 400


def test_step_that_was_scheduled_ahead_begins_when_the_one_before_ended(clock: Clock) -> None:
    pace = Pace()
    pace.scheduled(TOKENS)
    pace.scheduled(TOKENS)
    clock.now_ns += 100 * TOKENS
    pace.ended()
    clock.now_ns += 100 * TOKENS
    pace.ended()
    assert pace.recompute_ns(1) == 100


def test_steps_without_a_prompt_say_nothing(clock: Clock) -> None:
    pace = Pace()
    step(pace, clock, token_ns=400)
    step(pace, clock, token_ns=1_000_000, tokens=8)
    pace.ended()
    assert pace.recompute_ns(1) == 400


def test_pace_that_is_said_is_not_measured(clock: Clock) -> None:
    pace = Pace()
    pace.fix(1_000_000)
    step(pace, clock, token_ns=400)
    assert pace.recompute_ns(1) == 1_000
