"""Light engine beside vLLM's scheduler: what is compared, and what counts as off."""

import msgspec

from replay.bench.engines import LIMITS, SEED, SHAPES, EngineTask, Figures, compared, held, play, tasks
from replay.bench.memory.report import EngineModel

FIGURES = Figures(
    requests=100, answered=90, ttft_p50_ns=100_000_000, ttft_p99_ns=900_000_000, tpot_p50_ns=10_000_000,
    tpot_p99_ns=20_000_000, tokens_per_s=1_000.0, goodput_per_s=2.0, cached_share=0.5, preemptions=9,
)  # fmt: skip
TASK = EngineTask(shape="mixed", engine=EngineModel.LIGHT, seconds=10)


def test_the_same_figures_are_within_every_limit() -> None:
    found = held([TASK], [FIGURES], [FIGURES])

    assert found.calibrated
    assert [one.name for one in found.checked] == [limit.name for limit in LIMITS]
    assert all(one.off == 0 for one in found.checked)


def test_a_figure_beyond_its_limit_is_said() -> None:
    off = msgspec.structs.replace(FIGURES, tpot_p99_ns=23_000_000)

    found = held([TASK], [off], [FIGURES])

    assert not found.calibrated
    assert [one.name for one in found.checked if one.off > one.off_max] == ["TPOT p99"]


def test_windows_are_judged_by_their_mean_and_what_one_alone_says_is_told() -> None:
    high, low = (msgspec.structs.replace(FIGURES, ttft_p99_ns=ns) for ns in (1_250_000_000, 700_000_000))
    windows = [TASK, msgspec.structs.replace(TASK, seed=12)]

    found = held(windows, [high, low], [FIGURES, FIGURES])

    assert found.calibrated, "8 % are within 20 %"
    [p99] = [one for one in found.checked if one.name == "TTFT p99"]
    assert (p99.measured, p99.modelled) == (900, 975)
    assert found.note.endswith("One window alone: TTFT p99 +38.9 % (seed 11), TTFT p99 -22.2 % (seed 12).")
    assert found.requests == 2 * FIGURES.requests
    assert not held(windows, [high, high], [FIGURES, FIGURES]).calibrated


def test_every_workload_runs_on_both_kinds_and_all_that_ends_is_told() -> None:
    asked: list[EngineTask] = []
    done: list[None] = []

    def players(some: list[EngineTask], on_done: object) -> list[Figures]:
        asked.extend(some)
        for number in range(len(some)):
            on_done(number, FIGURES)  # type: ignore[operator]
        return [FIGURES for _ in some]

    found = compared(players, players, None, seconds=5, windows=2, on_done=lambda: done.append(None))

    assert [one.calibrated for one in found] == [True] * len(SHAPES)
    assert {(task.shape, task.engine, task.seed) for task in asked} == {
        (name, kind, seed)
        for name in SHAPES
        for kind in (EngineModel.LIGHT, EngineModel.VLLM_SCHEDULER)
        for seed in (SEED, SEED + 1)
    }
    assert len(done) == len(asked)


def test_a_run_says_what_it_came_to() -> None:
    [task] = [one for one in tasks(EngineModel.LIGHT, None, seconds=30, windows=1) if one.shape == "mixed"]

    found = play(task)

    assert found.answered > 20
    assert 0.2 < found.cached_share < 0.9
    assert found.ttft_p50_ns < found.ttft_p99_ns
