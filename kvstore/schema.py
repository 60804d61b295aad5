"""What KV weighs: bytes per token, block and slice, from the shape of a model."""

from enum import StrEnum
from hashlib import blake2b
from typing import Annotated

import msgspec
from msgspec import Meta

from events.slice import Tier
from kvstore.errors import UnsupportedSchema
from kvstore.fingerprint import SLICE_TOKENS

SCALE_BYTES = 4
"""A scale is a float32."""
DIGEST_BYTES = 16


class KVDtype(StrEnum):
    """Type of the stored keys and values. `fp8` is e4m3 without infinities (OCP 8-bit floats)."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"


BITS = {
    KVDtype.FLOAT32: 32, KVDtype.FLOAT16: 16, KVDtype.BFLOAT16: 16,
    KVDtype.FP8: 8, KVDtype.INT8: 8, KVDtype.INT4: 4,
}  # fmt: skip


class KVLayout(StrEnum):
    """Order of the axes in memory, outermost first, in vLLM's letters: Layers, Blocks, Heads, tokens (N), and the
    Content of one head. `LBNHC` is what FlashInfer calls NHD, `LBHNC` its HND."""

    LBNHC = "LBNHC"
    LBHNC = "LBHNC"
    LHBNC = "LHBNC"
    BLNHC = "BLNHC"
    BLHNC = "BLHNC"
    BHLNC = "BHLNC"


Count = Annotated[int, Meta(ge=1)]


class KVCacheSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """KV format of one model on one engine. Example: Llama-3-8B in bf16 weighs 131,072 bytes a token.

    `scale_values` neighbouring values of a head share one float32 scale (`head_dim` of them: one scale per token and
    head, as vLLM's `int8_per_token_head` has it); 0 says that there is none, or one per layer, which weighs nothing.
    Raises ValueError when a head does not divide into such groups.
    """

    layers: Count
    kv_heads: Count
    head_dim: Count
    dtype: KVDtype = KVDtype.BFLOAT16
    block_tokens: Count = 16
    scale_values: Annotated[int, Meta(ge=0)] = 0
    layout: KVLayout = KVLayout.LBNHC

    def __post_init__(self) -> None:
        if self.scale_values and self.head_dim % self.scale_values:
            raise ValueError(f"a head of {self.head_dim} values is not made of groups of {self.scale_values}")

    def token_values(self) -> int:
        """Numbers (keys and values) of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def token_scales(self) -> int:
        """Scales of one token over all layers."""
        return self.token_values() // self.scale_values if self.scale_values else 0

    def token_bytes(self) -> int:
        """Keys, values and their scales of one token over all layers, in bytes."""
        return self.token_values() * BITS[self.dtype] // 8 + self.token_scales() * SCALE_BYTES

    def block_bytes(self) -> int:
        """One block over all layers, in bytes."""
        return self.token_bytes() * self.block_tokens

    def slice_bytes(self, slice_tokens: int = SLICE_TOKENS) -> int:
        """One slice over all layers, in bytes. Raises ValueError when a slice is not made of whole blocks."""
        if slice_tokens % self.block_tokens:
            raise ValueError(f"a slice of {slice_tokens} tokens is not made of blocks of {self.block_tokens}")
        return self.blocks(slice_tokens) * self.block_bytes()

    def blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    def digest(self) -> str:
        """The format's name, 32 hex digits, for what is kept outside of an engine (part of a tier's namespace): equal
        when, and only when, KV bytes mean the same numbers. It is the same in every version and process; a field added
        later must not change it where it has its default."""
        named = [
            self.layers,
            self.kv_heads,
            self.head_dim,
            self.dtype,
            self.block_tokens,
            self.scale_values,
            self.layout,
        ]
        return blake2b(b"kv.v1" + msgspec.json.encode(named), digest_size=DIGEST_BYTES).hexdigest()


class PrecisionPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which dtype a slice keeps in which tier; None: that of the tier above. Nothing said, nothing is lost.

    Example: an engine in bfloat16 with `ssd = "int8"` keeps bfloat16 in DRAM, and 8 bits and one scale per token and
    head on SSD: half the bytes, half the time on the slowest link. What comes back from there is near, not equal
    (`kvstore.precision` states how near), so answers can differ from those without a cache.
    """

    dram: KVDtype | None = None
    ssd: KVDtype | None = None

    def schema_in(self, tier: Tier, schema: KVCacheSchema) -> KVCacheSchema:
        """The format in that tier of what the engine holds as `schema`.

        Raises UnsupportedSchema when a tier would hold it wider than the tier above, or in another dtype of the same
        width: bits that the tier above has lost do not come back.
        """
        match tier:
            case Tier.HBM:
                return schema
            case Tier.DRAM:
                return _narrowed(schema, self.dram, tier)
            case Tier.SSD:
                return _narrowed(self.schema_in(Tier.DRAM, schema), self.ssd, tier)

    def lossless(self, schema: KVCacheSchema) -> bool:
        """Whether KV comes back bit for bit from every tier."""
        return self.schema_in(Tier.SSD, schema) == schema


def _narrowed(above: KVCacheSchema, dtype: KVDtype | None, tier: Tier) -> KVCacheSchema:
    """Scales, where a dtype needs them or gains by them, are one per token and head."""
    if dtype is None or dtype is above.dtype:
        return above
    if BITS[dtype] >= BITS[above.dtype]:
        raise UnsupportedSchema(where=tier, why=f"{dtype} holds no more than {above.dtype}, which the tier above has")
    scale_values = above.head_dim if BITS[dtype] <= BITS[KVDtype.FP8] else 0
    return msgspec.structs.replace(above, dtype=dtype, scale_values=scale_values)
