"""Real vLLM engines for the whole run: two for text and one for embeddings, all on the same random weights."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.engine.house import EMBEDDING_MODEL
from tests.engine.offload import LAZY, LAZY_DRAM_SLICES, OffloadEngine, private_folder, running, side_by_side
from tests.engine.steered import Steered, steered
from tests.engine.vllm_server import VllmServer

ROOT = Path(__file__).parents[2]
ENGINE_PYTHON = ROOT / ".venv-engine" / "bin" / "python"
BUILDER = Path(__file__).with_name("build_model.py")
BUILD_TIMEOUT_S = 180
TEXT_MODEL = "tiny"


class Engines(NamedTuple):
    """What serves: `texts` two engines with one model, `embedding` one."""

    texts: tuple[VllmServer, VllmServer]
    embedding: VllmServer

    def all(self) -> tuple[VllmServer, ...]:
        return (*self.texts, self.embedding)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever stands in this folder needs real engines."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def engine_python() -> Path:
    """The interpreter of the engines' own environment. Its absence is a failure: nothing is skipped in silence."""
    if not ENGINE_PYTHON.exists():
        pytest.fail("no .venv-engine: `make test-engine` builds it (deploy/vllm/README.md)", pytrace=False)
    return ENGINE_PYTHON


def build_model(engine_python: Path, folder: Path, *seed: str) -> Path:
    """The model in `folder`, of that seed."""
    built = subprocess.run(
        [engine_python, BUILDER, folder, *seed], capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="session")
def model(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny random weights, tokenizer and chat template."""
    return build_model(engine_python, tmp_path_factory.mktemp("models") / TEXT_MODEL)


@pytest.fixture(scope="session")
def started_engines(engine_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Three servers, started side by side."""
    logs = tmp_path_factory.mktemp("vllm")
    embedding_model = model.with_name(EMBEDDING_MODEL)
    embedding_model.symlink_to(model)

    def server(name: str, folder: Path, *, embedding: bool = False) -> VllmServer:
        return VllmServer(name, engine_python, folder, logs / f"{name}.log", embedding=embedding)

    engines = Engines(
        (server("text-0", model), server("text-1", model)), server("embed", embedding_model, embedding=True)
    )
    with side_by_side(*engines.all()):
        for engine in engines.all():
            engine.wait_ready()
        yield engines


@pytest.fixture
def engines(started_engines: Engines) -> Engines:
    """All three, ready: what an earlier test killed is started again."""
    dead = [engine for engine in started_engines.all() if not engine.alive]
    for engine in dead:
        engine.start()
    for engine in dead:
        engine.wait_ready()
    return started_engines


@pytest.fixture(scope="module")
def ssd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the SSD tier of a module's own engines."""
    return private_folder(tmp_path_factory, "ssd")


@pytest.fixture(scope="session")
def lazy_ssd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lazy_engine` leaves on its SSD."""
    return private_folder(tmp_path_factory, "lazy-ssd")


@pytest.fixture(scope="session")
def started_lazy_engine(
    engine_python: Path, model: Path, lazy_ssd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OffloadEngine]:
    """One server whose device and DRAM are small, with an SSD; nothing is written through."""
    folder = tmp_path_factory.mktemp("lazy")
    with running(
        engine_python, model, folder, name="lazy", ssd=lazy_ssd, dram_slices=LAZY_DRAM_SLICES, arguments=LAZY
    ) as made:
        yield made


@pytest.fixture
def lazy_engine(started_lazy_engine: OffloadEngine) -> OffloadEngine:
    """It, ready: killed by an earlier test, it is started again."""
    server = started_lazy_engine.server
    if not server.alive:
        server.start().wait_ready()
    return started_lazy_engine


@pytest.fixture(scope="session")
def steered_engine(engine_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    """One engine with the whole plugin, for all tests of choices and orders."""
    with steered(engine_python, model, tmp_path_factory.mktemp("steered")) as made:
        yield made
