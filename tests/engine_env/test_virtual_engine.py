"""vLLM's own scheduler in virtual time: what every engine keeps, with and without overlapping steps; and its own."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from events.engine import EngineRegistered
from replay.engines.tiers import TierSizes
from replay.engines.vllm_prompts import Hasher, Prompts
from replay.engines.vllm_scheduler import VllmEngine
from tests.replay.contract_engines import (
    EngineContract,
    units,
)

PROMPTS = Prompts(16)


class TestOverlapping(EngineContract):
    def make(self, registered: EngineRegistered, *, tiers: TierSizes | None = None) -> VllmEngine:
        return VllmEngine(registered, tiers=tiers, prompts=PROMPTS)


class TestStepByStep(EngineContract):
    def make(self, registered: EngineRegistered, *, tiers: TierSizes | None = None) -> VllmEngine:
        return VllmEngine(registered, tiers=tiers, prompts=PROMPTS, overlaps=False)


@pytest.mark.parametrize("prompt", [1, 15, 16, 63, 64, 65, 200])
def test_kept_hashes_are_those_that_vllm_would_compute(prompt: int) -> None:
    prompts = Prompts(16)
    prefix = units("d", 200 // 32)[: prompt // 32]
    for _ in range(2):  # Once computed, once kept.
        known = prompts.hashes(prefix, 32)
        tokens = prompts.tokens("r", prompt, prefix, 32)
        ours = request_of(tokens, Hasher(prompts.hasher, known))
        assert len(tokens) == prompt
        assert len(known) == len(prefix) * 2
        assert ours.block_hashes == request_of(tokens, prompts.hasher).block_hashes
    for made in range(40):
        ours.append_output_token_ids(made)
    whole = request_of([*tokens, *range(40)], prompts.hasher)
    assert ours.block_hashes == whole.block_hashes


def request_of(tokens: list[int], hasher: Any) -> Request:
    return Request("r", tokens, SamplingParams(max_tokens=64), None, block_hasher=hasher)
