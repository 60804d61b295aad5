"""What comes back of a conversion is as near as its bound says, and floats are rounded as everybody rounds them."""

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from events.base import SliceId
from events.slice import Tier
from kvstore.errors import UnsupportedSchema
from kvstore.precision import LARGEST, PLAIN, SCALED, Floats, bound, convert, decode, encode, recoder
from kvstore.schema import KVCacheSchema, KVDtype, PrecisionPolicy
from kvstore.tiers.memory import memory_tier
from kvstore.tiers.tiered import TieredBackend

FLAT = [KVDtype.FLOAT16, KVDtype.BFLOAT16, KVDtype.FP8]
WITH_SCALES = [KVDtype.FP8, KVDtype.INT8, KVDtype.INT4]
SHAPE = KVCacheSchema(layers=2, kv_heads=2, head_dim=8, dtype=KVDtype.FLOAT32)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SMALL = st.floats(-500, 500, width=32)


def there_and_back(values: list[float], dtype: KVDtype, *, scale_values: int = 0) -> tuple[Floats, Floats]:
    given_ = np.array(values, dtype=np.float32)
    data = encode(given_, dtype, scale_values=scale_values)
    return given_, decode(data, dtype, values=len(values), scale_values=scale_values)


@pytest.mark.parametrize("dtype", [KVDtype.FLOAT32, *FLAT])
@settings(deadline=None)
@given(values=st.lists(FINITE | SMALL, max_size=40))
@example(values=[0.0, -0.0, 1e-45, -1e-45, 448.0, 464.0, 2.0**-6, 2.0**-9, 2.0**-10, 3 * 2.0**-10])
def test_without_scales_a_value_comes_back_within_its_bound(dtype: KVDtype, values: list[float]) -> None:
    before, after = there_and_back(values, dtype)
    inside = np.clip(before, -LARGEST[dtype], LARGEST[dtype])
    error = np.abs(after.astype(np.float64) - inside.astype(np.float64))
    assert (error <= PLAIN[dtype].error_max(inside, inside)).all()
    assert (np.signbit(after) == np.signbit(before)).all(), "the sign is kept, of nothing too"


@pytest.mark.parametrize("dtype", WITH_SCALES)
@settings(deadline=None)
@given(groups=st.lists(st.lists(FINITE | SMALL, min_size=4, max_size=4), max_size=10))
@example(groups=[[0.0] * 4, [1e-45, 0.0, 0.0, -1e-45], [1e-38, -1e-39, 0, 0], [3.4028234663852886e38, 1.0, -1.0, 0.0]])
def test_with_scales_a_value_comes_back_within_the_bound_of_its_group(
    dtype: KVDtype, groups: list[list[float]]
) -> None:
    before, after = there_and_back([value for group in groups for value in group], dtype, scale_values=4)
    largest = np.repeat(np.abs(before.reshape(-1, 4)).max(axis=1, initial=0), 4)
    error = np.abs(after.astype(np.float64) - before.astype(np.float64))
    assert (error <= SCALED[dtype].error_max(before, largest)).all()


@pytest.mark.parametrize("dtype", WITH_SCALES)
def test_the_bound_with_scales_is_nearly_reached(dtype: KVDtype) -> None:
    """A bound that is far too wide would prove nothing."""
    values = np.random.default_rng(7).uniform(-1, 1, 4_096).astype(np.float32)
    after = decode(encode(values, dtype, scale_values=64), dtype, values=4_096, scale_values=64)
    largest = np.repeat(np.abs(values.reshape(-1, 64)).max(axis=1), 64)
    assert np.max(np.abs(after - values) / SCALED[dtype].error_max(values, largest)) > 0.7


@settings(deadline=None)
@given(st.lists(FINITE | SMALL, min_size=1, max_size=40))
def test_bfloat16_is_the_nearest_upper_half_ties_to_even(values: list[float]) -> None:
    before, after = there_and_back(values, KVDtype.BFLOAT16)
    for value, got in zip(before, after, strict=True):
        below = (value.view(np.uint32) >> 16 << 16).view(np.float32)
        above = ((value.view(np.uint32) >> 16) + 1 << 16).astype(np.uint32).view(np.float32)
        if not np.isfinite(above):
            assert got == below, "what is beyond the largest number becomes the largest number"
            continue
        down, up = abs(float(value) - float(below)), abs(float(above) - float(value))
        even = below if not int(below.view(np.uint32)) >> 16 & 1 else above
        assert got == (below if down < up else above if up < down else even)


def test_every_fp8_byte_comes_back_as_itself() -> None:
    codes = bytes(code for code in range(256) if code & 0x7F != 0x7F)
    numbers = decode(codes, KVDtype.FP8, values=254)
    assert encode(numbers, KVDtype.FP8) == codes
    assert np.isnan(decode(b"\x7f\xff", KVDtype.FP8, values=2)).all()


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (1.0, 0x38), (448.0, 0x7E), (1e9, 0x7E), (-float("inf"), 0xFE), (2.0**-6, 0x08), (2.0**-9, 0x01),
        (2.0**-10, 0x00), (3 * 2.0**-10, 0x02), (1.0625, 0x38), (1.1875, 0x3A), (float("nan"), 0x7F), (-0.0, 0x80),
    ],
)  # fmt: skip
def test_fp8_is_e4m3_as_the_open_compute_project_defines_it(value: float, code: int) -> None:
    assert encode(np.array([value], dtype=np.float32), KVDtype.FP8) == bytes([code])


@pytest.mark.parametrize("dtype", FLAT)
def test_no_number_stays_no_number(dtype: KVDtype) -> None:
    _, after = there_and_back([float("nan"), 1.0], dtype)
    assert np.isnan(after[0])
    assert after[1] == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_scaled_has_to_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        encode(np.array([1.0, value], dtype=np.float32), KVDtype.INT8, scale_values=2)


@pytest.mark.parametrize("held", [KVDtype.FLOAT32, KVDtype.FLOAT16, KVDtype.BFLOAT16])
@pytest.mark.parametrize("wanted", [*FLAT, KVDtype.INT8, KVDtype.INT4])
def test_a_token_has_the_length_that_its_schema_says_in_every_dtype(held: KVDtype, wanted: KVDtype) -> None:
    scale_values = 8 if wanted in WITH_SCALES else 0
    source = msgspec.structs.replace(SHAPE, dtype=held)
    target = msgspec.structs.replace(SHAPE, dtype=wanted, scale_values=scale_values)
    values = np.random.default_rng(3).normal(size=5 * SHAPE.token_values()).astype(np.float32)
    data = encode(values, held)
    there = convert(data, held=source, wanted=target)
    assert len(data) == 5 * source.token_bytes()
    assert len(there) == 5 * target.token_bytes()
    assert len(convert(memoryview(there), held=target, wanted=source)) == len(data)
    near = decode(there, wanted, values=len(values), scale_values=scale_values)
    exact = decode(data, held, values=len(values))
    largest = np.repeat(np.abs(exact.reshape(-1, 8)).max(axis=1), 8)
    assert (np.abs(near - exact) <= bound(target).error_max(exact, largest)).all()


@pytest.mark.parametrize("dtype", [KVDtype.FLOAT16, KVDtype.BFLOAT16, KVDtype.FP8])
@settings(deadline=None)
@given(data=st.binary(min_size=128, max_size=128))
def test_what_was_narrow_survives_a_wider_dtype_bit_for_bit(dtype: KVDtype, data: bytes) -> None:
    narrow = msgspec.structs.replace(SHAPE, dtype=dtype, layers=1, kv_heads=1)
    numbers = decode(data, dtype, values=len(data) * 8 // {"fp8": 8}.get(dtype, 16))
    usable = encode(np.where(np.isfinite(numbers), numbers, np.float32(0)), dtype)
    wide = convert(usable, held=narrow, wanted=msgspec.structs.replace(narrow, dtype=KVDtype.FLOAT32))
    assert convert(wide, held=msgspec.structs.replace(narrow, dtype=KVDtype.FLOAT32), wanted=narrow) == usable


def test_the_same_format_is_a_copy() -> None:
    data = bytearray(SHAPE.token_bytes())
    copy = convert(data, held=SHAPE, wanted=SHAPE)
    data[0] = 1
    assert copy == bytes(SHAPE.token_bytes())


@pytest.mark.parametrize("changes", [{"layers": 3}, {"head_dim": 16}, {"layout": "LBHNC"}, {"block_tokens": 32}])
def test_another_shape_or_layout_is_no_matter_of_precision(changes: dict[str, object]) -> None:
    other = msgspec.convert(msgspec.to_builtins(SHAPE) | changes, KVCacheSchema)
    with pytest.raises(UnsupportedSchema, match="only the dtype"):
        convert(b"", held=SHAPE, wanted=other)


@pytest.mark.parametrize("dtype", [KVDtype.INT8, KVDtype.INT4])
def test_integers_without_scales_are_refused(dtype: KVDtype) -> None:
    bare = msgspec.structs.replace(SHAPE, dtype=dtype)
    for call in (
        lambda: convert(bytes(SHAPE.token_bytes()), held=SHAPE, wanted=bare),
        lambda: convert(bytes(bare.token_bytes()), held=bare, wanted=SHAPE),
        lambda: bound(bare),
    ):
        with pytest.raises(UnsupportedSchema, match="needs scales"):
            call()


@pytest.mark.parametrize("size", [1, SHAPE.token_bytes() - 1, SHAPE.token_bytes() + 4])
def test_bytes_that_are_no_whole_tokens_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="whole tokens"):
        convert(bytes(size), held=SHAPE, wanted=msgspec.structs.replace(SHAPE, dtype=KVDtype.FLOAT16))
    with pytest.raises(ValueError, match="are not 3 values"):
        decode(bytes(5), KVDtype.FLOAT16, values=3)


def test_a_slice_that_was_demoted_in_fewer_bits_comes_back_near() -> None:
    schema = KVCacheSchema(layers=2, kv_heads=2, head_dim=8)
    policy = PrecisionPolicy(ssd=KVDtype.INT8)
    tiers = [memory_tier(bytes_max=1 << 20, tier=tier) for tier in (Tier.DRAM, Tier.SSD)]
    backend = TieredBackend(tiers, recode=recoder(policy, schema))
    numbers = np.random.default_rng(5).normal(size=32 * schema.token_values()).astype(np.float32)
    data, name = encode(numbers, KVDtype.BFLOAT16), SliceId("5" * 32)
    backend.put(name, data)
    backend.demote(name, source=Tier.DRAM, target=Tier.SSD)
    in_ssd = policy.schema_in(Tier.SSD, schema)
    assert backend[Tier.SSD].bytes_of(name) == 32 * in_ssd.token_bytes() < len(data)
    out = bytearray(len(data))
    assert backend.fetch(name, out).tier is Tier.SSD
    exact = decode(data, KVDtype.BFLOAT16, values=len(numbers))
    near = decode(out, KVDtype.BFLOAT16, values=len(numbers))
    largest = np.repeat(np.abs(exact.reshape(-1, 8)).max(axis=1), 8)
    narrowed, rounded = bound(in_ssd), PLAIN[KVDtype.BFLOAT16]
    most = narrowed.error_max(exact, largest)
    assert (np.abs(near - exact) <= most + rounded.error_max(np.abs(exact) + most.astype(np.float32), largest)).all()


def test_where_nothing_is_narrowed_bytes_are_handed_on_as_they_are() -> None:
    whole = recoder(PrecisionPolicy(), msgspec.structs.replace(SHAPE, dtype=KVDtype.INT8))
    data = memoryview(b"anything")
    assert whole(data, Tier.HBM, Tier.SSD) is data


def test_an_engine_whose_scales_lie_elsewhere_cannot_be_narrowed() -> None:
    with pytest.raises(UnsupportedSchema, match="needs scales"):
        recoder(PrecisionPolicy(ssd=KVDtype.INT4), msgspec.structs.replace(SHAPE, dtype=KVDtype.INT8))
