"""Holds simulated engines against measured runs of vLLM: the calibration that every modelled claim carries.

A measured run is what a server was asked, when, and how long it took. The same requests go into a simulated engine with
the same limits (`max_num_seqs`, the chunk budget, the KV memory) and the board's step model, at the times at which the
server queued them; no policy is in between. Held against each other are median and p99 of TTFT and TPOT, and tokens per
second, on the limits of GOALS.

Two runs are public (LLMServingSim's bench, vLLM 0.19, Llama-3.1-8B, 300 ShareGPT requests offered at 10 a second):

- RTX PRO 6000: all of it fits into memory, 128 sequences at most. Every request's times are there. The one figure that
  was taken from it is `costmodel.HOST_FS`, from seconds in which nothing but decoding went on (`decode_step`).
- RTX 4090: the same requests with room for 41,408 tokens, so it queues and preempts all the time. Of this one only the
  percentiles are kept. Nothing was taken from it.

What was found last ships with the package (`calibrations`), so that a report can carry it where the runs are not.
"""

import csv
import math
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

import msgspec

from events.base import NS_PER_MS, NS_PER_S, EngineId, RequestId
from events.engine import STEPS_AHEAD, Capability, StepModel
from policies.predictors.step_time import step_ns
from replay.bench.memory.report import Calibration, Checked, EngineModel, System
from replay.bench.memory.task import builder
from replay.costmodel import PROFILES, registered
from replay.engines.base import EngineBuilder
from replay.engines.job import Finished, FirstToken, Outcome, SimRequest

FOUND = "calibrations.json"
GOALS: tuple[tuple[str, str, str, float], ...] = (
    ("TTFT p50", "ttft_p50_ms", "ms", 0.10),
    ("TTFT p99", "ttft_p99_ms", "ms", 0.20),
    ("TPOT p50", "tpot_p50_ms", "ms", 0.10),
    ("TPOT p99", "tpot_p99_ms", "ms", 0.20),
    ("throughput", "tokens_per_s", "tokens/s", 0.05),
)
"""What is held against each other: title, field of Figures, unit, and how far off the model may be."""
MODELS = {
    EngineModel.LIGHT: "light engine model",
    EngineModel.VLLM_SCHEDULER: "vLLM 0.32 scheduler in virtual time",
}
_SIM = "LLMServingSim bench @5daddb2, vLLM 0.19, Llama-3.1-8B bf16"


class Asked(NamedTuple):
    """One request as the server had it: when it was queued, counted from the first one, and its lengths."""

    at_ns: int
    prompt_tokens: int
    output_tokens: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. TTFT counts from the queue on; throughput is of prompt and output tokens, from the first
    request to the last token. Percentiles are interpolated, as those of the published runs are."""

    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float
    tokens_per_s: float


class Second(NamedTuple):
    """One second of a server: tokens of prompts and of answers, sequences that run at its end, and those that wait."""

    prompt_tokens: float
    output_tokens: float
    running: int
    waiting: int


class MeasuredRun(msgspec.Struct, frozen=True, kw_only=True):
    """A server under load, and how it did. `decode_step_ms` is a step that only decodes, measured and as the board's
    step model has it, where the run shows such steps and the model was fitted to them; `aside` says what the figures do
    not."""

    name: str
    source: str
    profile: str
    kv_tokens: int
    seqs_max: int
    batch_tokens: int
    asked: tuple[Asked, ...]
    figures: Figures
    decode_step_ms: tuple[float, float] | None = None
    aside: str = ""


class _Row(msgspec.Struct):
    """A line of the run's `requests.jsonl`: times are seconds of the server's monotonic clock."""

    input_toks: int
    output_toks: int
    queued_ts: float
    first_token_ts: float
    last_token_ts: float


class _Limits(msgspec.Struct):
    max_num_seqs: int
    max_num_batched_tokens: int


class _Meta(msgspec.Struct):
    engine_kwargs: _Limits


def calibrations() -> tuple[Calibration, ...]:
    """What was found last, of every engine model and run."""
    text = files("replay").joinpath(FOUND).read_bytes()
    return msgspec.json.decode(text, type=tuple[Calibration, ...])


def uncalibrated(found: Sequence[Calibration]) -> str:
    """Why claims that rest on these carry the word `uncalibrated`, with the numbers; "" = they do not."""
    if not found:
        return "the engine models were held against no measured run"
    return "; ".join(
        f"{item.name} {100 * item.off:.1f} % off (may be {100 * item.off_max:.0f} %): {one.model} against {one.against}"
        for one in found
        for item in one.checked
        if item.off > item.off_max
    )


def calibrate(run: MeasuredRun, build: EngineBuilder, model: EngineModel) -> Calibration:
    """The run, once more, in an engine of that kind; and how far off it is."""
    modelled = figures(run.asked, simulated(run, build))
    checked = [
        Checked(
            name=title, measured=getattr(run.figures, field), modelled=round(getattr(modelled, field), 3), unit=unit,
            off_max=off_max,
        )
        for title, field, unit, off_max in GOALS
    ]  # fmt: skip
    return Calibration(
        model=f"{MODELS[model]}, {PROFILES[run.profile].step.source}",
        against=f"{run.name}: {run.source}", requests=len(run.asked), checked=tuple(checked), note=_note(run),
    )  # fmt: skip


def _note(run: MeasuredRun) -> str:
    if run.decode_step_ms is None:
        return run.aside
    seen, said = run.decode_step_ms
    return f"{run.aside}: {seen} ms, {said} ms by the model, which is fitted to them, so that is not checked"


def simulated(run: MeasuredRun, build: EngineBuilder) -> list[tuple[int, int]]:
    """First and last token of every request, in nanoseconds from the first arrival on."""
    able = Capability(seqs_max=run.seqs_max, batch_tokens_max=run.batch_tokens, steps_ahead=STEPS_AHEAD)
    described = registered("e1", ["model"], profile=run.profile, kv_tokens=run.kv_tokens, capability=able)
    engine = build(described, now_ns=0, tiers=None, faults=None, ssd=None, peer=_no_peer)
    times: dict[RequestId, list[int]] = {}
    for number, one in enumerate(run.asked):
        while (next_ns := engine.next_ns()) is not None and next_ns <= one.at_ns:
            _take(times, engine.run_until(next_ns))
        request_id = RequestId(f"r{number}")
        times[request_id] = []
        engine.submit(_asked(request_id, number, one, unit_tokens=described.block_tokens), one.at_ns)
    while (next_ns := engine.next_ns()) is not None:
        _take(times, engine.run_until(next_ns))
    return [(first_ns, last_ns) for first_ns, last_ns in times.values()]


def _asked(request_id: RequestId, number: int, one: Asked, *, unit_tokens: int) -> SimRequest:
    """Of its prompt every block has a name, which no other prompt has: who was preempted finds what is left of it."""
    blocks = tuple((number, block) for block in range(one.prompt_tokens // unit_tokens))
    return SimRequest(
        request_id=request_id, prompt_tokens=one.prompt_tokens, output_tokens=one.output_tokens, prefix=blocks,
        unit_tokens=unit_tokens,
    )  # fmt: skip


def figures(asked: Sequence[Asked], times: Sequence[tuple[int, int]]) -> Figures:
    """What a run with these first and last tokens came to."""
    ttfts = [(first_ns - one.at_ns) / NS_PER_MS for one, (first_ns, _) in zip(asked, times, strict=True)]
    tpots = [
        (last_ns - first_ns) / NS_PER_MS / (one.output_tokens - 1)
        for one, (first_ns, last_ns) in zip(asked, times, strict=True)
        if one.output_tokens > 1
    ]
    tokens = sum(one.prompt_tokens + one.output_tokens for one in asked)
    span_ns = max(last_ns for _, last_ns in times) - asked[0].at_ns
    (ttft_p50, ttft_p99), (tpot_p50, tpot_p99) = (_median_and_p99(values) for values in (ttfts, tpots))
    return Figures(
        ttft_p50_ms=ttft_p50, ttft_p99_ms=ttft_p99, tpot_p50_ms=tpot_p50, tpot_p99_ms=tpot_p99,
        tokens_per_s=tokens * NS_PER_S / span_ns,
    )  # fmt: skip


def measured_runs(folder: Path) -> tuple[MeasuredRun, ...]:
    """Both runs, from the folder of the one on RTX PRO 6000, whose requests are the other's too. OSError where it is
    not there, msgspec.DecodeError or ValueError where it is something else."""
    run = read_run(folder)
    return run, _on_rtx4090(run.asked)


def read_run(folder: Path) -> MeasuredRun:
    """The run on RTX PRO 6000, with every request's times."""
    rows = sorted(_rows(folder / "requests.jsonl"), key=lambda row: row.queued_ts)
    meta = msgspec.json.decode((folder / "meta.json").read_bytes(), type=_Meta)
    asked = tuple(Asked(_ns(row.queued_ts, rows), row.input_toks, row.output_toks) for row in rows)
    times = [(_ns(row.first_token_ts, rows), _ns(row.last_token_ts, rows)) for row in rows]
    profile = "llama-3.1-8b_rtxpro6000"
    limits = meta.engine_kwargs
    seconds = read_seconds(folder / "timeseries.csv")
    return MeasuredRun(
        name="RTX PRO 6000", profile=profile, kv_tokens=PROFILES[profile].kv_tokens(), asked=asked,
        source=f"{_SIM}, max_num_seqs {limits.max_num_seqs}, max_num_batched_tokens {limits.max_num_batched_tokens}",
        seqs_max=limits.max_num_seqs, batch_tokens=limits.max_num_batched_tokens,
        figures=_rounded(figures(asked, times)),
        decode_step_ms=decode_step(seconds, asked, times, PROFILES[profile].step, limits.max_num_seqs),
        aside="one figure was taken from this run: 1 ms a step beside the kernels, from its decode steps",
    )  # fmt: skip


def _on_rtx4090(asked: tuple[Asked, ...]) -> MeasuredRun:
    """The same requests (its dataset has the same digest) on an RTX 4090, as its summary and meta.json publish them:
    2,588 blocks of 16 tokens, 184.07 s from start to end."""
    tokens = sum(one.prompt_tokens + one.output_tokens for one in asked)
    return MeasuredRun(
        name="RTX 4090", profile="llama-3.1-8b_rtx4090", kv_tokens=2_588 * 16, seqs_max=256, batch_tokens=2_048,
        source=f"{_SIM}, max_num_seqs 256, max_num_batched_tokens 2048, 41,408 tokens of KV", asked=asked,
        figures=Figures(
            ttft_p50_ms=60_110.9, ttft_p99_ms=137_356.3, tpot_p50_ms=30.8, tpot_p99_ms=56.0,
            tokens_per_s=round(tokens / 184.070, 3),
        ),
        aside="held out: nothing was taken from this run. Memory is short all the time, so it queues and preempts",
    )  # fmt: skip


def read_seconds(path: Path) -> list[Second]:
    """The run's `timeseries.csv`, a row a second."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Second(
                float(row["prompt_throughput"]), float(row["gen_throughput"]), int(row["running"]), int(row["waiting"])
            )
            for row in csv.DictReader(file)
        ]


def decode_step(
    seconds: Sequence[Second], asked: Sequence[Asked], times: Sequence[tuple[int, int]], model: StepModel, seqs: int
) -> tuple[float, float] | None:
    """A step in which `seqs` sequences decode and nothing else goes on, in milliseconds: as the seconds of a run have
    it, and by the model at the contexts of those seconds. Seconds count where `seqs` run at both ends and no prompt
    token was computed. None without any. A second holds whole steps, so at 37 steps a second it is known to 3 %."""
    steps, modelled_ns, found = 0.0, 0, 0
    for number, (before, now) in enumerate(pairwise(seconds), start=1):
        if before.running == now.running == seqs and not now.prompt_tokens:
            found += 1
            steps += now.output_tokens / seqs
            context = _context((2 * number + 1) * NS_PER_S // 2, asked, times)
            modelled_ns += step_ns(model, tokens=seqs, context=context, seqs=seqs)
    return (round(1_000 * found / steps, 3), round(modelled_ns / found / NS_PER_MS, 3)) if steps else None


def _context(at_ns: int, asked: Sequence[Asked], times: Sequence[tuple[int, int]]) -> int:
    """Tokens that decoding sequences hold in all, if each answer came evenly."""
    return sum(
        one.prompt_tokens + one.output_tokens * (at_ns - first_ns) // (last_ns - first_ns)
        for one, (first_ns, last_ns) in zip(asked, times, strict=True)
        if first_ns < at_ns < last_ns
    )


def _rows(path: Path) -> list[_Row]:
    found = [msgspec.json.decode(line, type=_Row) for line in path.read_bytes().splitlines() if line]
    if not found:
        raise ValueError(f"{path}: no request stands there")
    return found


def _ns(seconds: float, rows: Sequence[_Row]) -> int:
    return math.floor((seconds - rows[0].queued_ts) * NS_PER_S)


def _rounded(of: Figures) -> Figures:
    return Figures(**{field: round(getattr(of, field), 3) for field in Figures.__struct_fields__})


def _median_and_p99(values: Sequence[float]) -> tuple[float, float]:
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


def _take(times: dict[RequestId, list[int]], outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        assert isinstance(outcome, FirstToken | Finished), "what a server took, an engine as large takes too"
        times[outcome.request_id].append(outcome.at_ns)


def _no_peer(_engine_id: EngineId) -> None:
    return None


class Against(msgspec.Struct, frozen=True, kw_only=True):
    """A calibration to be made: the folder of the measured run, and the kind of engine."""

    runs: str
    engine: EngineModel


def found_for(task: Against) -> list[Calibration]:
    """Both runs, in engines of that kind. ImportError where vLLM is not installed and would be needed."""
    build = builder(task.engine, System(name="calibration", title=""))
    return [calibrate(run, build, task.engine) for run in measured_runs(Path(task.runs))]
