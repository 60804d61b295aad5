"""The bench of predictors: what is counted, how late answers are told, and the goals on the public traces."""

from pathlib import Path

import pytest

from events.base import NS_PER_S, PPM
from replay.bench import predictors
from replay.bench.predictors import PEER, TOKEN_NS, Row, gained, measure, name_of, read_trace, steps_of
from replay.workloads.base import Arrival

TRACES = Path(__file__).parents[3].parent / "shared/traces"
PUBLIC = (
    TRACES / "mooncake/conversation_trace.t0-1800000ms.jsonl.gz",
    TRACES / "azure2023/AzureLLMInferenceTrace_conv.before_1845.csv.gz",
)


def every(seconds: int, *outputs: int) -> list[Arrival]:
    return [
        Arrival(at_ns=number * seconds * NS_PER_S, request_id=f"r{number}", prompt_tokens=100, output_tokens=tokens)
        for number, tokens in enumerate(outputs)
    ]


def test_all_predictors_and_the_peer_are_measured_on_the_same_requests() -> None:
    done: list[int] = []
    arrivals = every(10, *[50] * 1_600)
    rows = measure("flat", arrivals, on_progress=done.append)
    assert [row.predictor for row in rows] == ["quantile", "moving_average", "constant", PEER]
    assert {(row.trace, row.requests, row.tokens_max) for row in rows} == {("flat", 1_100, 50)}
    assert done == sorted(done)
    assert done[-1] == steps_of(arrivals)
    constant = rows[2]
    assert (constant.coverage_ppm, constant.windows_ppm) == (PPM, [PPM])
    assert constant.loss_millitokens == (512 - 50) * 100, "0.1 per token too many"


def test_a_bound_that_is_too_low_costs_nine_times_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictors, "TOKENS_DEFAULT", 40)
    (row,) = [row for row in measure("flat", every(10, *[50] * 600)) if row.predictor == "constant"]
    assert (row.loss_millitokens, row.coverage_ppm) == (9_000, 0)


def test_an_answer_is_not_known_before_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictors, "WARM_UP", 0)
    slow = every(1, *[10_000] * 100)
    assert 10_000 * TOKEN_NS > 100 * NS_PER_S
    assert {row.coverage_ppm for row in measure("slow", slow)} == {0}, "nobody ever heard of one"


def test_the_goal_is_below_the_peer_on_one_trace_and_above_it_on_none() -> None:
    def row(to_peer_ppm: int, predictor: str = "quantile") -> Row:
        return Row(
            trace="t", predictor=predictor, requests=1, coverage_ppm=PPM, windows_ppm=[900_000], loss_millitokens=1,
            loss_to_peer_ppm=to_peer_ppm, width_median=1, tokens_max=1,
        )  # fmt: skip

    assert gained([row(970_000), row(PPM), row(2 * PPM, "constant")])
    assert not gained([row(970_000), row(PPM + 1)])
    assert not gained([row(970_001), row(PPM)])
    assert not gained([])
    assert row(PPM).covers


def test_a_trace_is_known_by_its_file_name(tmp_path: Path) -> None:
    azure = tmp_path / "azure.v1.csv"
    azure.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,374,44\n")
    mooncake = tmp_path / "moon.jsonl"
    mooncake.write_text('{"timestamp": 0, "input_length": 7, "output_length": 5, "hash_ids": [1]}\n')
    assert [read_trace(path)[0].prompt_tokens for path in (azure, mooncake)] == [374, 7]
    assert [name_of(path) for path in (azure, mooncake, Path("x/y.csv.gz"))] == ["azure.v1", "moon", "y"]


@pytest.mark.skipif(not all(path.exists() for path in PUBLIC), reason="the public traces are not here")
def test_on_the_public_conversations_coverage_is_kept_and_the_loss_is_below_the_peers() -> None:
    rows = [row for path in PUBLIC for row in measure(name_of(path), read_trace(path))]
    ours = [row for row in rows if row.predictor == "quantile"]
    assert all(row.covers for row in ours)
    assert gained(rows)
    assert all(row.width_median < row.tokens_max for row in ours)
