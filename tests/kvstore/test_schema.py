"""What KV weighs is arithmetic, and what it is called changes with all that changes its bytes."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.slice import Tier
from kvstore.errors import UnsupportedSchema
from kvstore.schema import BITS, KVCacheSchema, KVDtype, KVLayout, PrecisionPolicy

LLAMA_8B = KVCacheSchema(layers=32, kv_heads=8, head_dim=128)
OTHERS = {
    "layers": 33, "kv_heads": 4, "head_dim": 64, "dtype": KVDtype.FLOAT16, "block_tokens": 32, "scale_values": 64,
    "layout": KVLayout.LBHNC,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "token_bytes"),
    [
        ({}, 131_072),
        ({"dtype": KVDtype.FLOAT32}, 262_144),
        ({"dtype": KVDtype.FP8}, 65_536),  # One scale per layer weighs nothing.
        ({"dtype": KVDtype.INT8, "scale_values": 128}, 65_536 + 2 * 32 * 8 * 4),
        ({"dtype": KVDtype.INT4, "scale_values": 32}, 32_768 + 2 * 32 * 8 * 4 * 4),
        ({"kv_heads": 1, "head_dim": 576, "layers": 61}, 2 * 61 * 576 * 2),
    ],
)
def test_a_token_weighs_its_keys_values_and_scales(changes: dict[str, object], token_bytes: int) -> None:
    schema = msgspec.structs.replace(LLAMA_8B, **changes)
    assert schema.token_bytes() == token_bytes
    assert schema.block_bytes() == 16 * token_bytes
    assert schema.slice_bytes() == 256 * token_bytes
    assert schema.slice_bytes(64) == 64 * token_bytes


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 64))
def test_blocks_hold_all_tokens_and_not_a_block_more(tokens: int, block_tokens: int) -> None:
    blocks = msgspec.structs.replace(LLAMA_8B, block_tokens=block_tokens).blocks(tokens)
    assert blocks * block_tokens >= tokens > (blocks - 1) * block_tokens or tokens == blocks == 0


def test_a_slice_is_made_of_whole_blocks() -> None:
    with pytest.raises(ValueError, match="100 tokens is not made of blocks of 16"):
        LLAMA_8B.slice_bytes(100)


@pytest.mark.parametrize(
    "wrong", [{"layers": 0}, {"scale_values": 48}, {"scale_values": -1}, {"dtype": "int9"}, {"x": 1}]
)
def test_a_format_that_cannot_be_is_refused_when_it_is_read(wrong: dict[str, object]) -> None:
    said = {"layers": 32, "kv_heads": 8, "head_dim": 128} | wrong
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(said, KVCacheSchema)


def test_the_name_of_a_format_never_changes_from_version_to_version() -> None:
    assert LLAMA_8B.digest() == "b9054f44171420178508a30bb5ac6850"


def test_what_changes_the_bytes_changes_the_name() -> None:
    assert set(OTHERS) == set(LLAMA_8B.__struct_fields__), "every field is part of the name"
    changed = [msgspec.structs.replace(LLAMA_8B, **{name: value}) for name, value in OTHERS.items()]
    assert len({schema.digest() for schema in (LLAMA_8B, *changed)}) == 1 + len(OTHERS)


@pytest.mark.parametrize(
    ("policy", "dram", "ssd", "lossless"),
    [
        (PrecisionPolicy(), (KVDtype.BFLOAT16, 0), (KVDtype.BFLOAT16, 0), True),
        (PrecisionPolicy(ssd=KVDtype.INT8), (KVDtype.BFLOAT16, 0), (KVDtype.INT8, 128), False),
        (PrecisionPolicy(dram=KVDtype.FP8), (KVDtype.FP8, 128), (KVDtype.FP8, 128), False),
        (PrecisionPolicy(dram=KVDtype.FP8, ssd=KVDtype.INT4), (KVDtype.FP8, 128), (KVDtype.INT4, 128), False),
        (PrecisionPolicy(dram=KVDtype.BFLOAT16), (KVDtype.BFLOAT16, 0), (KVDtype.BFLOAT16, 0), True),
    ],
)  # fmt: skip
def test_a_slice_keeps_the_dtype_that_its_tier_is_given(
    policy: PrecisionPolicy, dram: tuple[KVDtype, int], ssd: tuple[KVDtype, int], lossless: bool
) -> None:
    assert policy.schema_in(Tier.HBM, LLAMA_8B) == LLAMA_8B
    in_dram, in_ssd = (policy.schema_in(tier, LLAMA_8B) for tier in (Tier.DRAM, Tier.SSD))
    assert (in_dram.dtype, in_dram.scale_values) == dram
    assert (in_ssd.dtype, in_ssd.scale_values) == ssd
    assert policy.lossless(LLAMA_8B) is lossless


@settings(deadline=None)
@given(st.sampled_from(KVDtype), st.none() | st.sampled_from(KVDtype), st.none() | st.sampled_from(KVDtype))
def test_a_lower_tier_never_weighs_more_or_it_is_refused(
    held: KVDtype, dram: KVDtype | None, ssd: KVDtype | None
) -> None:
    schema, policy = msgspec.structs.replace(LLAMA_8B, dtype=held), PrecisionPolicy(dram=dram, ssd=ssd)
    try:
        weights = [policy.schema_in(tier, schema).token_bytes() for tier in (Tier.HBM, Tier.DRAM, Tier.SSD)]
    except UnsupportedSchema:
        chain = [held, *(dtype for dtype in (dram, ssd) if dtype is not None)]
        assert any(BITS[below] >= BITS[above] and below is not above for above, below in pairwise(chain))
    else:
        assert weights == sorted(weights, reverse=True)
