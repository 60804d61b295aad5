"""The connection to NATS: refused early and in one clear line, then kept up for ever."""

import asyncio
import logging
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from nats.aio.client import Client
from nats.errors import Error as NatsError

from events.base import LogError

PROBE_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 5
RECONNECT_WAIT_S = 0.1
PING_EVERY_S = 5
PINGS_UNANSWERED_MAX = 2
DEFAULT_PORT = 4222
_logger = logging.getLogger("tidegate.log")


class NatsClient(Client):
    """nats-py's client that also says when the connection came or went, and keeps what the server refused.

    `up` is set while it is connected. `where` names the servers without user and password. `violation` is the
    newest permission violation: NATS reports it apart from the call, which only times out.
    """

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.violation = ""
        self.up = asyncio.Event()
        self._starting = True
        self._listeners: list[Callable[[], None]] = []

    def listen(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` whenever the connection comes, goes or is closed."""
        self._listeners.append(on_change)

    def unlisten(self, on_change: Callable[[], None]) -> None:
        """Call it no more."""
        self._listeners.remove(on_change)

    def why(self) -> str:
        """What is known about why a call was not answered."""
        if self.violation:
            return self.violation
        return str(self.last_error or "no answer") if not self.is_connected else "no answer"

    async def start(self, servers: list[str], *, name: str, creds: str) -> None:
        """Connect; from then on reconnect without limit."""
        # nats-py says int for its times, and takes seconds of any kind.
        await self.connect(
            servers=servers, name=name, user_credentials=creds or None,
            connect_timeout=CONNECT_TIMEOUT_S, max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]
            ping_interval=PING_EVERY_S, max_outstanding_pings=PINGS_UNANSWERED_MAX,
            error_cb=self._on_error, disconnected_cb=self._on_down, reconnected_cb=self._on_up, closed_cb=self._on_down,
        )  # fmt: skip
        self._starting = False
        self.up.set()

    async def close(self) -> None:
        """End the connection. What a lost one still had to send is given up: nats-py would write it to the transport
        that is gone, which uvloop answers with an error."""
        if not self.is_connected:
            self._pending, self._pending_data_size = [], 0
        await super().close()

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        if "permissions violation" in text.lower():
            self.violation = text
            _logger.warning("NATS refused: %s", text)
        elif self._starting and isinstance(error, NatsError):
            raise error  # A wrong password stays wrong: nats-py would try again without end.

    async def _on_up(self) -> None:
        self.up.set()
        self._tell()

    async def _on_down(self) -> None:
        self.up.clear()
        self._tell()

    def _tell(self) -> None:
        for on_change in list(self._listeners):
            on_change()


async def connect(url: str, *, name: str, creds: str = "") -> NatsClient:
    """A client of the servers in `url` (comma-separated), shown to NATS as `name`. `creds` is a credentials file.

    Raises LogError with address and mend when none answers or they refuse; user and password are never shown.
    """
    servers = [part.strip() for part in url.split(",") if part.strip()]
    addresses = [_address(server) for server in servers]
    where = ", ".join(f"{host}:{port}" for host, port in addresses)
    mend = "start it, or set NATS_URL"
    if not await _anyone_listens(addresses):
        raise LogError("NATS does not answer", where=where or repr(url), mend=mend)
    client = NatsClient(where)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await client.start(servers, name=name, creds=creds)
    except ImportError as error:
        raise LogError(f"a credentials file needs {error.name}", where=where, mend="pip install nkeys") from error
    except (NatsError, OSError, ValueError, TimeoutError) as error:
        await client.close()
        if not str(error):
            raise LogError("no NATS server speaks there", where=where, mend="set NATS_URL") from error
        raise LogError(f"NATS refused: {error}", where=where, mend="see user, password or NATS_CREDS") from error
    return client


def _address(server: str) -> tuple[str, int]:
    try:
        parts: SplitResult = urlsplit(server if "//" in server else f"nats://{server}")
        return parts.hostname or "localhost", parts.port or DEFAULT_PORT
    except ValueError:
        # The text may hold a password: say what is wrong, not what it was.
        raise LogError("not an address of NATS", where="NATS_URL", mend="nats://[user:password@]host:port") from None


async def _anyone_listens(addresses: list[tuple[str, int]]) -> bool:
    """Probed first, because nats-py takes two seconds to find out."""
    for host, port in addresses:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            continue
        writer.close()
        return True
    return False
