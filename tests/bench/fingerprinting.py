"""Naming the KV of a prompt: 8K tokens, in slices of 256 as the gateway does it, from a list and from packed ids; in
blocks of 16 beside it; and what counting the same tokens takes, which comes before it.

The tokenizer is a byte-level BPE trained here on the project's own pages: none comes with the project.
"""

import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kvstore.fingerprint import fingerprints
from tests.bench.place import Place
from tests.bench.rounds import Figures, Row, interleave, measured, percentile

TOKENS = 8_192
PER_ROUND = 300
TOKENISED_PER_ROUND = 10
GOAL_US = 65
VOCABULARY = 8_000
PAGES = Path(__file__).parents[2]


async def measure(place: Place) -> list[Row]:
    """Microseconds per prompt."""
    ids = [number * 7_919 % 128_000 for number in range(TOKENS)]
    tokenizer, text = _tokenizer()
    ways = {
        "list": partial(_times, partial(fingerprints, ids, key=b"bench"), PER_ROUND),
        "packed": partial(_times, partial(fingerprints, array("I", ids), key=b"bench"), PER_ROUND),
        "16": partial(_times, partial(fingerprints, ids, key=b"bench", slice_tokens=16), PER_ROUND),
        "tokenise": partial(_times, partial(tokenizer.encode, text), TOKENISED_PER_ROUND),
    }
    values = await interleave(ways, rounds=place.rounds)
    return [
        measured("fingerprints of 8K tokens, slices of 256", "us", values["list"]["p50"], at_most=GOAL_US),
        measured("the same from packed ids", "us", values["packed"]["p50"]),
        measured("fingerprints of 8K tokens, blocks of 16", "us", values["16"]["p50"]),
        measured("tokenising the text of 8K tokens", "us", values["tokenise"]["p50"]),
    ]


async def _times(name: Callable[[], object], count: int) -> Figures:
    waits = []
    for _ in range(count):
        start = time.perf_counter()
        name()
        waits.append(time.perf_counter() - start)
    return {"p50": percentile(waits, 50) * 1e6}


def _tokenizer() -> tuple[Tokenizer, str]:
    """A tokenizer, and a text of 8K of its tokens."""
    pages = [page.read_text() for page in sorted((*PAGES.glob("*.md"), *PAGES.glob("docs/*.md")))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(pages, trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False))
    text = tokenizer.decode(tokenizer.encode("".join(pages)).ids[:TOKENS])
    assert abs(len(tokenizer.encode(text).ids) - TOKENS) < TOKENS // 100, "the pages are long enough"
    return tokenizer, text
