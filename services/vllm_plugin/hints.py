"""What the gateway tells an engine about a request, beside the request: for its choices, never for its answer.

They travel as `kv_transfer_params: {"tidegate": {...}}` in the body that the engine gets, and are visible inside it as
`Request.kv_transfer_params` and `ReqContext.kv_transfer_params`. A request without hints, or with some that cannot be
read, is served as ever.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from events.base import RequestId, SliceId, TenantId
from kvstore.fingerprint import SLICE_TOKENS

KEY: Final = "tidegate"
SLICES_MAX: Final = 4_096
"""Slices named at once: a prompt of a million tokens."""

Fingerprint = Annotated[SliceId, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
"""A slice's name in the log, and none that an engine makes up itself: those two must never be one."""


class Hints(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`slack_ns` is what was left to the deadline when it was sent (0 = none is known), `slo_tpot_ns` the pace asked
    for, `output_expected` the length predicted for its answer (0 = unknown). `slices` are the names of the full slices
    of its prompt, first to last, of `slice_tokens` tokens each."""

    request_id: RequestId = RequestId("")
    tenant: TenantId = TenantId("")
    priority: int = 0
    slack_ns: int = 0
    slo_tpot_ns: int = 0
    output_expected: int = 0
    slices: Annotated[tuple[Fingerprint, ...], msgspec.Meta(max_length=SLICES_MAX)] = ()
    slice_tokens: Annotated[int, msgspec.Meta(ge=1)] = SLICE_TOKENS

    def params(self) -> dict[str, Any]:
        """As they stand in a request's `kv_transfer_params`."""
        return {KEY: msgspec.to_builtins(self)}


NO_HINTS: Final = Hints()


def of(kv_transfer_params: Mapping[str, Any] | None) -> Hints:
    """The hints of a request; NO_HINTS where it has none that can be read."""
    try:
        return msgspec.convert((kv_transfer_params or {}).get(KEY, {}), Hints)
    except msgspec.ValidationError:
        return NO_HINTS
