"""Hints travel in a request's kv_transfer_params, and what cannot be read is no hint."""

from typing import Any

import pytest

from events.base import RequestId, SliceId, TenantId
from services.vllm_plugin import hints
from services.vllm_plugin.hints import NO_HINTS, SLICES_MAX, Hints

NAME = SliceId("0" * 32)


def test_hints_come_out_as_they_went_in() -> None:
    told = Hints(
        request_id=RequestId("r1"), tenant=TenantId("t"), priority=3, slack_ns=-5, slo_tpot_ns=7, output_expected=9,
        slices=(NAME, NAME), slice_tokens=64,
    )  # fmt: skip
    assert hints.of(told.params()) == told
    assert hints.of({"max_load_tokens": 5} | told.params()) == told


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"tidegate": None},
        {"tidegate": "r1"},
        {"tidegate": {"priority": "high"}},
        {"tidegate": {"slices": [1, 2]}},
        {"tidegate": {"slices": ["k" + "0" * 31]}},
        {"tidegate": {"slices": ["\u00e9" * 32]}},
        {"tidegate": {"slices": [NAME + "0"]}},
        {"tidegate": {"slices": [NAME + "\n"]}},
        {"tidegate": {"slice_tokens": 0}},
        {"tidegate": {"slices": [NAME] * (SLICES_MAX + 1)}},
    ],
)
def test_what_cannot_be_read_is_no_hint(params: dict[str, Any] | None) -> None:
    assert hints.of(params) == NO_HINTS
