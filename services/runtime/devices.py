"""What the devices of this host say of their memory (NVML), and whose it is.

Whose: a process belongs to an engine when its command line, or that of a process above it, names the engine's port
(`--port 8001`; vLLM's default where it names none), for engines with an address on this host. What that does not find
(a container hides command lines, NVML may name no processes) belongs to the engines that say `devices` in their
settings. The rest is used by somebody else.
"""

import socket
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from events.engine import DeviceMeasured
from services.runtime.config import EngineConfig

ANCESTORS_MAX: Final = 8
VLLM_PORT: Final = 8_000
"""Where `vllm serve` listens when it is not told."""
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1", "0.0.0.0")  # noqa: S104 - compared, not bound
PERCENT_PPM: Final = 10_000


class Unseen(StrEnum):
    """Why no device is seen: bounded, so that it can label a metric."""

    NO_PACKAGE = "no_package"
    NO_LIBRARY = "no_library"
    NO_DRIVER = "no_driver"
    NO_PERMISSION = "no_permission"
    NO_DEVICE = "no_device"
    FAILED = "failed"


class NoDevices(Exception):
    """NVML shows no device."""

    def __init__(self, reason: Unseen, what: str) -> None:
        super().__init__(what)
        self.reason, self.what = reason, what


class Process(NamedTuple):
    """Who uses memory of a device: how much (0 = NVML does not say), and its command line before those above it."""

    used: int
    commands: tuple[tuple[str, ...], ...]


class Device(NamedTuple):
    """A device as NVML shows it."""

    number: int
    name: str
    bytes_total: int
    bytes_used: int
    busy_ppm: int
    processes: tuple[Process, ...]


class Devices(Protocol):
    """Where devices are read. Two kinds: NVML, and the one of the tests."""

    def read(self) -> list[Device]:
        """All of them as they are now; may take a while. Raises NoDevices."""
        ...


class NvmlDevices:
    """The devices of this host. NVML is opened for each reading: a driver may come and go."""

    def read(self) -> list[Device]:
        """See the Protocol."""
        try:
            import pynvml
        except ImportError:
            raise NoDevices(Unseen.NO_PACKAGE, "nvidia-ml-py is not installed") from None
        try:
            pynvml.nvmlInit()
            try:
                devices = [_device(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
            finally:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            raise NoDevices(_reason(pynvml, error), str(error)) from None
        if not devices:
            raise NoDevices(Unseen.NO_DEVICE, "NVML names no device")
        return devices


def measured(host: str, device: Device, engines: Sequence[EngineConfig]) -> DeviceMeasured:
    """A device's fact, with its memory divided among the engines of this host (see the module)."""
    claims = [engine for engine in engines if device.number in engine.devices]
    by_kind = {"llm_bytes": 0, "embedding_bytes": 0, "shared_bytes": 0}
    rest = device.bytes_used
    for process in device.processes:
        owner = next((engine for engine in engines if _is_of(process, engine, host)), None)
        if owner is not None:
            by_kind[_kind([owner])] += process.used
            rest -= process.used
    if claims:
        by_kind[_kind(claims)] += max(rest, 0)
    return DeviceMeasured(
        host=host, device=device.number, name=device.name, bytes_total=device.bytes_total,
        bytes_used=device.bytes_used, busy_ppm=device.busy_ppm, **by_kind,
    )  # fmt: skip


def _kind(engines: Sequence[EngineConfig]) -> str:
    llm, embedding = any(each.llm for each in engines), any(each.embedding for each in engines)
    return "shared_bytes" if llm and embedding else "embedding_bytes" if embedding else "llm_bytes"


def _is_of(process: Process, engine: EngineConfig, host: str) -> bool:
    url = urlsplit(engine.url)
    if not engine.url or url.hostname not in (*LOOPBACK, host.lower()):
        return False
    return any(_port_of(command) == url.port for command in process.commands)


def _port_of(command: tuple[str, ...]) -> int | None:
    """The port that a command line names, or vLLM's own; None where it serves nothing."""
    for word, after in zip(command, (*command[1:], ""), strict=True):
        text = after if word == "--port" else word.removeprefix("--port=") if word.startswith("--port=") else ""
        if text.isdecimal():
            return int(text)
    serves = "serve" in command or any("api_server" in word for word in command)
    return VLLM_PORT if serves and any("vllm" in word for word in command) else None


def _device(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory, name = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetName(handle)
    busy_ppm = 0
    running: list[Any] = []
    with suppress(nvml.NVMLError):  # Not every device tells (MIG, virtual ones): then it counts as idle.
        busy_ppm = nvml.nvmlDeviceGetUtilizationRates(handle).gpu * PERCENT_PPM
    with suppress(nvml.NVMLError):
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return Device(
        number=index,
        name=name.decode() if isinstance(name, bytes) else name,
        bytes_total=memory.total,
        bytes_used=memory.used,
        busy_ppm=busy_ppm,
        processes=tuple(Process(each.usedGpuMemory or 0, _commands(each.pid)) for each in running),
    )


def _reason(nvml: Any, error: Exception) -> Unseen:
    known = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: Unseen.NO_LIBRARY,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: Unseen.NO_DRIVER,
        nvml.NVML_ERROR_NO_PERMISSION: Unseen.NO_PERMISSION,
    }
    return known.get(getattr(error, "value", None), Unseen.FAILED)


def _commands(pid: int) -> tuple[tuple[str, ...], ...]:
    """The command lines of a process and of those above it, as far as this one may see."""
    commands = []
    for _ in range(ANCESTORS_MAX):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        commands.append(tuple(words))
        pid = int(stat.rpartition(")")[2].split()[1])  # After the name, which may hold anything: state, then parent.
        if pid <= 1:
            break
    return tuple(commands)


def host_name() -> str:
    """What this host is called in the log."""
    return socket.gethostname() or "host"
