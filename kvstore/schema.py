"""What KV weighs: bytes per token, block and slice, from the shape of a model."""

from enum import StrEnum

import msgspec


class KVDtype(StrEnum):
    """Type of the stored keys and values."""

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


class KVCacheSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """KV format of one model on one engine. Example: Llama-3-8B in bf16 weighs 131,072 bytes a token."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: KVDtype = KVDtype.BFLOAT16
    block_tokens: int = 16

    def token_bytes(self) -> int:
        """Keys and values of one token over all layers, in bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BITS[self.dtype] // 8

    def block_bytes(self) -> int:
        """One block over all layers, in bytes."""
        return self.token_bytes() * self.block_tokens

    def blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)
