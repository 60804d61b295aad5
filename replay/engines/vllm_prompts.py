"""Prompts as vLLM's scheduler needs them: token ids and block hashes, made from the ids of a prompt's units.

A unit's tokens are drawn from its id, the rest of a prompt from the name of its request; so two prompts have the same
tokens as far as their units are the same, and no further. Block hashes are vLLM's own (`hash_block_tokens`), chained as
vLLM chains them, and kept by the chain of unit ids: a prompt that was asked before is hashed no more.
"""

from collections.abc import Callable, Hashable, Sequence
from hashlib import blake2b
from struct import unpack
from typing import Any, Final

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, hash_block_tokens, init_none_hash

HASH_ALGORITHM: Final = "sha256"
"""vLLM's default, and one that the plugin's memory accepts."""
UNITS_MAX: Final = 200_000
"""Units whose hashes are kept, of any prompt; with one more all are forgotten, and hashed again when they come."""
HEAD_TOKENS: Final = 8
"""So many tokens of 16 bits say what a unit is; the others are all the same."""
FILL: Final = 1
TOKEN_MIN: Final = 2
VOCABULARY: Final = TOKEN_MIN + (1 << 16)
"""Token ids are below this."""


class _Unit:
    """A unit under its parent: the hashes of its blocks, and the units that came after it."""

    __slots__ = ("after", "hashes")

    def __init__(self, hashes: tuple[bytes, ...]) -> None:
        self.hashes = hashes
        self.after: dict[Hashable, _Unit] = {}


class Prompts:
    """See the module. Shared by all engines of a run that have blocks of `block_tokens` tokens."""

    def __init__(self, block_tokens: int) -> None:
        assert block_tokens >= HEAD_TOKENS, "a unit's first block says which unit it is"
        self.block_tokens = block_tokens
        self._hash = get_hash_fn_by_name(HASH_ALGORITHM)
        init_none_hash(self._hash)
        self.hasher: Callable[[Any], list[bytes]] = get_request_block_hasher(block_tokens, self._hash)
        """What vLLM hashes the blocks of a request with that have no hash yet."""
        self._root, self._units = _Unit(()), 0

    def tokens(self, name: str, prompt_tokens: int, prefix: Sequence[Hashable] = (), unit_tokens: int = 1) -> list[int]:
        """The token ids of a prompt that begins with these units; the rest is that request's own."""
        units = prefix[: prompt_tokens // unit_tokens]
        found: list[int] = []
        for key in units:
            found += unit_of(repr(key), unit_tokens)
        return found + unit_of(name, prompt_tokens - len(found))

    def hashes(self, prefix: Sequence[Hashable], unit_tokens: int) -> list[bytes]:
        """The hashes of all blocks of these units. Nothing where a unit is not a whole number of blocks."""
        if unit_tokens % self.block_tokens:
            return []
        found: list[bytes] = []
        unit = self._root
        for key in prefix:
            known = unit.after.get((key, unit_tokens))
            if known is None:
                known = _Unit(self._hashed(key, unit_tokens, found[-1] if found else None))
                unit = self._keep(unit, (key, unit_tokens), known)
            else:
                unit = known
            found += unit.hashes
        return found

    def _hashed(self, key: Hashable, unit_tokens: int, parent: bytes | None) -> tuple[bytes, ...]:
        tokens, found = unit_of(repr(key), unit_tokens), []
        for first in range(0, unit_tokens, self.block_tokens):
            parent = hash_block_tokens(self._hash, parent, tokens[first : first + self.block_tokens])
            found.append(parent)
        return tuple(found)

    def _keep(self, before: _Unit, key: Hashable, unit: _Unit) -> _Unit:
        if self._units >= UNITS_MAX:
            # Whoever holds on to a chain that is forgotten goes on with it alone.
            self._root, self._units = _Unit(()), 0
        before.after[key] = unit
        self._units += 1
        return unit


class Hasher:
    """A request's own hasher: what is known of its prompt (`known`), then vLLM's for all that follows."""

    __slots__ = ("_hasher", "_known")

    def __init__(self, hasher: Callable[[Any], list[bytes]], known: list[bytes]) -> None:
        self._hasher, self._known = hasher, known

    def __call__(self, request: Any) -> list[bytes]:
        """The hashes of blocks that became full."""
        if self._known:
            request.block_hashes.extend(self._known)
            self._known = []
        return self._hasher(request)


def unit_of(name: str, tokens: int) -> list[int]:
    """The token ids of a unit: its name's digest, then fill."""
    head = unpack(f">{HEAD_TOKENS}H", blake2b(name.encode(), digest_size=2 * HEAD_TOKENS).digest())
    found = [TOKEN_MIN + word for word in head[:tokens]]
    return found + [FILL] * (tokens - len(found))
