"""One event on one line, as `tidegate watch` shows it to people."""

import pytest

from events.base import NS_PER_S, EngineId, Event, HolderId, RequestId
from events.decisions import (
    DeferReason,
    HolderLost,
    PreemptReason,
    RequestDeferred,
    RequestPreempted,
    ShareReason,
    SharesSet,
)
from events.request import FirstTokenSeen
from services.commands.watch import fields

E1, R1 = EngineId("e1"), RequestId("r1")


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (
            RequestPreempted(
                request_id=R1, engine_id=E1, for_request=RequestId("r2"), reason=PreemptReason.MORE_URGENT,
                output_tokens=57, kv_bytes_freed=1_250_000_000,
            ),
            "request_id=r1 engine_id=e1 for_request=r2 reason=more_urgent output_tokens=57 kv_bytes_freed=1250.0MB",
        ),
        (
            SharesSet(engine_id=E1, llm_ppm=705_000, embedding_ppm=295_000, reason=ShareReason.LOAD_MOVED),
            "engine_id=e1 llm_ppm=70.5% embedding_ppm=29.5% reason=load_moved",
        ),
        (
            FirstTokenSeen(request_id=R1, engine_id=E1, ttft_ns=NS_PER_S // 4),
            "request_id=r1 engine_id=e1 ttft_ns=250.0ms",
        ),
        (
            RequestDeferred(request_id=R1, until_ns=1_763_776_800 * NS_PER_S, reason=DeferReason.SHARE),
            "request_id=r1 until_ns=1763776800000000000 reason=share",
        ),
        (HolderLost(holder=HolderId("h"), requests=(R1,) * 3), "holder=h requests=[3]"),
    ],
)  # fmt: skip
def test_amounts_are_told_in_units_that_people_read(event: Event, shown: str) -> None:
    assert fields(event) == shown
