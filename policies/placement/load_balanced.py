"""A weighted mean of what is free there: memory, time before the first token, and the prompt's own prefix.

An engine where the request could not begin now scores at most half of one where it could. Weights as llm-d's endpoint
picker ships them: queue 2, KV utilisation 2, prefix 3; the queue is measured here in predicted TTFT, not in requests.

Source: llm-d inference scheduler, default scorer weights; Gateway API inference extension (filter, score in [0,1],
pick).
Example: budget half free, TTFT half of the worst, no prefix: (2 x 0.5 + 2 x 0.5 + 3 x 0) / 7 = 0.29.
"""

from policies.placement import slo_aware
from policies.placement.candidate import Asked, Candidate, cached_score

QUEUE, MEMORY, PREFIX = 2, 2, 3


def score(candidate: Candidate, asked: Asked) -> int:
    """The weighted mean, halved where it could not begin."""
    weighted = (
        QUEUE * slo_aware.score(candidate, asked)
        + MEMORY * candidate.budget_left_ppm
        + PREFIX * cached_score(candidate, asked)
    )  # fmt: skip
    return weighted // (QUEUE + MEMORY + PREFIX) // (2 if candidate.conflict else 1)
