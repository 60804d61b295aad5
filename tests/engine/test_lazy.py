"""Lazy DRAM in a real vLLM: what the device had to evict is loaded again, and answers as it did before."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.offload import OffloadEngine, prompt, running

SLICES = 10
BLOCKS = 200
"""Of 32 tokens: room for two of the prompts with their answers."""
DRAM_SLICES = 40
CONTEXT_TOKENS_MAX = 4_096


@pytest.fixture(scope="module")
def engine(engine_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OffloadEngine]:
    """One server whose device is small, and that writes nothing through."""
    arguments = (
        "--scheduler-cls", "services.vllm_plugin.scheduler.TidegateScheduler", "--num-gpu-blocks-override", str(BLOCKS),
        "--max-num-batched-tokens", "1024", "--max-model-len", str(CONTEXT_TOKENS_MAX),
    )  # fmt: skip
    with running(
        engine_python, model, tmp_path_factory.mktemp("lazy"), name="lazy", ssd=None, dram_slices=DRAM_SLICES,
        arguments=arguments, lazy=True,
    ) as made:  # fmt: skip
        yield made


def test_what_the_device_evicted_comes_back_from_dram_and_answers_as_before(engine: OffloadEngine) -> None:
    prompts = [prompt(SLICES, seed=900 + number) for number in range(4)]
    first = [engine.ask(asked) for asked in prompts]
    assert all((said.device, said.dram) == (0, 0) for said in first)

    for _ in range(2):  # In turn: each was evicted for the others when it comes again.
        again = [engine.ask(asked) for asked in prompts]

        assert [said.tokens for said in again] == [said.tokens for said in first]
        assert sum(said.dram for said in again) >= 3 * SLICES
        assert all(said.device + said.dram >= SLICES - 1 for said in again)


def test_what_there_is_room_for_is_not_in_dram(engine: OffloadEngine) -> None:
    asked = prompt(SLICES, seed=950)
    cold = engine.ask(asked)
    warm = engine.ask(asked)
    engine.forget_device()

    again = engine.ask(asked)

    assert warm.device == SLICES
    assert (again.device, again.dram) == (0, 0)
    assert again.tokens == warm.tokens == cold.tokens


def test_many_at_once_under_memory_pressure_say_what_each_says_alone(engine: OffloadEngine) -> None:
    """Eight prompts of eight slices, of which four share four: five times what the device holds."""
    shared = [prompt(4, seed=960 + number, tail=0) for number in range(2)]
    prompts = [shared[number % 2] + prompt(4, seed=970 + number) for number in range(8)]
    alone = [engine.ask(asked).tokens for asked in prompts]

    for _ in range(3):
        assert engine.ask_at_once(prompts) == alone
