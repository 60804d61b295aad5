"""Which NATS and which Redis: those that were named, those of a running `tidegate up`, or children of our own."""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from events.base import LogError, PoolId
from events.log.jetstream import JetStreamLog, connect
from services.runtime import state_dir
from services.runtime.config import Config, without_password
from services.runtime.snapshot import replace_file

if TYPE_CHECKING:
    from services.runtime.embedded import EmbeddedServer

PROBE_TIMEOUT_S = 3.0
LOOK_EVERY_S = 0.1
RESTARTS_MAX = 10
"""Of one child within `RESTARTS_WINDOW_S`; then it is no accident any more."""
RESTARTS_WINDOW_S = 60.0

logger = logging.getLogger(__name__)

T = TypeVar("T", "Door", "Servers")


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """Where a gateway serves, and in which process."""

    url: str
    pid: int


class Servers(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses with their credentials: hand them on, do not print them. `pid`: who keeps them up (0 = not us).
    `nats_where` and `redis_where` may be printed."""

    nats_url: str
    redis_url: str
    nats_where: str
    redis_where: str
    pid: int = 0

    def environment(self) -> dict[str, str]:
        """The variables by which a child process finds them; they win over a file's URL."""
        return {"TIDEGATE_NATS__URL": self.nats_url, "TIDEGATE_REDIS__URL": self.redis_url}


class Started(NamedTuple):
    """Where the servers are, and those of them that are children of this process."""

    addresses: Servers
    children: Sequence["EmbeddedServer"]


async def probe(config: Config, servers: Servers) -> None:
    """Raise LogError, with address and mend, unless NATS has JetStream for us and Redis answers."""
    named = msgspec.structs.replace(config, nats=msgspec.structs.replace(config.nats, url=servers.nats_url))
    async with open_log(named, PoolId(config.pool), create=True):
        pass
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    try:
        async with Redis.from_url(servers.redis_url, socket_connect_timeout=PROBE_TIMEOUT_S) as client:
            await client.ping()
    except (RedisError, OSError, ValueError) as error:
        where, mend = servers.redis_where, "start it, or set REDIS_URL"
        raise LogError(f"Redis does not answer: {error}", where=where, mend=mend) from error


def run_folder(config: Config) -> Path:
    """Where a pool's running processes leave what others need to find them."""
    return Path(config.state_dir) / config.pool / "run"


@contextmanager
def start(config: Config) -> Iterator[Started]:
    """The servers for as long as the block runs: children for each that no URL was given for, which end with it.

    Leaves their addresses in the run folder (readable by the owner only), so that `tidegate watch` and the like
    find them. Raises LogError when one does not come up, and ConfigError for the state dir.
    """
    from services.runtime.embedded import EmbeddedServer, start_nats, start_valkey

    state_dir.claim(config)
    state, children = Path(config.state_dir), list[EmbeddedServer]()
    with ExitStack() as stack:
        nats_url, nats_where = config.nats.url, without_password(config.nats.url)
        if not nats_url:
            store = Path(config.nats.store_dir) if config.nats.store_dir else state / "nats"
            nats = stack.enter_context(start_nats(store, profile=config.nats.profile))
            children.append(nats)
            nats_url, nats_where = nats.url, f"nats://{nats.where} (child, pid {nats.pid})"
        redis_url, redis_where = config.redis.url, without_password(config.redis.url)
        if not redis_url:
            valkey = stack.enter_context(start_valkey(state / "valkey"))
            children.append(valkey)
            redis_url, redis_where = valkey.url, f"{valkey.where} (child, pid {valkey.pid})"
        servers = Servers(
            nats_url=nats_url, redis_url=redis_url, nats_where=nats_where, redis_where=redis_where, pid=os.getpid()
        )
        stack.callback(_file(config).unlink, missing_ok=True)
        _leave(config, servers)
        yield Started(servers, children)


async def keep_up(children: Sequence["EmbeddedServer"]) -> None:
    """Start a child that ended again, on its address and its data. Never ends by itself. Raises LogError when one does
    not come back, or ends again and again. To be run by the main thread."""
    restarted: dict[str, deque[float]] = {child.name: deque(maxlen=RESTARTS_MAX) for child in children}
    while True:
        for child in children:
            if not child.pid:
                _check_patience(child, restarted[child.name])
                logger.warning("%s has ended and is started again", child.name)
                child.restart()
        await asyncio.sleep(LOOK_EVERY_S)


def _check_patience(child: "EmbeddedServer", restarted: deque[float]) -> None:
    now_s = time.monotonic()
    if len(restarted) == RESTARTS_MAX and now_s - restarted[0] < RESTARTS_WINDOW_S:
        what = f"{child.name} was started again {RESTARTS_MAX} times and keeps ending"
        raise LogError(what, where=child.where, mend=f"see {child.log_file}")
    restarted.append(now_s)


def running(config: Config) -> Servers | None:
    """The servers of a `tidegate up` that runs with this state dir and pool."""
    return _read(_file(config), Servers)


def door(config: Config) -> Door | None:
    """The gateway that runs with this state dir and pool, once it serves."""
    return _read(_door_file(config), Door)


@contextmanager
def open_door(config: Config, url: str) -> Iterator[None]:
    """Say where this process serves, for as long as the block runs."""
    file = _door_file(config)
    replace_file(file, msgspec.json.encode(Door(url=url, pid=os.getpid())))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def nats_url(config: Config) -> str:
    """Where the log is. Raises LogError, with the mend, when nobody said."""
    if config.nats.url:
        return config.nats.url
    servers = running(config)
    if servers is None:
        mend = "set NATS_URL or nats.url, or start `tidegate up` with this state dir first"
        raise LogError("no NATS server is named", where=f"state dir {config.state_dir}", mend=mend)
    return servers.nats_url


def redis_url(config: Config) -> str:
    """Where the views are. Raises LogError, with the mend, when nobody said."""
    if config.redis.url:
        return config.redis.url
    servers = running(config)
    if servers is None:
        mend = "set REDIS_URL or redis.url, or start `tidegate up` with this state dir first"
        raise LogError("no Redis server is named", where=f"state dir {config.state_dir}", mend=mend)
    return servers.redis_url


@asynccontextmanager
async def open_log(config: Config, pool: PoolId, *, create: bool = False) -> AsyncIterator[JetStreamLog]:
    """A pool's log on its own connection, both closed at the end. Raises LogError."""
    client = await connect(nats_url(config), name="tidegate", creds=config.nats.creds)
    try:
        log = await JetStreamLog.open(client, pool, create=create, replicas=config.nats.replicas)
        try:
            yield log
        finally:
            await log.close()
    finally:
        await client.close()


def _file(config: Config) -> Path:
    return run_folder(config) / "servers.json"


def _door_file(config: Config) -> Path:
    return run_folder(config) / "gateway.json"


def _read(file: Path, kind: type[T]) -> T | None:
    """What a process left there, if that process still runs."""
    try:
        left = msgspec.json.decode(file.read_bytes(), type=kind)
        os.kill(left.pid, 0)
    except (OSError, msgspec.DecodeError):
        return None
    return left


def _leave(config: Config, servers: Servers) -> None:
    previous = os.umask(0o077)
    try:
        replace_file(_file(config), msgspec.json.encode(servers))
    finally:
        os.umask(previous)
