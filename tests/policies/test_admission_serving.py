"""Admission: which engines can serve a request at all."""

from typing import Any

import pytest

from events.base import EngineId, RequestId
from events.decisions import (
    RejectReason,
    RequestAdmitted,
)
from events.engine import EngineRemoved, Health
from policies.admission import ADMISSION
from tests.policies.house import admitted, house, rejected
from tests.policies.words import (
    MS,
    arrived,
    embedding,
    engine,
    health,
)
from tests.spec import given


def test_a_request_that_fits_is_admitted_with_what_was_predicted() -> None:
    house().when(arrived("r", 100, out=50)).then(
        RequestAdmitted(
            request_id=RequestId("r"), engine_id=EngineId("e1"), output_tokens_predicted=50, kv_cache_tokens=150,
            kv_bytes_reserved=15_000, ttft_predicted_ns=10 * MS, slo_slack_ns=990 * MS,
            output_tokens_low=1, predictor="constant",
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "before",
    [
        (),
        (engine("e1", llm=False, embedding=True),),
        (engine("e1"), health("e1", Health.LOST)),
        (engine("e1"), health("e1", Health.DRAINING)),
        (engine("e1"), EngineRemoved(engine_id=EngineId("e1"))),
    ],
    ids=["none", "other kind", "lost", "draining", "removed"],
)
def test_without_a_ready_engine_it_is_refused(before: tuple[Any, ...]) -> None:
    given(ADMISSION, *before).when(arrived("r")).then(rejected("r", RejectReason.NO_ENGINE))


def test_an_unknown_model_has_no_engine() -> None:
    house().when(arrived("r", model="other")).then(rejected("r", RejectReason.NO_ENGINE))


def test_an_engine_that_is_ready_again_gets_work_again() -> None:
    house(health("e1", Health.LOST), health("e1", Health.READY)).when(arrived("r")).then(admitted("r"))


@pytest.mark.parametrize(
    ("request_", "ok"),
    [
        (arrived("r", 998, out=1), True),
        (arrived("r", 1_000, out=1), False),
        (arrived("r", 1_000, out=1, estimated=True), False),
        (embedding("r", 4_000, inputs=5), True),
        (embedding("r", 4_100, inputs=2), False),
    ],
    ids=["fits", "more than the KV", "estimated, more than the KV", "many inputs", "one input beyond the context"],
)
def test_what_fits_no_engine_is_too_long(request_: Any, ok: bool) -> None:
    spec = house(engines=(engine("e1", embedding=True),)).when(request_)
    spec.then(admitted("r") if ok else rejected("r", RejectReason.TOO_LONG, retry_after_ns=0))


def test_an_estimated_prompt_is_not_held_against_the_context() -> None:
    large = engine("e1", blocks=1_000)
    house(engines=(large,)).when(arrived("r", 2_000)).then(rejected("r", RejectReason.TOO_LONG))
    house(engines=(large,)).when(arrived("r", 2_000, estimated=True)).then(admitted("r"))


def test_a_predicted_length_is_cut_to_what_an_engine_can_hold_alone() -> None:
    house().when(arrived("r", 900, out=50_000)).then(admitted("r", output_tokens_predicted=100))
