"""Every decision has a rule in words, and a code that stays."""

import pytest

from events import codec, decisions
from events.base import EngineId, Event, RequestId
from events.decisions import (
    CancelReason,
    DeferReason,
    LinkSuspended,
    Move,
    MoveReason,
    PreemptReason,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    ShareReason,
    SharesSet,
    TransferCancelled,
    TransferOrdered,
    WakeAsked,
    Would,
)
from events.slice import Tier
from replay.outcome import VERBS
from replay.rule_words import rule_of

R, E = RequestId("r"), EngineId("e1")
ADMITTED = {"request_id": R, "engine_id": E, "output_tokens_predicted": 1, "kv_cache_tokens": 1,
            "kv_bytes_reserved": 1, "ttft_predicted_ns": 1, "slo_slack_ns": 1}  # fmt: skip
GAVE_WAY = RequestPreempted(request_id=RequestId("low"), engine_id=E, for_request=R, reason=PreemptReason.MORE_URGENT)


@pytest.mark.parametrize(
    "decision",
    [
        *[RequestDeferred(request_id=R, until_ns=1, reason=reason) for reason in DeferReason],
        *[RequestRejected(request_id=R, reason=reason) for reason in RejectReason],
        *[SharesSet(engine_id=E, llm_ppm=1, embedding_ppm=1, reason=reason) for reason in ShareReason],
        *[
            TransferOrdered(order="m1", engine_id=E, move=Move.DROP, reason=reason, slices=(), from_tier=Tier.DRAM)
            for reason in MoveReason
        ],
        *[TransferCancelled(order="m1", engine_id=E, reason=reason) for reason in CancelReason],
    ],
    ids=lambda decision: decision.reason.value,
)
def test_every_reason_has_words_and_a_code(
    decision: RequestDeferred | RequestRejected | SharesSet | TransferOrdered | TransferCancelled,
) -> None:
    rule = rule_of(decision)
    assert rule.code == f"{decision.event_kind()}:{decision.reason.value}"
    assert rule.text.endswith(".")


def test_every_kind_of_decision_has_a_verb() -> None:
    kinds = [kind for kind in codec.EVENTS if kind.__module__ == decisions.__name__]
    assert [kind for kind in kinds if kind not in VERBS] == []


@pytest.mark.parametrize(
    ("decision", "fellows", "words"),
    [
        (RequestAdmitted(**ADMITTED), [], "e1 is the first engine"),
        (RequestAdmitted(**ADMITTED), [GAVE_WAY], "low gives way on e1"),
        (RequestAdmitted(**ADMITTED | {"slo_slack_ns": -1}), [], "It cannot be in time any more"),
        (RequestAdmitted(**ADMITTED | {"slo_slack_ns": -1}, would=Would.ADMIT), [], "Enforced: admit"),
        (RequestAdmitted(**ADMITTED, resumed=True), [], "There is room again on e1"),
        (RequestAdmitted(**ADMITTED, would=Would.DEFER, reason="share"), [], "Enforced: defer (share)"),
        (GAVE_WAY, [], "A strictly more urgent request"),
        (WakeAsked(at_ns=1), [], "a tick is asked for"),
        (LinkSuspended(engine_id=E, from_tier=Tier.SSD, until_ns=9, failed=4, of=8), [], "out of use"),
        (LinkSuspended(engine_id=E, from_tier=Tier.SSD, until_ns=0), [], "in use again"),
    ],
)
def test_what_is_said(decision: Event, fellows: list[Event], words: str) -> None:
    assert words in rule_of(decision, fellows).text
