"""What keeps an engine from starting is found before it starts, and named with its mend."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from services.engines import vllm_checks
from services.engines.vllm_checks import Environment, Lack
from services.engines.vllm_command import Folders
from services.runtime.config import EngineConfig, LaunchConfig
from services.vllm_plugin.support import VLLM_VERSIONS

WELL = Environment(vllm=VLLM_VERSIONS[0], missing=[], plugin=True)


def engine(**fields: Any) -> EngineConfig:
    made: dict[str, Any] = {"id": "e1", "models": ["m"], "url": "http://127.0.0.1:0", "agent": True, "dram_bytes": 1}
    return EngineConfig(**(made | fields))


def lacks(folder: Path, found: Environment | str = WELL, **fields: Any) -> list[Lack]:
    ssd = folder / "ssd" if fields.get("ssd_bytes") else None
    return vllm_checks.lacks(engine(**fields), Folders(folder / "own", ssd), found)


def named(found: list[Lack]) -> list[str]:
    assert all(lack.mend for lack in found), "every lack has its mend"
    return [lack.what for lack in found]


def test_nothing_is_missing_where_all_is_there_and_nothing_was_made(tmp_path: Path) -> None:
    assert lacks(tmp_path, ssd_bytes=1) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "missing"),
    [
        ("python: No such file or directory", ["python"]),
        (Environment(vllm="", missing=[], plugin=True), ["vllm"]),
        (Environment(vllm="0.31.2", missing=[], plugin=True), ["vllm"]),
        (Environment(vllm="0.33.0", missing=["nats"], plugin=True), ["vllm", "plugin"]),
        (Environment(vllm=VLLM_VERSIONS[0] + "+cpu", missing=[], plugin=True), []),
        (Environment(vllm=VLLM_VERSIONS[0], missing=["blake3"], plugin=True), ["plugin"]),
    ],
)
def test_an_interpreter_must_have_a_supported_vllm_and_what_the_plugin_needs(
    tmp_path: Path, found: Environment | str, missing: list[str]
) -> None:
    assert named(lacks(tmp_path, found)) == missing


def test_a_stock_engine_needs_vllm_and_nothing_of_ours(tmp_path: Path) -> None:
    old = Environment(vllm="0.29.0", missing=["nats"], plugin=False)
    assert lacks(tmp_path, old, agent=False, dram_bytes=2**60) == []


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        [lack] = lacks(tmp_path, url=f"http://127.0.0.1:{port}")
    assert lack.what == "port"
    assert f"127.0.0.1:{port} is in use" in lack.found
    assert lacks(tmp_path, url=f"http://127.0.0.1:{port}") == []


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    assert named(lacks(tmp_path, url="http://192.0.2.1:8000")) == ["port"]


def test_more_than_fits_is_refused(tmp_path: Path) -> None:
    assert named(lacks(tmp_path, dram_bytes=2**60)) == ["/dev/shm"]
    assert named(lacks(tmp_path, ssd_bytes=2**60)) == ["ssd"]


def test_what_lies_on_the_ssd_already_counts_as_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssd").mkdir()
    (tmp_path / "ssd" / "slice").write_bytes(bytes(100))
    real = vllm_checks.shutil.disk_usage
    monkeypatch.setattr(vllm_checks.shutil, "disk_usage", lambda path: real(path)._replace(free=50))
    assert named(lacks(tmp_path, ssd_bytes=150)) == []
    assert named(lacks(tmp_path, ssd_bytes=151)) == ["ssd"]


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("")
    (tmp_path / "ssd").write_text("")
    assert named(lacks(tmp_path, ssd_bytes=1)) == ["folder", "ssd"]


def test_a_folder_that_others_can_open_is_refused_since_its_sockets_tell_tokens(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o755)
    [lack] = lacks(tmp_path)
    assert lack.mend == f"chmod 700 {tmp_path / 'own'}"


def test_a_folder_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    assert named(lacks(tmp_path / ("d" * 100))) == ["folder"]


def test_folders_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "a" / "own", tmp_path / "ssd")
    vllm_checks.make(folders)
    assert [each.stat().st_mode & 0o777 for each in folders if each] == [0o700, 0o700]


def test_an_interpreter_says_what_it_has() -> None:
    found = vllm_checks.ask(sys.executable)
    assert isinstance(found, Environment)
    assert {"zmq"} >= set(found.missing) - {"torch"}
    assert found.vllm == ""


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/true"])
def test_what_is_no_interpreter_is_said_in_one_line(python: str) -> None:
    found = vllm_checks.ask(python)
    assert isinstance(found, str)
    assert python in found


def test_the_plugin_is_found_in_this_checkout_where_it_is_not_installed() -> None:
    root = Path(__file__).parents[3]
    assert vllm_checks.plugin_path(Environment(vllm="", missing=[], plugin=False)) == str(root)
    assert vllm_checks.plugin_path(Environment(vllm="", missing=[], plugin=True)) == ""


def test_what_a_killed_engine_left_in_shared_memory_is_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_checks, "SHARED_MEMORY", tmp_path)
    for name in ("vllm_offload_tidegate-p-e1.mmap", "vllm_offload_tidegate-p-e10.mmap", "other"):
        (tmp_path / name).write_bytes(b"x")
    vllm_checks.forget_crash("tidegate-p-e1")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "vllm_offload_tidegate-p-e10.mmap"]


def test_a_launch_names_the_interpreter_to_install_into(tmp_path: Path) -> None:
    found = Environment(vllm=VLLM_VERSIONS[0], missing=["nats"], plugin=True)
    [lack] = lacks(tmp_path, found, vllm=LaunchConfig(python="/engine/python"))
    assert lack.mend == "/engine/python -m pip install 'tidegate[engine]'"
