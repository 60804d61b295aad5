"""NVIDIA Dynamo's KV router: the engine with the lowest cost = weight x prefill blocks + decode blocks.

Prefill blocks are those still to be computed there, with what of this prompt is not cached; decode blocks those that
all requests there hold, with this one. The weight (`overlap_ppm`, 1 as published) says how much a first token counts
against the time per token. At its default temperature of 0 the lowest cost is taken; so here.

Source: NVIDIA Dynamo 1.3 documentation, "Routing concepts" and "Router design" (`--router-kv-overlap-score-weight`).
Example: weight 1, blocks of 16. e1: 100 blocks to compute, 500 held: 600. e2: 300 and 250: 550, so e2, though more of
the prompt is on e1.
"""

from events.base import PPM
from policies.placement.candidate import Asked, Candidate


def score(candidate: Candidate, asked: Asked) -> int:
    """The cost, turned round: 1,000,000 for none, halved at as many blocks as the prompt itself has."""
    blocks = cost_ppm(candidate, asked)
    own = -(-asked.prompt_tokens // candidate.block_tokens) * PPM
    return PPM * own // (own + blocks)


def cost_ppm(candidate: Candidate, asked: Asked) -> int:
    """The published cost, in millionths of a block."""
    size = candidate.block_tokens
    prefill = -(-(candidate.prefill_tokens + asked.prompt_tokens - candidate.cached_tokens) // size)
    decode = -(-(candidate.load_tokens + asked.prompt_tokens) // size)
    return prefill * asked.overlap_ppm + decode * PPM
