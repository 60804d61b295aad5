"""Each engine in turn, whatever its load: what a plain proxy before stock engines does."""

from events.base import PPM
from policies.placement.candidate import Asked, Candidate


def score(candidate: Candidate, asked: Asked) -> int:
    """How many turns until it is this engine's."""
    turns = (candidate.position - asked.turn) % asked.candidates
    return PPM - PPM * turns // asked.candidates
