"""uvicorn inside a loop of ours: it neither owns the signals nor the logging."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.runtime.config import ConfigError, GatewayConfig

STOP_WAIT_S: Final = 5
"""How long open connections get to end by themselves."""
KEEP_ALIVE_S: Final = 75
DATE_EVERY_S: Final = 1.0
STREAM_HEAD_END: Final = b"\r\ntransfer-encoding: chunked\r\n\r\n"


class HttpServer:
    """Listens from the start, so that the address is known; `run` serves until `stop`."""

    def __init__(self, app: ASGIApp, config: GatewayConfig) -> None:
        """Raises ConfigError when the address cannot be listened on."""
        self._socket = listen(config)
        scheme = "https" if config.tls_cert else "http"
        host, port = self._socket.getsockname()[:2]
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        settings = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_WAIT_S,
            ssl_certfile=config.tls_cert or None,
            ssl_keyfile=config.tls_key or None,
        )
        self._server = _QuietServer(settings)

    async def run(self) -> None:
        """Serve until `stop`."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Take no new connection; `run` ends when the open ones have."""
        self._server.stop()


class _Protocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Through `OneWrite`."""
        super().connection_made(OneWrite(transport))  # type: ignore[arg-type]


class OneWrite:
    """A connection on which the head of a stream goes out with its first piece, which follows at once: uvicorn would
    write each by itself, and a write costs as much as all that a piece needs beside it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        """At once, but for a stream's head."""
        if data.endswith(STREAM_HEAD_END):
            self._head = data
            return
        if self._head:
            data, self._head = self._head + data, b""
        self._transport.write(data)

    def close(self) -> None:
        """Nothing is kept back."""
        self.write(b"")
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _QuietServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End `main_loop`."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """Renew the date header once a second until `stop`, instead of looking ten times a second."""
        while not await self.on_tick(0):
            try:
                async with asyncio.timeout(DATE_EVERY_S):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the program's, not the server's."""
        yield


def listen(config: GatewayConfig) -> socket.socket:
    """A socket that listens where the gateway is to serve. Raises ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        where = f"{config.host}:{config.port}"
        what = f"cannot listen on {where} ({error.strerror})"
        raise ConfigError(what, where="config", key="gateway.port", allowed="a free port, or 0 for any") from error
