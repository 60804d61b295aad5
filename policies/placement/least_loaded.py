"""The engine that holds the fewest tokens."""

from policies.placement.candidate import Asked, Candidate, load_score


def score(candidate: Candidate, asked: Asked) -> int:
    """Tokens held or in line there."""
    return load_score(candidate, asked)
