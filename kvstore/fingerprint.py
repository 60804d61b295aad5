"""What KV is called: a keyed, chained fingerprint per slice of a prompt.

A slice is a run of `slice_tokens` tokens; its fingerprint covers every token before it too, so equal
fingerprints mean equal prefixes. The key belongs to a cache domain: prefixes never match across domains, and a
short prompt cannot be guessed from the log. BLAKE2b-16, because it names KV that is served: a collision would
serve another prompt's cache.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import cast

from events.base import SliceId

FINGERPRINT_BYTES = 16
KEY_BYTES = 32
TOKEN_BYTES = 4
SLICE_TOKENS = 256


def fingerprints(
    tokens: Sequence[int] | memoryview, *, key: bytes, slice_tokens: int = SLICE_TOKENS
) -> tuple[SliceId, ...]:
    """Fingerprints of the full slices, first to last; a shorter tail has none. `key` has 1 to 64 bytes.

    Token ids are packed as unsigned 32 bit: what comes so (`array("I")`, a view of one or of a numpy array) is read
    where it lies. Raises OverflowError for an id outside that range.
    """
    packed = _packed(tokens)
    step = slice_tokens * TOKEN_BYTES
    keyed = blake2b(digest_size=FINGERPRINT_BYTES, key=key).copy
    previous, out = b"", list[str]()
    for start in range(0, len(tokens) // slice_tokens * step, step):
        digest = keyed()
        digest.update(previous)
        digest.update(packed[start : start + step])
        previous = digest.digest()
        out.append(previous.hex())
    return cast(tuple[SliceId, ...], tuple(out))  # NewType's call is a part of the time worth sparing.


def _packed(tokens: Sequence[int] | memoryview) -> memoryview:
    """The bytes of the ids. Packing a list costs as much as hashing it: `fromlist` is a third quicker than the
    constructor (22 against 34 us for 8K ids), numpy four times slower."""
    if isinstance(tokens, array | memoryview):
        view = memoryview(tokens)
        if view.format == "I" and view.c_contiguous:
            return view.cast("B")
        tokens = view.tolist()
    packed = array("I")
    packed.fromlist(tokens if isinstance(tokens, list) else list(tokens))
    return memoryview(packed).cast("B")


def domain_key(secret: bytes, domain: str) -> bytes:
    """The key of a cache domain, derived from the pool's secret (both stay out of the log)."""
    return blake2b(domain.encode(), digest_size=KEY_BYTES, key=secret[:64]).digest()


def salted_key(cache_salt: str) -> bytes:
    """The key of the fingerprints of prompts that an engine keeps apart by this `cache_salt` ("" = by none).

    Whoever sees a request inside an engine sees its salt, so its slices have the same names there as at the gateway,
    and nobody needs the pool's secret for that. Any text will do as a salt.
    """
    return blake2b(cache_salt.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES, person=b"fingerprints").digest()
