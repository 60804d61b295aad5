"""Calibration of vLLM's scheduler in virtual time: what ships is what it gives today."""

from pathlib import Path

import msgspec
import pytest

from replay.bench.memory.report import EngineModel
from replay.calibration import MODELS, Against, calibrations, found_for

RUNS = Path(__file__).parents[3] / "shared/profiles/llmservingsim/bench_RTXPRO6000_Llama-3.1-8B"


@pytest.mark.skipif(not RUNS.is_dir(), reason="the measured run is not beside the checkout")
def test_what_ships_is_what_the_scheduler_gives_today() -> None:
    shipped = [one for one in calibrations() if one.model.startswith(MODELS[EngineModel.VLLM_SCHEDULER])]
    assert msgspec.to_builtins(
        found_for(Against(runs=str(RUNS), engine=EngineModel.VLLM_SCHEDULER))
    ) == msgspec.to_builtins(shipped)
