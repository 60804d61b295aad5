"""Each engine in turn, whatever its load: what a plain proxy before stock engines does."""

from policies.placement.candidate import Asked, Candidate


def cost(candidate: Candidate, asked: Asked) -> tuple[int, ...]:
    """How many turns until it is this engine's."""
    return ((candidate.position - asked.turn) % asked.candidates,)
