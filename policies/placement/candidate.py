"""What a placement sees of an engine, and of the request."""

from typing import NamedTuple

from events.base import PPM, EngineId

Labels = dict[str, str]
"""Where an engine is: the keys that count are in `policies.placement.topology_aware`."""
NOWHERE: Labels = {}


class Asked(NamedTuple):
    """The request, and what the candidates have in common.

    `candidates` counts them, `turn` how many requests of its line were placed before it; `load_tokens` is the load of
    all candidates together, `ttft_max_ns` and `work_max_ns` the worst predictions, `cached_max_tokens` the longest
    cached prefix and `home` the labels of where that is. `key` is what it should stay together with: its session, else
    the begin of its prompt ("" = neither). Then settings: `affinity_*` and `overlap_ppm`."""

    prompt_tokens: int
    candidates: int
    turn: int
    load_tokens: int
    affinity_tokens_min: int
    affinity_load_ppm: int
    ttft_max_ns: int = 0
    work_max_ns: int = 0
    cached_max_tokens: int = 0
    home: Labels = NOWHERE
    key: str = ""
    overlap_ppm: int = PPM


class Candidate(NamedTuple):
    """An engine that could serve it. `position` counts the candidates; `load_tokens` is prompt and output held or in
    line there, `prefill_tokens` the part still to be computed; `cached_tokens` the prompt's part that is probably
    there; `ttft_ns` the prediction, and `work_ns` what of it is the request's own prefill.

    `budget_left_ppm` is the share of its KV budget that is left once the request is there at its reserved length, and
    `conflict` says that it could not begin there now: no sequence or memory is free, or too much prefill stands before
    it. Both are looked up only for kinds that ask for them."""

    engine_id: EngineId
    position: int
    load_tokens: int
    cached_tokens: int
    ttft_ns: int
    work_ns: int = 0
    prefill_tokens: int = 0
    block_tokens: int = 1
    labels: Labels = NOWHERE
    budget_left_ppm: int = PPM
    conflict: bool = False


def load_score(candidate: Candidate, asked: Asked) -> int:
    """From 1,000,000 (holds nothing) down to 0 (holds all that the candidates hold together)."""
    return PPM - PPM * candidate.load_tokens // max(asked.load_tokens, 1)


def cached_score(candidate: Candidate, asked: Asked) -> int:
    """The share of the prompt that is there."""
    return PPM * candidate.cached_tokens // max(asked.prompt_tokens, 1)
