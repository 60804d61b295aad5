"""What a placement sees of an engine, and of the request."""

from typing import NamedTuple

from events.base import EngineId


class Asked(NamedTuple):
    """The request, the number of candidates, how many requests of its line were placed before it, and the
    candidates' load in tokens in all; with the settings of `prefix_affinity`."""

    prompt_tokens: int
    candidates: int
    turn: int
    load_tokens: int
    affinity_tokens_min: int
    affinity_load_ppm: int


class Candidate(NamedTuple):
    """An engine that could serve it. `position` counts the candidates; `load_tokens` is prompt and output held or in
    line there; `cached_tokens` the prompt's part that is probably there; `ttft_ns` the prediction."""

    engine_id: EngineId
    position: int
    load_tokens: int
    cached_tokens: int
    ttft_ns: int
