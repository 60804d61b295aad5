"""Prompts for a live target: words that mean nothing, the same ones wherever a trace has the same prefix id.

Prompts share as many tokens as they do in the trace, because each prefix id stands for one run of words, drawn by that
id alone. The words are frequent English ones, which byte-pair vocabularies have as one token with the space before
them; how many tokens one is for the target's tokenizer is measured where it can be asked (`Sizes`).
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from random import Random
from typing import Final, NamedTuple

from msgspec.structs import replace

from events.base import RequestKind
from replay.workloads.base import Arrival
from services.load import prompt_json

_TEXT: Final = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city name president team minute idea kid body "
    "information back parent face others level office door health person art war history party result change "
    "morning reason research girl guy moment air teacher force education"
)
WORDS: Final = tuple(_TEXT.split())
RUNS_CACHED_MAX: Final = 16_384
ID_BYTES: Final = 7
"""Of a fresh prefix id: `services.load` writes it into a prompt of token ids."""


class Sizes(NamedTuple):
    """Tokens of one word, and tokens that a prompt has beside its words. `asked`: the target's tokenizer said so."""

    per_word: float = 1.0
    beside: int = 0
    asked: bool = False

    def words(self, tokens: int) -> int:
        """Words that make about so many tokens; at least one."""
        return max(1, round(tokens / self.per_word))


Prompts = Callable[[Arrival], bytes]
"""The prompt (or the input) of an arrival, as a JSON value."""


def fresh(arrivals: Sequence[Arrival], salt: str) -> list[Arrival]:
    """The same requests under names that no run with another salt has: they share prefixes with each other as before,
    and with nothing that a target was asked earlier (at another load, or yesterday), which its cache may still hold."""

    @cache
    def unit(prefix_id: int) -> int:
        return int.from_bytes(blake2b(f"{salt} {prefix_id}".encode(), digest_size=ID_BYTES).digest())

    def name(own: str) -> str:
        return f"{own}.{blake2b(f'{salt} {own}'.encode(), digest_size=4).hexdigest()}"

    return [replace(one, request_id=name(one.request_id), prefix=tuple(map(unit, one.prefix))) for one in arrivals]


def text_prompts(sizes: Sizes) -> Prompts:
    """Prompts of words."""

    @lru_cache(maxsize=RUNS_CACHED_MAX)
    def run(name: str, words: int) -> str:
        return " ".join(Random(name).choices(WORDS, k=words))  # noqa: S311 - no secret

    def text(arrival: Arrival, tokens: int, part: str) -> str:
        left = sizes.words(tokens - sizes.beside)
        unit = sizes.words(arrival.prefix_tokens)
        runs: list[str] = []
        for prefix_id in arrival.prefix:
            if left < unit:
                break
            runs.append(run(f"prefix {prefix_id}", unit))
            left -= unit
        if left:
            runs.append(" ".join(Random(f"own {arrival.request_id} {part}").choices(WORDS, k=left)))  # noqa: S311
        return " ".join(runs)

    def prompt(arrival: Arrival) -> bytes:
        if arrival.kind is RequestKind.EMBEDDING and arrival.inputs > 1:
            each = max(1, arrival.prompt_tokens // arrival.inputs)
            texts = (text(arrival, each, str(number)) for number in range(arrival.inputs))
            return ("[" + ",".join(f'"{one}"' for one in texts) + "]").encode()
        return f'"{text(arrival, arrival.prompt_tokens, "")}"'.encode()

    return prompt


def token_prompts(arrival: Arrival) -> bytes:
    """Prompts of token ids."""
    return prompt_json(arrival).encode()


def sample(words: int) -> str:
    """So many words, for a tokenizer to count."""
    return " ".join(Random("sample").choices(WORDS, k=words))  # noqa: S311 - no secret
