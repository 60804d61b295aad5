"""Whether one more request breaks the pace of those that run: the mean time per output token of their whole answer.

Two ways to break it, both from the engine's StepModel:

1. Every step is longer with one more decode: step(context + its prompt, decodes + 1) must stay within its own limit.
2. The running answers get slower by that, and by its prefill, each chunk of which makes a long step. An answer with
   `left` tokens to go has   limit * (tokens in all - 1) - (time since its first token)   for them.

An answer that is late already is no reason to refuse another: only one that this request would *make* late is.
"""

from collections.abc import Iterable
from typing import NamedTuple

from events.base import PPM


class Decoding(NamedTuple):
    """One running answer: its limit, tokens that it has and that are expected in all, time since its first token."""

    limit_ns: int
    tokens: int
    tokens_expected: int
    since_first_ns: int


class Pace(NamedTuple):
    """How an engine steps: a pure decode step, and the prefill work in line: its steps, and how long in all."""

    step_ns: int
    prefill_steps: int
    prefill_ns: int


def breaks_pace(decoding: Iterable[Decoding], *, before: Pace, after: Pace, own_limit_ns: int, margin_ppm: int) -> bool:
    """Whether going from the pace `before` to that `after` breaks a limit that would have held. 0 is no limit."""
    if own_limit_ns and after.step_ns * PPM > own_limit_ns * margin_ppm:
        return True
    for one in decoding:
        if one.limit_ns:
            allowed_ns = one.limit_ns * margin_ppm // PPM * (one.tokens_expected - 1) - one.since_first_ns
            left = one.tokens_expected - one.tokens
            if _left_ns(after, left) > allowed_ns >= _left_ns(before, left):
                return True
    return False


def _left_ns(pace: Pace, left: int) -> int:
    """How long `left` more tokens take: the first of them during the prefill steps in line."""
    if not pace.prefill_steps:
        return left * pace.step_ns
    if left <= pace.prefill_steps:
        return left * (pace.prefill_ns // pace.prefill_steps)
    return pace.prefill_ns + (left - pace.prefill_steps) * pace.step_ns
