"""Which slices an engine's device holds, whole, from vLLM's KV events: those speak of blocks, by hash.

A block's hash names its tokens and all before them, and `block_stored` says which block stands before it. So every
block has a place in a prompt, and the blocks of one slice are a run of them. A slice is there while all of its blocks
are. It is named as everywhere: by the fingerprint of its tokens and all before them, with the key that follows from the
cache salt, which stands with the first block of a prompt. Slices of prompts with an adapter, images or embeddings are
not those of the same tokens alone, so they are named after the hash of their last block.

The device may hold the same KV in several blocks: vLLM caches what each of two like prompts computes at once, and says
of each copy that it is stored, and that it is removed. A block is gone with the last of them.

Example: blocks of 32 tokens, slices of 256. The eighth block of a prompt is stored: its slice is there. Its third block
is evicted: it is not. Another prompt with the same first 96 tokens computes that block again: it is there again.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec

from events.base import SliceId
from kvstore.fingerprint import FINGERPRINT_BYTES, salted_key
from services.vllm_plugin.naming import made_up

DEVICE: Final = "GPU"
BLOCKS_MAX: Final = 1 << 22
"""Blocks that are followed at once; those beyond are not known."""

Learn = Callable[[bytes, SliceId], object]
"""Told the name of the slice that ends with the block of this hash."""


class _Block(msgspec.Struct):
    """A resident block. `run`: the blocks of its slice up to it, itself the last, `filled` tokens in all. `hashing` has
    taken in those tokens, under the `key` of its prompt (None: its slice cannot be named by them)."""

    key: bytes
    hashing: Any
    run: tuple[bytes, ...]
    filled: int


class _Slice(msgspec.Struct):
    """A slice whose last block is there; `missing` of its blocks are not."""

    name: SliceId
    blocks: tuple[bytes, ...]
    missing: int


class DeviceSlices:
    """What is resident now. `evictions` counts slices that lost their last block."""

    def __init__(self, *, slice_tokens: int, learn: Learn) -> None:
        self._slice_tokens, self._learn = slice_tokens, learn
        self._copies: dict[bytes, int] = {}
        self._blocks: dict[bytes, _Block] = {}
        self._slices: dict[bytes, _Slice] = {}
        self._parts: dict[bytes, dict[bytes, None]] = {}
        self.evictions = 0

    def stored(self, event: Any) -> list[SliceId]:
        """`BlockStored`: blocks one behind the other. The slices that are there now and were not; blocks behind one
        that is not known have no place, and are passed over."""
        found: list[SliceId] = []
        if not _of_device(event):
            return found
        size, before = event.block_size, event.parent_block_hash
        before = None if before is None else _bytes(before)
        for place, said in enumerate(event.block_hashes):
            block_hash = _bytes(said)
            if self._counted(block_hash) and block_hash not in self._blocks:
                tokens = event.token_ids[place * size : (place + 1) * size]
                extra = event.extra_keys[place] if event.extra_keys else None
                block = self._placed(block_hash, before, tokens, extra=extra, lora=event.lora_name)
                if block is not None:
                    found += self._add(block_hash, block)
            before = block_hash
        return found

    def removed(self, event: Any) -> list[SliceId]:
        """`BlockRemoved`: the slices that were there and are not now."""
        gone: list[SliceId] = []
        if _of_device(event):
            for block_hash in map(_bytes, event.block_hashes):
                left = self._copies.pop(block_hash, 0) - 1
                if left > 0:
                    self._copies[block_hash] = left
                elif block_hash in self._blocks:
                    gone += self._remove(block_hash)
        return gone

    def clear(self) -> None:
        """Nothing is there, or nothing is known any more."""
        self._copies.clear()
        self._blocks.clear()
        self._slices.clear()
        self._parts.clear()

    def inventory(self) -> tuple[SliceId, ...]:
        """The slices that are there, in the order in which they came."""
        return tuple(one.name for one in self._slices.values() if not one.missing)

    def _counted(self, block_hash: bytes) -> bool:
        """There is one more of it; False where it is not followed."""
        copies = self._copies.get(block_hash, 0)
        if not copies and len(self._copies) >= BLOCKS_MAX:
            return False
        self._copies[block_hash] = copies + 1
        return True

    def _placed(
        self, block_hash: bytes, before: bytes | None, tokens: Sequence[int], *, extra: Any, lora: str | None
    ) -> _Block | None:
        """A new block in its place; None where that is not known."""
        if before is None:
            salt, plain = _salt(extra, lora)
            key = salted_key(salt)
            block = _Block(key, _hasher(key) if plain else None, (), 0)
        else:
            parent = self._blocks.get(before)
            if parent is None:
                return None
            hashing = parent.hashing.copy() if parent.hashing is not None and not extra else None
            block = _Block(parent.key, hashing, parent.run, parent.filled)
            if block.filled >= self._slice_tokens:
                block.run, block.filled = (), 0
                if hashing is not None:
                    block.hashing = _hasher(parent.key, hashing.digest())
        if block.hashing is not None:
            block.hashing.update(array("I", tokens).tobytes())
        block.run, block.filled = (*block.run, block_hash), block.filled + len(tokens)
        return block

    def _add(self, block_hash: bytes, block: _Block) -> list[SliceId]:
        """It is there: so may be slices that it is a part of, or the last of."""
        found: list[SliceId] = []
        self._blocks[block_hash] = block
        for last in self._parts.get(block_hash, ()):
            one = self._slices[last]
            one.missing -= 1
            if not one.missing:
                found.append(one.name)
        if block.filled == self._slice_tokens:
            name = made_up(block_hash) if block.hashing is None else SliceId(block.hashing.hexdigest())
            missing = sum(part not in self._blocks for part in block.run)
            self._slices[block_hash] = _Slice(name, block.run, missing)
            for part in block.run:
                self._parts.setdefault(part, {})[block_hash] = None
            if block.hashing is not None:
                self._learn(block_hash, name)
            if not missing:
                found.append(name)
        return found

    def _remove(self, block_hash: bytes) -> list[SliceId]:
        gone: list[SliceId] = []
        del self._blocks[block_hash]
        for last in self._parts.get(block_hash, ()):
            one = self._slices[last]
            if not one.missing:
                gone.append(one.name)
            one.missing += 1
        one_less = self._slices.pop(block_hash, None)
        if one_less is not None:
            self.evictions += 1
            self._forget(block_hash, one_less.blocks)
        return gone

    def _forget(self, last: bytes, parts: Iterable[bytes]) -> None:
        for part in parts:
            slices = self._parts[part]
            del slices[last]
            if not slices:
                del self._parts[part]


def _of_device(event: Any) -> bool:
    return event.medium in (None, DEVICE) and not event.group_idx


def _bytes(block_hash: bytes | int) -> bytes:
    return block_hash if isinstance(block_hash, bytes) else block_hash.to_bytes(8, "big")


def _hasher(key: bytes, before: bytes = b"") -> Any:
    """See kvstore/fingerprint.py: the same bytes in the same order."""
    return blake2b(before, digest_size=FINGERPRINT_BYTES, key=key)


def _salt(extra: Any, lora: str | None) -> tuple[str, bool]:
    """The cache salt of a prompt, and whether it is all that makes its KV another's than that of the same tokens."""
    if lora is not None:
        return "", False
    if not extra:
        return "", True
    only = extra[0]
    return (only, True) if len(extra) == 1 and isinstance(only, str) else ("", False)
