"""Whether one more request breaks the pace of those that run: the mean time per output token of their whole answer.

Two ways to break it, both from the engine's StepModel:

1. Every step is longer with one more decode: step(context + its prompt, decodes + 1) must stay within its own limit.
2. The running answers get slower by that, and by its prefill, each chunk of which makes a long step. An answer with
   `left` tokens to go has   limit * (tokens in all - 1) - (time since its first token)   for them.

What is still in prefill ahead of it has no token yet, but its whole answer is slowed in the same way: by what of the
prefill comes after its own. Taken as the last in line, which it mostly is, that is the prefill of this request.

An answer that is late already is no reason to refuse another: only one that this request would *make* late is.
"""

from collections.abc import Iterable
from typing import NamedTuple

from events.base import PPM


class Decoding(NamedTuple):
    """One answer: its limit, tokens that it has (0 = it is in prefill) and that are expected in all, time since its
    first token."""

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
            left = one.tokens_expected - max(one.tokens, 1)
            was, will = (before, after) if one.tokens else _past_line(before, after)
            if _left_ns(will, left) > allowed_ns >= _left_ns(was, left):
                return True
    return False


def _past_line(before: Pace, after: Pace) -> tuple[Pace, Pace]:
    """The same two paces once the prefill that is in line before is over."""
    steps = max(0, after.prefill_steps - before.prefill_steps)
    return before._replace(prefill_steps=0, prefill_ns=0), Pace(
        after.step_ns, steps, after.prefill_ns - before.prefill_ns
    )


def _left_ns(pace: Pace, left: int) -> int:
    """How long `left` more tokens take: the first of them during the prefill steps in line."""
    if not pace.prefill_steps:
        return left * pace.step_ns
    if left <= pace.prefill_steps:
        return left * (pace.prefill_ns // pace.prefill_steps)
    return pace.prefill_ns + (left - pace.prefill_steps) * pace.step_ns
