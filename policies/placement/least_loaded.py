"""The engine that holds the fewest tokens."""

from policies.placement.candidate import Asked, Candidate


def cost(candidate: Candidate, asked: Asked) -> tuple[int, ...]:  # noqa: ARG001
    """Tokens held or in line there."""
    return (candidate.load_tokens,)
