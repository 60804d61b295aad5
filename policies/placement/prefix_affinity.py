"""The engine with the longest cached prefix, unless it is much busier than the others; without a long match, the
least loaded. The rule of the routers that come with vLLM and SGLang.

Example: with `affinity_tokens_min` 1024 and `affinity_load_ppm` 1.5, a match of 4,096 tokens binds a prompt to its
engine as long as that engine would hold at most half as much again as the mean.
"""

from events.base import PPM
from policies.placement.candidate import Asked, Candidate, cached_score, load_score

HALF = PPM // 2


def score(candidate: Candidate, asked: Asked) -> int:
    """The upper half for what binds, by the length of the match; the lower half by load."""
    bound = candidate.cached_tokens >= min(asked.affinity_tokens_min, asked.prompt_tokens)
    if bound and not is_busy(candidate, asked):
        return HALF + cached_score(candidate, asked) // 2
    return load_score(candidate, asked) // 2


def is_busy(candidate: Candidate, asked: Asked) -> bool:
    """Whether it would hold much more than the mean."""
    prompt = asked.prompt_tokens
    mean_after = asked.load_tokens // asked.candidates + prompt
    return (candidate.load_tokens + prompt) * PPM > mean_after * asked.affinity_load_ppm
