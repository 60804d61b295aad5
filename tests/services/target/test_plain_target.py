"""Targets that are no gateway of this house: sized by their tokenizer, asked in their words, watched by metrics."""

import pytest
from msgspec.structs import replace

from events.base import NS_PER_MS, EngineId, RequestKind
from events.engine import EngineMeasured
from events.request import AbortReason
from replay.bench.memory.report import RunResult
from replay.bench.memory.workloads import Offer
from replay.workloads.base import Arrival
from replay.workloads.slo import Slo
from services.runtime.config_sources import ConfigError
from services.target.options import PromptForm, TargetOptions
from services.target.probe import Target, slo_of, unloaded_ns
from services.target.run import offered
from services.target.telemetry import SinceFirst
from tests.services.target.plain_server import Plain, plain

OFFER = Offer(workload="conversation", seed=1, scale=1.0, seconds=1, engines=1)
LOAD = [
    Arrival(request_id=f"r{number}", at_ns=number * 5 * NS_PER_MS, prompt_tokens=900, output_tokens=4)
    for number in range(8)
]  # fmt: skip


async def ask(server: Plain, options: TargetOptions | None = None) -> RunResult:
    async with plain(server):
        return (await offered(server.url, LOAD, options or TargetOptions(), offer=OFFER)).result


def said(result: RunResult, part: str) -> str:
    [note] = [note for note in result.notes if part in note]
    return note


@pytest.mark.parametrize("form", list(PromptForm))
async def test_a_run_asks_nothing_that_the_target_has_from_an_earlier_one(form: PromptForm) -> None:
    """Probes neither: else a target would be held to the pace that its cache has."""

    class Any(Plain):
        def tokens(self, prompt: object) -> int:
            return 900

    runs = []
    for _ in range(2):
        server = Any()
        await ask(server, TargetOptions(prompts=form))
        runs.append({str(body["prompt"]) for body in server.asked})
    assert len(runs[0]) >= len(LOAD)
    assert not runs[0] & runs[1]


@pytest.mark.parametrize("tokenizes", [True, False])
async def test_prompts_are_sized_by_its_tokenizer_or_by_what_it_counts(tokenizes: bool) -> None:
    server = Plain(tokens_per_word=1.5, tokenizes=tokenizes)
    result = await ask(server)
    assert result.scores.prompt_tokens == pytest.approx(8 * 900, rel=0.01)
    assert "OFF" not in said(result, "by the target's count")


async def test_where_nobody_can_tell_a_word_is_taken_for_a_token_and_that_is_said() -> None:
    result = await ask(Plain(tokenizes=False, counts=False))
    assert said(result, "does not tell how long prompts were")
    assert result.scores.finished == 8


async def test_prompts_of_token_ids_are_asked_as_such() -> None:
    class Ids(Plain):
        def tokens(self, prompt: object) -> int:
            assert isinstance(prompt, list)
            return len(prompt)

    server = Ids()
    result = await ask(server, TargetOptions(prompts=PromptForm.TOKENS))
    assert result.scores.prompt_tokens == 8 * 900
    assert said(result, "made of token ids").endswith("+0.0 % of the trace's length")


async def test_answers_have_the_length_of_the_trace_where_ignore_eos_is_taken() -> None:
    server = Plain()
    await ask(server)
    assert [body["max_tokens"] for body in server.asked[-8:]] == [4] * 8
    assert all(body["ignore_eos"] is True and body["stream"] is True for body in server.asked[-8:])


async def test_a_target_that_does_not_know_ignore_eos_is_asked_without_it() -> None:
    server = Plain(takes_ignore_eos=False)
    result = await ask(server)
    assert result.scores.finished == 8
    assert not any("ignore_eos" in body for body in server.asked[-8:])
    assert said(result, "takes no ignore_eos")


async def test_its_metrics_stand_in_the_result() -> None:
    result = await ask(Plain(step_s=0.01))
    [occupancy] = [one for one in result.series if one.name == "occupancy"]
    assert occupancy.values == (250_000,)
    assert result.scores.device_ns == result.scores.window_ns, "one engine"
    assert result.scores.preemptions == 0, "what it did before the load is not of this run"


async def test_what_says_nothing_of_itself_has_no_occupancy_and_no_cost() -> None:
    result = await ask(Plain(metrics="python_info 1.0\n"))
    assert said(result, "are not known")
    assert result.scores.device_hours_per_million is None


async def test_a_stream_that_breaks_off_is_no_answer() -> None:
    result = await ask(Plain(breaks=2))
    assert result.scores.finished == 0
    assert result.scores.aborted == {str(AbortReason.ENGINE_LOST): 8}


async def test_keys_go_to_their_tenants_and_one_to_all_others() -> None:
    server = Plain()
    async with plain(server):
        load = [replace(one, tenant="blue" if number % 2 else "red") for number, one in enumerate(LOAD)]
        await offered(server.url, load, TargetOptions(keys={"blue": "k1", "": "k0"}), offer=OFFER)
    assert set(server.keys[-8:]) == {("red", "Bearer k0"), ("blue", "Bearer k1")}


async def test_a_target_that_answers_nothing_at_all_is_refused_before_the_load() -> None:
    with pytest.raises(ConfigError, match="answers no llm request"):
        await ask(Plain(refuses=True))


POINTS = ((100, 20), (1_000, 110), (2_000, 410))


@pytest.mark.parametrize(
    ("tokens", "expected"), [(100, 20), (550, 65), (1_000, 110), (1_500, 260), (3_000, 710), (50, 15)]
)
def test_unloaded_times_lie_on_the_lines_between_what_was_measured(tokens: int, expected: int) -> None:
    assert unloaded_ns(POINTS, tokens) == expected


def test_an_unloaded_time_is_never_below_nothing_and_one_point_is_enough() -> None:
    assert unloaded_ns(((1_000, 10), (1_100, 210)), 100) == 0
    assert unloaded_ns(((1_000, 10),), 5) == 10


def test_an_slo_is_the_rule_of_the_lab_with_the_measured_pace() -> None:
    target = Target(models=("m",), unloaded={RequestKind.LLM: ((1_000, 300 * NS_PER_MS), (2_000, 900 * NS_PER_MS))})
    points = target.unloaded[RequestKind.LLM]
    limits = [slo_of(replace(LOAD[0], prompt_tokens=tokens), points, Slo()).ttft_min_ns for tokens in (1_000, 2_000)]
    assert limits == [1_000 * NS_PER_MS, 1_800 * NS_PER_MS]


def test_totals_count_from_when_an_engine_was_first_heard_or_started_anew() -> None:
    since = SinceFirst()

    def told(engine: str, preemptions: int, tokens: int) -> tuple[int, int]:
        event = since.of(
            EngineMeasured(
                engine_id=EngineId(engine), running=0, waiting=0, kv_used_ppm=0, preemptions_total=preemptions,
                output_tokens_total=tokens,
            )
        )  # fmt: skip
        return event.preemptions_total, event.output_tokens_total

    assert [told("a", 3, 100), told("b", 9, 9), told("a", 5, 150)] == [(0, 0), (0, 0), (2, 50)]
    assert [told("a", 1, 10), told("a", 2, 30), told("b", 10, 9)] == [(1, 10), (2, 30), (1, 0)]
