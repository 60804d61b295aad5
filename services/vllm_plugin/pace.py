"""How fast this engine computes prompts now: what fetching KV has to be held against.

Measured on steps with enough prompt in them: the time from the later of their being scheduled and the end of the step
before, to their end. So it holds for an engine that schedules ahead, too.
"""

import time
from collections import deque
from typing import Final

NS_PER_S: Final = 1_000_000_000
STEP_TOKENS_MIN: Final = 128
"""A step with fewer tokens says more about its fixed costs than about prefill."""
ASSUMED_TOKENS_PER_S: Final = 10_000
"""Before anything was measured: about what one GPU does with a model of 8B parameters."""
WEIGHT: Final = 4
"""One part in so many of the measured pace is the last step's."""
AHEAD_MAX: Final = 8
"""Steps that are scheduled ahead at most."""


class Pace:
    """Told by the scheduler's thread, in which its steps begin and end."""

    def __init__(self) -> None:
        self._fixed = self._measured = False
        self._token_ns = NS_PER_S // ASSUMED_TOKENS_PER_S
        self._steps: deque[tuple[int, int]] = deque(maxlen=AHEAD_MAX)
        self._ended_ns = 0

    def fix(self, tokens_per_s: int) -> None:
        """From now on it is that, and nothing is measured."""
        self._fixed, self._token_ns = True, NS_PER_S // tokens_per_s

    def recompute_ns(self, tokens: int) -> int:
        """What computing so many tokens of a prompt takes. At least 1 for a token: nothing is free."""
        return tokens * max(1, self._token_ns)

    def scheduled(self, tokens: int) -> None:
        """A step of so many tokens begins."""
        self._steps.append((time.monotonic_ns(), tokens))

    def ended(self) -> None:
        """The oldest step that was scheduled is done."""
        now_ns = time.monotonic_ns()
        if self._steps:
            began_ns, tokens = self._steps.popleft()
            if tokens >= STEP_TOKENS_MIN and not self._fixed:
                self._take((now_ns - max(began_ns, self._ended_ns)) // tokens)
        self._ended_ns = now_ns

    def _take(self, token_ns: int) -> None:
        if self._measured:
            self._token_ns += (token_ns - self._token_ns) // WEIGHT
        else:
            self._token_ns, self._measured = token_ns, True


pace: Final = Pace()
"""The one of this process."""
