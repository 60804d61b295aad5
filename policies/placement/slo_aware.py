"""The engine that is predicted to give the first token soonest.

The prediction counts the prefill work in line, the resident decode context and the cached prefix, so a prompt
follows its prefix as long as that is the quicker way, and no longer.
"""

from policies.placement.candidate import Asked, Candidate


def cost(candidate: Candidate, asked: Asked) -> tuple[int, ...]:  # noqa: ARG001
    """Predicted TTFT, then load."""
    return (candidate.ttft_ns, candidate.load_tokens)
