"""KV in another dtype: real conversions of its bytes, for tiers that keep fewer bits, with stated errors.

Floats are rounded to nearest, ties to even, and what is beyond the largest number of a dtype becomes that number (as
engines store fp8). Where values share scales, each group is stretched so that its largest value is the largest number
of the dtype: `scale = largest / 448` for fp8 (e4m3), `/ 127` for int8, `/ 7` for int4.

Bytes are the values, then the scales (float32), both in the order in which the values lie; that is this house's own
form, in which quantised KV rests in a tier. What an engine itself holds with scales is moved as it is.

Example: [0.5, -1.0, 0.25, 0.0] in int8 with one scale for four: 64, -127, 32, 0 and 1 / 127; back: 0.504, -1, 0.252, 0.

Sources: OCP "8-bit Floating Point Specification" (2023) for e4m3; one scale per token and head is what vLLM has for
its quantised KV; KIVI (Liu, ICML 2024) for scales by group. Little-endian, as every host that runs an engine.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from events.slice import Tier
from kvstore.errors import UnsupportedSchema
from kvstore.schema import BITS, SCALE_BYTES, KVCacheSchema, KVDtype, PrecisionPolicy

Floats = NDArray[np.float32]
Bytes = bytes | bytearray | memoryview

FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
TINY: Final = float(np.finfo(np.float32).tiny)
"""The smallest scale: below it float32 has fewer bits, and so would what it scales."""
LARGEST: Final = {
    KVDtype.FLOAT32: FLOAT32_MAX, KVDtype.FLOAT16: 65_504.0, KVDtype.BFLOAT16: float.fromhex("0x1.fep127"),
    KVDtype.FP8: 448.0, KVDtype.INT8: 127.0, KVDtype.INT4: 7.0,
}  # fmt: skip
"""The largest number of each dtype."""
_SCALE_MAX: Final = {dtype: FLOAT32_MAX / most * (1 - 2.0**-22) for dtype, most in LARGEST.items()}
"""Rounded up, a scale must not carry the largest number beyond float32."""
FP8_NORMAL_MIN: Final = 2.0**-6
FP8_STEP: Final = 2.0**-9
"""Distance of the numbers below FP8_NORMAL_MIN."""
FP8_NAN: Final = 0x7F


class Bound(NamedTuple):
    """How far a value can be from what comes back: `relative` x |value| + `of_largest` x the largest |value| of its
    group (without scales: of the dtype's range, within which it must be) + `absolute`."""

    relative: float
    of_largest: float
    absolute: float

    def error_max(self, value: Floats, largest: Floats) -> NDArray[np.float64]:
        """The bound for these values, whose groups' largest are `largest`."""
        most = self.relative * np.abs(value, dtype=np.float64) + self.of_largest * np.abs(largest, dtype=np.float64)
        return np.asarray(most + self.absolute, dtype=np.float64)


FLOAT32_ULPS: Final = 2.0**-22
"""What dividing and multiplying by a scale in float32 adds, relative to the value."""
PLAIN: Final = {
    KVDtype.FLOAT32: Bound(0.0, 0.0, 0.0),
    KVDtype.FLOAT16: Bound(2.0**-11, 0.0, 2.0**-25),
    KVDtype.BFLOAT16: Bound(2.0**-8, 0.0, 2.0**-134),
    KVDtype.FP8: Bound(2.0**-4, 0.0, FP8_STEP / 2),
}
"""Errors without scales."""
SCALED: Final = {
    KVDtype.FP8: Bound(2.0**-4 + FLOAT32_ULPS, FP8_STEP / 2 / 448, 448 * TINY),
    KVDtype.INT8: Bound(FLOAT32_ULPS, 0.5 / 127, TINY),
    KVDtype.INT4: Bound(FLOAT32_ULPS, 0.5 / 7, TINY),
}
"""Errors with scales."""


def convert(data: Bytes, *, held: KVCacheSchema, wanted: KVCacheSchema) -> bytes:
    """KV bytes of whole tokens that are held in one dtype, in another; back again is the same call the other way round.

    Raises UnsupportedSchema when the two differ in more than dtype and scales, or need a scale that is not there;
    ValueError when the bytes are not those of whole tokens, or a value to be scaled is no finite number.
    """
    if _shape(held) != _shape(wanted):
        raise UnsupportedSchema(where="precision", why="shape or layout differ: only the dtype can be converted")
    if len(data) % held.token_bytes():
        raise ValueError(f"{len(data)} bytes are not whole tokens of {held.token_bytes()} bytes")
    if held == wanted:
        return bytes(data)
    values = len(data) // held.token_bytes() * held.token_values()
    numbers = decode(data, held.dtype, values=values, scale_values=held.scale_values)
    return encode(numbers, wanted.dtype, scale_values=wanted.scale_values)


def encode(values: Floats, dtype: KVDtype, *, scale_values: int = 0) -> bytes:
    """The values, first to last, as bytes of that dtype, and the scales behind them.

    Raises UnsupportedSchema when an integer dtype gets no scales; ValueError when a value to be scaled is no finite
    number, or the values do not divide into groups of `scale_values`.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if not scale_values:
        return _plain(flat, dtype)
    groups = flat.reshape(-1, scale_values)
    largest = np.max(np.abs(groups), axis=1)
    if not np.isfinite(largest).all():
        raise ValueError("what is scaled has to be a finite number")
    scales = np.clip(largest / np.float32(LARGEST[dtype]), np.float32(TINY), np.float32(_SCALE_MAX[dtype]))
    stretched = (groups / scales[:, None]).reshape(-1)
    numbers = _integers(stretched, dtype) if dtype in (KVDtype.INT8, KVDtype.INT4) else _plain(stretched, dtype)
    return numbers + bytes(scales)


def decode(data: Bytes, dtype: KVDtype, *, values: int, scale_values: int = 0) -> Floats:
    """So many values out of what `encode` made of them. Raises ValueError when the bytes are not that long."""
    size = values * BITS[dtype] // 8
    scales = values // scale_values if scale_values else 0
    if len(data) != size + scales * SCALE_BYTES:
        raise ValueError(f"{len(data)} bytes are not {values} values of {dtype} and {scales} scales")
    numbers = _numbers(np.frombuffer(data, dtype=np.uint8, count=size), dtype, scaled=bool(scale_values))
    if not scale_values:
        return numbers
    stretch = np.frombuffer(data, dtype=np.float32, offset=size)
    return (numbers.reshape(-1, scale_values) * stretch[:, None]).reshape(-1)


def recoder(policy: PrecisionPolicy, schema: KVCacheSchema) -> Callable[[memoryview, Tier, Tier], Bytes]:
    """What `kvstore.tiers.tiered.TieredBackend` takes as `recode`: slices of an engine's `schema`, in each tier in the
    dtype that the policy gives it. Raises UnsupportedSchema when the policy does not fit."""
    schemas = {tier: policy.schema_in(tier, schema) for tier in Tier}
    if not policy.lossless(schema):
        for below in schemas.values():
            bound(below)

    def recode(data: memoryview, held: Tier, wanted: Tier) -> Bytes:
        if schemas[held] == schemas[wanted]:
            return data
        return convert(data, held=schemas[held], wanted=schemas[wanted])

    return recode


def bound(schema: KVCacheSchema) -> Bound:
    """How near KV comes back that was held in this format. Raises UnsupportedSchema where `encode` would."""
    table = SCALED if schema.scale_values and schema.dtype in SCALED else PLAIN
    if schema.dtype not in table:
        raise _needs_scales(schema.dtype)
    return table[schema.dtype]


def _shape(schema: KVCacheSchema) -> tuple[int, int, int, int, str]:
    return schema.layers, schema.kv_heads, schema.head_dim, schema.block_tokens, schema.layout


def _needs_scales(dtype: KVDtype) -> UnsupportedSchema:
    return UnsupportedSchema(where="precision", why=f"{dtype} needs scales (scale_values)")


def _plain(values: Floats, dtype: KVDtype) -> bytes:
    """Without scales."""
    match dtype:
        case KVDtype.FLOAT32:
            return values.tobytes()
        case KVDtype.FLOAT16:
            return np.clip(values, -LARGEST[dtype], LARGEST[dtype]).astype(np.float16).tobytes()
        case KVDtype.BFLOAT16:
            return _to_bfloat16(values).tobytes()
        case KVDtype.FP8:
            return _to_fp8(values).tobytes()
        case KVDtype.INT8 | KVDtype.INT4:
            raise _needs_scales(dtype)


def _to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """The upper half of a float32, rounded: adding just under half of the lower half, and one more where the upper is
    odd, carries exactly when it should."""
    bits = np.clip(values, -LARGEST[KVDtype.BFLOAT16], LARGEST[KVDtype.BFLOAT16]).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _to_fp8(values: Floats) -> NDArray[np.uint8]:
    """Sign, 4 bits of exponent (bias 7), 3 of mantissa. Above FP8_NORMAL_MIN the bits of the float32 are rounded as in
    bfloat16, and its bias of 127 taken down; below, the numbers stand at equal distances."""
    size = np.minimum(np.abs(values), np.float32(LARGEST[KVDtype.FP8]))
    bits = size.view(np.uint32)
    normal = ((bits + np.uint32(0x7FFFF) + ((bits >> 20) & 1)) >> 20) - np.uint32((127 - 7) << 3)
    small = np.rint(np.minimum(size, np.float32(FP8_NORMAL_MIN)) / np.float32(FP8_STEP))
    size_bits = np.where(size < FP8_NORMAL_MIN, np.nan_to_num(small).astype(np.uint32), normal)
    size_bits = np.where(np.isnan(values), np.uint32(FP8_NAN), size_bits)
    return (size_bits | np.where(np.signbit(values), np.uint32(0x80), np.uint32(0))).astype(np.uint8)


def _integers(stretched: Floats, dtype: KVDtype) -> bytes:
    """Two's complement; two int4 share a byte, the first in its lower half."""
    whole = np.clip(np.rint(stretched), -LARGEST[dtype], LARGEST[dtype]).astype(np.int8)
    if dtype is KVDtype.INT8:
        return whole.tobytes()
    nibbles = whole.view(np.uint8) & 0xF
    return bytes(nibbles[0::2] | nibbles[1::2] << 4)


def _numbers(raw: NDArray[np.uint8], dtype: KVDtype, *, scaled: bool) -> Floats:
    """The numbers as they are stored, before any scale."""
    match dtype:
        case KVDtype.FLOAT32:
            return raw.view(np.float32).copy()
        case KVDtype.FLOAT16:
            return raw.view(np.float16).astype(np.float32)
        case KVDtype.BFLOAT16:
            return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        case KVDtype.FP8:
            return _FP8_NUMBERS[raw]
        case KVDtype.INT8 | KVDtype.INT4 if not scaled:
            raise _needs_scales(dtype)
        case KVDtype.INT8:
            return raw.view(np.int8).astype(np.float32)
        case KVDtype.INT4:
            both = np.stack((raw & 0xF, raw >> 4), axis=1).reshape(-1)
            return ((both ^ 8).astype(np.int8) - np.int8(8)).astype(np.float32)


def _fp8_numbers() -> Floats:
    """What each of the 256 bytes means."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 0xF, code & 7
    size = np.where(exponent == 0, mantissa * FP8_STEP, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size[(code & 0x7F) == FP8_NAN] = np.nan
    return np.where(code & 0x80, -size, size).astype(np.float32)


_FP8_NUMBERS: Final = _fp8_numbers()
