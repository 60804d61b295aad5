"""Lazy DRAM in a real vLLM: what the device had to evict is loaded again, from DRAM or SSD, and answers as before."""

from tests.engine.offload import LAZY_DRAM_SLICES, OffloadEngine, prompt

SLICES = 10


def test_what_the_device_evicted_comes_back_and_answers_as_before(lazy_engine: OffloadEngine) -> None:
    prompts = [prompt(SLICES, seed=900 + number) for number in range(4)]
    first = [lazy_engine.ask(asked) for asked in prompts]
    assert all((said.device, said.dram, said.ssd) == (0, 0, 0) for said in first)

    for _ in range(2):  # In turn: each was evicted for the others when it comes again.
        again = [lazy_engine.ask(asked) for asked in prompts]

        assert [said.tokens for said in again] == [said.tokens for said in first]
        assert sum(said.dram + said.ssd for said in again) >= 3 * SLICES
        assert sum(said.dram for said in again) >= 2 * SLICES
        assert all(said.device + said.dram + said.ssd >= SLICES - 1 for said in again)


def test_what_left_dram_too_comes_back_from_the_ssd(lazy_engine: OffloadEngine) -> None:
    asked = prompt(SLICES, seed=940)
    lazy_engine.ask(asked)
    warm = lazy_engine.ask(asked)
    for number in range(2 * LAZY_DRAM_SLICES // SLICES):
        lazy_engine.ask(prompt(SLICES, seed=941 + number))

    again = lazy_engine.ask(asked)

    assert again.device == 0
    assert again.dram + again.ssd == SLICES
    assert again.ssd > 0
    assert again.said == warm.said


def test_what_there_is_room_for_is_in_no_tier(lazy_engine: OffloadEngine) -> None:
    asked = prompt(SLICES, seed=960)
    cold = lazy_engine.ask(asked)
    warm = lazy_engine.ask(asked)
    lazy_engine.forget_device()

    again = lazy_engine.ask(asked)

    assert warm.device == SLICES
    assert (again.device, again.dram, again.ssd) == (0, 0, 0)
    assert again.tokens == warm.tokens == cold.tokens


def test_many_at_once_under_memory_pressure_say_what_each_says_alone(lazy_engine: OffloadEngine) -> None:
    """Eight prompts of eight slices, of which four share four: twice what the device holds."""
    shared = [prompt(4, seed=970 + number, tail=0) for number in range(2)]
    prompts = [shared[number % 2] + prompt(4, seed=980 + number) for number in range(8)]
    alone = [lazy_engine.ask(asked).tokens for asked in prompts]
    corrupt = lazy_engine.corrupt()

    for _ in range(3):
        assert lazy_engine.ask_at_once(prompts) == alone
    assert lazy_engine.corrupt() == corrupt
