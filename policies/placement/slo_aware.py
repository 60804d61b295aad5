"""The engine that is predicted to give the first token soonest.

The prediction counts the prefill work in line, the resident decode context and the cached prefix, so a prompt
follows its prefix as long as that is the quicker way, and no longer.
Example: 40 ms here and 100 ms there, where the worst is 100 ms: 0.6 and 0.
"""

from events.base import PPM
from policies.placement.candidate import Asked, Candidate


def score(candidate: Candidate, asked: Asked) -> int:
    """By how much its predicted TTFT is below the worst."""
    return PPM - PPM * candidate.ttft_ns // max(asked.ttft_max_ns, 1)
