"""Calibration: what ships is what is found, the figures are counted right, and a model that is off is called so."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from events.base import NS_PER_MS, NS_PER_S
from policies.predictors.step_time import step_ns
from replay.bench.memory.report import Checked, EngineModel
from replay.calibration import (
    GOALS,
    MODELS,
    Against,
    Asked,
    Figures,
    MeasuredRun,
    Second,
    calibrate,
    calibrations,
    decode_step,
    figures,
    found_for,
    measured_runs,
    simulated,
    uncalibrated,
)
from replay.costmodel import PROFILES
from replay.engines.light import light_engine

RUNS = Path(__file__).parents[3] / "shared/profiles/llmservingsim/bench_RTXPRO6000_Llama-3.1-8B"
MODEL = PROFILES["llama-3.1-8b_rtxpro6000"].step
ASKED = tuple(Asked(number * 30 * NS_PER_MS, 200 + 37 * number % 1_900, 5 + number % 60) for number in range(120))
NOTHING = Figures(ttft_p50_ms=0, ttft_p99_ms=0, tpot_p50_ms=0, tpot_p99_ms=0, tokens_per_s=0)


def measured(of: Figures, asked: tuple[Asked, ...] = ASKED) -> MeasuredRun:
    return MeasuredRun(
        name="a run", source="made here", profile="llama-3.1-8b_rtxpro6000", kv_tokens=60_000, seqs_max=32,
        batch_tokens=2_048, asked=asked, figures=of,
    )  # fmt: skip


def test_what_ships_covers_both_engine_models_and_both_runs_and_reaches_the_goals() -> None:
    found = calibrations()
    assert {(one.model.partition(",")[0], one.against.partition(":")[0]) for one in found} == {
        (model, run) for model in MODELS.values() for run in ("RTX PRO 6000", "RTX 4090")
    }
    assert all(one.calibrated for one in found)
    assert uncalibrated(found) == ""


def test_what_the_model_is_fitted_to_is_said_and_not_checked() -> None:
    fitted = replace(measured(NOTHING), aside="one figure was taken", decode_step_ms=(27.0, 31.0))
    found = calibrate(fitted, light_engine, EngineModel.LIGHT)
    assert [item.name for item in found.checked] == [title for title, *_ in GOALS]
    assert found.note.startswith("one figure was taken: 27.0 ms, 31.0 ms by the model")


@pytest.mark.skipif(not RUNS.is_dir(), reason="the measured run is not beside the checkout")
def test_what_ships_is_what_the_light_engine_gives_today() -> None:
    shipped = [one for one in calibrations() if one.model.startswith(MODELS[EngineModel.LIGHT])]
    assert msgspec.to_builtins(found_for(Against(runs=str(RUNS), engine=EngineModel.LIGHT))) == msgspec.to_builtins(
        shipped
    )


@pytest.mark.skipif(not RUNS.is_dir(), reason="the measured run is not beside the checkout")
def test_the_host_time_of_a_step_is_what_the_decode_steps_of_the_run_show() -> None:
    run = measured_runs(RUNS)[0]
    assert run.decode_step_ms is not None
    seen, said = run.decode_step_ms
    assert seen == pytest.approx(said, abs=0.5), "within what whole steps in whole seconds can tell"


def test_figures_by_hand() -> None:
    asked = (Asked(0, 100, 3), Asked(NS_PER_S, 50, 1), Asked(NS_PER_S, 50, 2))
    times = [(10, 30), (2_000, 2_000), (1_100, 1_120)]
    of = figures(asked, [(first * NS_PER_MS, last * NS_PER_MS) for first, last in times])
    assert of.ttft_p50_ms == pytest.approx(100)
    assert of.ttft_p99_ms == pytest.approx(100 + 0.98 * 900)
    assert of.tpot_p50_ms == pytest.approx((10 + 20) / 2), "an answer of one token has no pace"
    assert of.tokens_per_s == pytest.approx(206 / 2)


def test_a_model_is_calibrated_against_itself_and_not_against_a_server_a_fifth_slower() -> None:
    own = figures(ASKED, simulated(measured(NOTHING), light_engine))
    same = calibrate(measured(own), light_engine, EngineModel.LIGHT)
    assert same.calibrated
    assert [item.off for item in same.checked] == pytest.approx([0] * len(GOALS), abs=1e-4)
    slower = replace(own, tpot_p50_ms=own.tpot_p50_ms * 1.2, tokens_per_s=own.tokens_per_s / 1.2)
    off = calibrate(measured(slower), light_engine, EngineModel.LIGHT)
    assert not off.calibrated
    assert [item.name for item in off.checked if item.off > item.off_max] == ["TPOT p50", "throughput"]
    assert "TPOT p50 16.7 % off (may be 10 %)" in uncalibrated([off])


def test_claims_that_rest_on_nothing_are_uncalibrated() -> None:
    assert uncalibrated([]) != ""
    assert Checked(name="n", measured=0, modelled=1, unit="", off_max=0.1).off > 0.1, "in the model alone"


@dataclass
class _Server:
    """Decodes 8 sequences of 100 prompt tokens from 1.0 s to 5.0 s."""

    seqs: int = 8

    def told(self, step_ms: float) -> list[Second]:
        rate = self.seqs * 1_000 / step_ms
        full, half = Second(0, rate, self.seqs, 2), Second(500, rate / 2, self.seqs, 2)
        return [half, full, full, half, full]

    def times(self) -> tuple[list[Asked], list[tuple[int, int]]]:
        asked = [Asked(0, 100, 4_000)] * self.seqs
        return asked, [(NS_PER_S, 5 * NS_PER_S)] * self.seqs


def test_decode_steps_are_read_from_seconds_without_prompts() -> None:
    server = _Server()
    asked, times = server.times()
    found = decode_step(server.told(step_ms=12.5), asked, times, MODEL, server.seqs)
    # Whole seconds that end at 2, 3 and 5 s: in their middles 500, 1,500 and 3,500 tokens of 4,000 were made.
    contexts = [server.seqs * (100 + made) for made in (500, 1_500, 3_500)]
    said = sum(step_ns(MODEL, tokens=8, context=context, seqs=8) for context in contexts) / 3 / NS_PER_MS
    assert found == pytest.approx((12.5, said), abs=0.001)
    assert decode_step(server.told(12.5), asked, times, MODEL, server.seqs + 1) is None


@pytest.mark.parametrize("text", ["", '{"input_toks": 3}\n', "nonsense\n"])
def test_what_is_no_measured_run_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "requests.jsonl").write_text(text)
    (tmp_path / "meta.json").write_text('{"engine_kwargs": {"max_num_seqs": 8, "max_num_batched_tokens": 2048}}')
    with pytest.raises((msgspec.DecodeError, ValueError)):
        measured_runs(tmp_path)
