"""Whose turn it is, LLM's or embedding's: start-time fair queueing with urgency as weight.

Each kind has a tag: how many tokens to prefill went, divided by its weight. The kind with the lower tag goes first. One
that did not wait for a while starts where the others are: what it did not use is gone, so nobody is starved later for
having been quick before. Weights are the urgencies that quota published last; 1 to 1 before that.

Source: Goyal, Vin and Cheng, "Start-time Fair Queueing" (1996).
Example: weights 3 (LLM) and 1. An LLM prompt of 3,000 tokens moves its tag as far as an embedding of 1,000.
"""

import msgspec

from events.base import RequestKind
from events.decisions import SharesSet

SCALE = 1_000
"""Tags are counted in so many parts of a token, so that a division by a weight loses nothing that matters."""


class KindTurns(msgspec.Struct):
    """How far each kind is ahead of the one that went last, and the weights."""

    ahead: dict[RequestKind, int] = msgspec.field(default_factory=dict)
    weights: dict[RequestKind, int] = msgspec.field(default_factory=dict)


def went(turns: KindTurns, kind: RequestKind, tokens: int) -> None:
    """That many tokens of this kind go now."""
    start = turns.ahead.get(kind, 0)
    for other, ahead in turns.ahead.items():
        turns.ahead[other] = max(0, ahead - start)
    turns.ahead[kind] = tokens * SCALE // turns.weights.get(kind, 1)


def tag(turns: KindTurns, kind: RequestKind) -> int:
    """Where its next request starts; the least goes first."""
    return turns.ahead.get(kind, 0)


def weigh(turns: KindTurns, event: SharesSet) -> None:
    """Quota said how urgent each kind is."""
    turns.weights[RequestKind.LLM] = max(1, event.llm_urgency)
    turns.weights[RequestKind.EMBEDDING] = max(1, event.embedding_urgency)
