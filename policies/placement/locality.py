"""Where the KV of the prefix is, whatever the load; among equals the engine with most of its budget left.

What is known of an engine's KV is what it reports of its tiers, else what was sent there (`policies.cached_prefix`). It
is the limit case of prefix affinity, best where prompts are long, shared, and slow to compute.

Example: 6,144 of 8,192 tokens are on e1: 0.75 of the upper nine tenths, though e2 is idle.
"""

from policies.placement.candidate import Asked, Candidate, cached_score

BUDGET_PART = 10


def score(candidate: Candidate, asked: Asked) -> int:
    """Nine parts in ten for the prefix, one for the budget that is left; half of it where it could not begin now."""
    cached = cached_score(candidate, asked) * (BUDGET_PART - 1)
    return (cached + candidate.budget_left_ppm) // BUDGET_PART // (2 if candidate.conflict else 1)
