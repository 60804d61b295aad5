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


class Answer(NamedTuple):
    """One answer whose limit would hold: tokens still to come, how long they may take, and whether it is in prefill."""

    left: int
    allowed_ns: int
    in_prefill: bool


def would_hold(decoding: Iterable[Decoding], pace: Pace, *, margin_ppm: int) -> list[Answer]:
    """Of these answers those that keep their limit at this pace. 0 is no limit."""
    step_ns, found = pace.step_ns, []
    for limit_ns, tokens, tokens_expected, since_first_ns in decoding:
        if limit_ns:
            allowed_ns = limit_ns * margin_ppm // PPM * (tokens_expected - 1) - since_first_ns
            left = tokens_expected - max(tokens, 1)
            if allowed_ns >= (_left_ns(pace, left) if tokens else left * step_ns):
                found.append(Answer(left, allowed_ns, not tokens))
    return found


def breaks_pace(answers: Iterable[Answer], *, before: Pace, after: Pace, own_limit_ns: int, margin_ppm: int) -> bool:
    """Whether going from the pace `before` to that `after` breaks the new one's own limit, or that of one of these
    answers, which hold it at the pace before (`would_hold`)."""
    if own_limit_ns and after.step_ns * PPM > own_limit_ns * margin_ppm:
        return True
    behind = _past_line(before, after)
    return any(_left_ns(behind if in_prefill else after, left) > allowed_ns for left, allowed_ns, in_prefill in answers)


def _past_line(before: Pace, after: Pace) -> Pace:
    """The pace after, once the prefill that is in line before is over."""
    steps = max(0, after.prefill_steps - before.prefill_steps)
    return Pace(after.step_ns, steps, after.prefill_ns - before.prefill_ns)


def _left_ns(pace: Pace, left: int) -> int:
    """How long `left` more tokens take: the first of them during the prefill steps in line."""
    step_ns, prefill_steps, prefill_ns = pace
    if not prefill_steps:
        return left * step_ns
    if left <= prefill_steps:
        return left * (prefill_ns // prefill_steps)
    return prefill_ns + (left - prefill_steps) * step_ns
