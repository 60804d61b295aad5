"""What an engine wrote to its SSD is found by the next one, if that would compute the same; else it never matches.

Its DRAM was lazy: on the SSD is what the device evicted. What was asked last, it took with it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.engine.conftest import TEXT_MODEL, build_model
from tests.engine.offload import LAZY, LAZY_DRAM_SLICES, Answer, OffloadEngine, make, prompt, side_by_side
from tests.engine.vllm_server import VllmServer

SLICES = 9
ASKED = prompt(SLICES, seed=1)
OTHERS = [prompt(10, seed=2 + number) for number in range(4)]
"""More than the device holds."""


class Yesterday(NamedTuple):
    """What an engine that is gone left behind: what it answered from a warm cache, and to the last one."""

    warm: Answer
    last: Answer


class Today(NamedTuple):
    """Engines over the files of yesterday's: one like it, one with other weights, one with another data type."""

    same: OffloadEngine
    other_weights: OffloadEngine
    other_type: OffloadEngine


@pytest.fixture(scope="module")
def yesterday(started_lazy_engine: OffloadEngine) -> Yesterday:
    """It was killed, not stopped."""
    started_lazy_engine.ask(ASKED)
    warm = started_lazy_engine.ask(ASKED)
    *_, last = [started_lazy_engine.ask(other) for other in OTHERS]
    started_lazy_engine.server.kill()
    return Yesterday(warm, last)


@pytest.fixture(scope="module")
def today(
    engine_python: Path, model: Path, yesterday: Yesterday, lazy_ssd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Today]:
    """Started side by side: each has a part of the folder of its own."""
    del yesterday  # It is over.
    folder = tmp_path_factory.mktemp("today")
    # Same name, same architecture: only the weights are others.
    other = build_model(engine_python, folder / TEXT_MODEL, "8")
    assert (other / "config.json").read_bytes() == (model / "config.json").read_bytes()

    def server(name: str, of: Path, *more: str) -> VllmServer:
        return make(
            engine_python, of, folder, name=name, ssd=lazy_ssd, dram_slices=LAZY_DRAM_SLICES, arguments=(*LAZY, *more)
        )

    servers = [server("same", model), server("weights", other), server("type", model, "--dtype", "bfloat16")]
    with side_by_side(*servers):
        for each in servers:
            each.wait_ready()
        yield Today(*map(OffloadEngine, servers))


def test_what_was_evicted_is_found_again_after_a_restart_and_what_was_not_is_computed(
    yesterday: Yesterday, today: Today
) -> None:
    again, last = today.same.ask(ASKED), today.same.ask(OTHERS[-1])

    assert again.ssd == SLICES
    assert again.said == yesterday.warm.said
    assert (last.device, last.dram, last.ssd) == (0, 0, 0)
    assert last.tokens == yesterday.last.tokens


def test_slices_of_other_weights_never_match(yesterday: Yesterday, today: Today) -> None:
    first = today.other_weights.ask(ASKED)
    for other in OTHERS:
        today.other_weights.ask(other)
    today.other_weights.forget_dram()
    again = today.other_weights.ask(ASKED)

    assert (first.device, first.dram, first.ssd) == (0, 0, 0)
    assert first.tokens != yesterday.warm.tokens
    assert again.ssd == SLICES
    assert again.tokens == first.tokens


def test_slices_of_another_data_type_never_match(today: Today) -> None:
    first = today.other_type.ask(ASKED)

    assert (first.device, first.dram, first.ssd) == (0, 0, 0)
