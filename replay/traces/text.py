"""Lengths and prefixes of prompts of which only the text is known: estimates, and said to be such.

A token is taken for `BYTES_PER_TOKEN` bytes of UTF-8, as the gateway does where it has no tokenizer. A unit is so many
bytes that `unit_tokens` tokens would take; its id is a fingerprint of all bytes up to its end, so equal ids mean equal
texts so far. A tokenizer would cut elsewhere, and would count up to a third more or less for other languages and code.
"""

from hashlib import blake2b

BYTES_PER_TOKEN = 4
ID_BYTES = 8


def tokens_of(text: bytes) -> int:
    """Tokens of a text, estimated; at least one."""
    return max(1, len(text) // BYTES_PER_TOKEN)


def units_of(text: bytes, unit_tokens: int) -> tuple[int, ...]:
    """Ids of its full units, first to last."""
    step = unit_tokens * BYTES_PER_TOKEN
    chain, ids = blake2b(digest_size=ID_BYTES), list[int]()
    for start in range(0, len(text) - step + 1, step):
        chain.update(text[start : start + step])
        ids.append(int.from_bytes(chain.digest()))
    return tuple(ids)
