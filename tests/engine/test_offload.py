"""KV that left the device comes back from DRAM and from SSD, and answers as if it had never left.

Here it is written through, so that it is known what is where; lazy DRAM is what all other servers of these tests have.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.tiers.slicefile import HEADER_BYTES, checksum, pack, unpack
from tests.engine.offload import SLICE_BYTES, OffloadEngine, prompt, running, slices_in

LENGTHS = (8, 11, 16)
DRAM_SLICES = 40


@pytest.fixture(scope="module")
def engine(
    engine_python: Path, model: Path, ssd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OffloadEngine]:
    """One server for all tests here; each brings prompts of its own."""
    folder = tmp_path_factory.mktemp("offload")
    whole = ("--scheduler-cls", "services.vllm_plugin.scheduler.TidegateScheduler")
    with running(
        engine_python, model, folder, name="offload", ssd=ssd, dram_slices=DRAM_SLICES, arguments=whole, lazy=False
    ) as made:
        yield made


@pytest.mark.parametrize("slices", LENGTHS)
def test_all_full_slices_come_back_from_dram_and_answer_as_a_warm_device(engine: OffloadEngine, slices: int) -> None:
    asked = prompt(slices, seed=slices)
    cold = engine.ask(asked)
    warm = engine.ask(asked)
    engine.forget_device()

    again = engine.ask(asked)

    assert (cold.device, cold.dram, cold.ssd) == (0, 0, 0)
    assert warm.device == slices
    assert (again.device, again.dram, again.ssd) == (0, slices, 0)
    assert again.said == warm.said


@pytest.mark.parametrize("slices", LENGTHS)
def test_all_full_slices_come_back_from_ssd_when_dram_has_lost_them(engine: OffloadEngine, slices: int) -> None:
    asked = prompt(slices, seed=100 + slices)
    engine.ask(asked)
    warm = engine.ask(asked)
    engine.forget_dram()

    again = engine.ask(asked)

    assert (again.device, again.dram, again.ssd) == (0, 0, slices)
    assert again.said == warm.said


def test_what_other_prompts_pushed_out_of_dram_comes_back_from_ssd(engine: OffloadEngine) -> None:
    asked = prompt(10, seed=200)
    engine.ask(asked)
    warm = engine.ask(asked)
    for seed in range(4):
        engine.ask(prompt(15, seed=210 + seed))
    engine.forget_device()

    again = engine.ask(asked)

    assert again.dram + again.ssd == 10
    assert again.ssd > 0
    assert again.said == warm.said


def test_prompt_that_dram_cannot_hold_at_once_is_served_all_the_same(engine: OffloadEngine) -> None:
    # 31 slices of each, into 40: what comes up for the end of one must not push out its own beginning, for ever.
    first, second = prompt(30, seed=300), prompt(30, seed=301)
    warm = []
    for asked in (first, second):
        engine.ask(asked)
        warm.append(engine.ask(asked))

    for asked, before in zip((first, second, first), (warm[0], warm[1], warm[0]), strict=True):
        engine.forget_device()
        again = engine.ask(asked)
        assert again.dram + again.ssd == 30
        assert again.said == before.said


def test_many_at_once_through_small_tiers_say_what_each_says_alone(engine: OffloadEngine) -> None:
    """Twelve prompts of ten slices, of which four share six: 84 slices, where DRAM holds 40."""
    shared = [prompt(6, seed=350 + number, tail=0) for number in range(3)]
    prompts = [shared[number % 3] + prompt(4, seed=360 + number) for number in range(12)]
    alone = [engine.ask(asked).tokens for asked in prompts]
    corrupt = engine.corrupt()

    for _ in range(3):
        engine.forget_device()
        assert engine.ask_at_once(prompts) == alone
    assert engine.corrupt() == corrupt


def test_prompt_of_whole_slices_comes_back_whole(engine: OffloadEngine) -> None:
    """vLLM computes its last token again, whatever it has: somebody must say what comes next."""
    asked = prompt(9, seed=400, tail=0)
    engine.ask(asked)
    warm = engine.ask(asked)
    engine.forget_device()

    again = engine.ask(asked)

    assert (again.device, again.dram, again.ssd) == (0, 9, 0)
    assert again.tokens == warm.tokens


def test_corrupted_slice_is_noticed_computed_again_and_counted(engine: OffloadEngine, ssd: Path) -> None:
    before = set(slices_in(ssd))
    asked = prompt(8, seed=500)
    engine.ask(asked)
    warm = engine.ask(asked)
    damaged = sorted(set(slices_in(ssd)) - before)[3]
    with damaged.open("r+b") as file:
        file.seek(HEADER_BYTES + SLICE_BYTES // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    corrupt = engine.corrupt()
    engine.forget_dram()

    again = engine.ask(asked)

    assert again.ssd < 8
    assert again.tokens == warm.tokens
    assert engine.corrupt() == corrupt + 1
    engine.forget_dram()
    once_more = engine.ask(asked)
    assert once_more.said == warm.said
    assert once_more.ssd == 8, "it was written again"
    assert engine.corrupt() == corrupt + 1


def test_control_a_wrong_slice_served_on_purpose_gives_other_tokens(engine: OffloadEngine, ssd: Path) -> None:
    """What makes all comparisons here mean something: with sound checksums, other KV under a slice's name is served."""
    before = set(slices_in(ssd))
    asked = prompt(8, seed=600)
    engine.ask(asked)
    warm = engine.ask(asked)
    mine = sorted(set(slices_in(ssd)) - before)
    assert len(mine) == 8
    for target, source in zip(mine, mine[1:] + mine[:1], strict=True):
        _serve_instead(target, source.read_bytes()[HEADER_BYTES:])
    corrupt = engine.corrupt()
    engine.forget_dram()

    again = engine.ask(asked)

    assert again.ssd == 8
    assert engine.corrupt() == corrupt
    assert again.tokens != warm.tokens


def test_prompts_of_another_cache_domain_never_match(engine: OffloadEngine) -> None:
    asked = prompt(8, seed=700)
    engine.ask(asked, salt="domain-a")
    engine.forget_dram()

    other = engine.ask(asked, salt="domain-b")
    engine.forget_device()
    same = engine.ask(asked, salt="domain-a")

    assert (other.device, other.dram, other.ssd) == (0, 0, 0)
    assert same.ssd == 8


def test_files_are_the_engines_alone_and_say_nothing_of_prompts(engine: OffloadEngine, ssd: Path) -> None:
    engine.ask(prompt(8, seed=800))

    files = slices_in(ssd)
    assert files
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert all(len(bytes.fromhex(path.stem)) == 36 for path in files)


def _serve_instead(target: Path, data: bytes) -> None:
    """Other bytes under this slice's name, sealed as the tier would."""
    header = unpack(target.read_bytes()[:HEADER_BYTES], where=str(target), name=target.stem)
    made = target.with_suffix(".other")
    sealed = type(header)(
        namespace=header.namespace, slice_id=header.slice_id, generation=header.generation, length=header.length,
        checksum=checksum(data),
    )  # fmt: skip
    made.write_bytes(pack(sealed) + data)
    made.chmod(0o600)
    made.replace(target)
