"""The engine with the longest cached prefix, unless it is much busier than the others; without a long match, the
least loaded. The rule of the routers that come with vLLM and SGLang.

Example: with `affinity_tokens_min` 1024 and `affinity_load_ppm` 1.5, a match of 4,096 tokens binds a prompt to its
engine as long as that engine would hold at most half as much again as the mean.
"""

from events.base import PPM
from policies.placement.candidate import Asked, Candidate


def cost(candidate: Candidate, asked: Asked) -> tuple[int, ...]:
    """Longest match first, then load."""
    prompt = asked.prompt_tokens
    bound = candidate.cached_tokens >= min(asked.affinity_tokens_min, prompt)
    mean_after = asked.load_tokens // asked.candidates + prompt
    busy = (candidate.load_tokens + prompt) * PPM > mean_after * asked.affinity_load_ppm
    return (-candidate.cached_tokens if bound and not busy else 0, candidate.load_tokens)
