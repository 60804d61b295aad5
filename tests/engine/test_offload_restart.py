"""What an engine wrote to its SSD is found by the next one, if that would compute the same; else it never matches."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.engine.conftest import TEXT_MODEL, build_model
from tests.engine.offload import Answer, OffloadEngine, make, prompt, running

SLICES = 9
ASKED = prompt(SLICES, seed=1)


class Yesterday(NamedTuple):
    """What an engine that is gone left behind: its files, and what it answered from a warm cache."""

    ssd: Path
    warm: Answer


@pytest.fixture(scope="module")
def yesterday(engine_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Yesterday:
    """It was killed, not stopped."""
    ssd = tmp_path_factory.mktemp("ssd")
    ssd.chmod(0o700)
    server = make(engine_python, model, tmp_path_factory.mktemp("yesterday"), name="engine", ssd=ssd)
    try:
        server.start().wait_ready()
        engine = OffloadEngine(server)
        engine.ask(ASKED)
        warm = engine.ask(ASKED)
        server.kill()
    finally:
        server.stop()
    return Yesterday(ssd, warm)


def test_slices_are_found_again_after_a_restart(
    engine_python: Path, model: Path, yesterday: Yesterday, tmp_path: Path
) -> None:
    with running(engine_python, model, tmp_path, name="engine", ssd=yesterday.ssd) as engine:
        today = engine.ask(ASKED)

    assert today.ssd == SLICES
    assert today.said == yesterday.warm.said


def test_slices_of_other_weights_never_match(
    engine_python: Path, model: Path, yesterday: Yesterday, tmp_path: Path
) -> None:
    """Same name, same architecture, same prompt: only the weights are others."""
    other = build_model(engine_python, tmp_path / TEXT_MODEL, "8")
    assert (other / "config.json").read_bytes() == (model / "config.json").read_bytes()

    with running(engine_python, other, tmp_path, name="engine", ssd=yesterday.ssd) as engine:
        first = engine.ask(ASKED)
        engine.forget_dram()
        again = engine.ask(ASKED)

    assert (first.device, first.dram, first.ssd) == (0, 0, 0)
    assert first.tokens != yesterday.warm.tokens
    assert again.ssd == SLICES
    assert again.tokens == first.tokens


def test_slices_of_another_data_type_never_match(
    engine_python: Path, model: Path, yesterday: Yesterday, tmp_path: Path
) -> None:
    types = ("--dtype", "bfloat16")
    with running(engine_python, model, tmp_path, name="engine", ssd=yesterday.ssd, arguments=types) as engine:
        first = engine.ask(ASKED)

    assert (first.device, first.dram, first.ssd) == (0, 0, 0)
