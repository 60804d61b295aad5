"""A proxy between gateway and engine that passes everything on as it is, and keeps what was asked."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import aiohttp
from aiohttp import web

HOST = "127.0.0.1"
BODY_BYTES_MAX = 64 * 1024 * 1024
HOP_HEADERS = {"host", "content-length", "transfer-encoding", "connection"}


class Asked(NamedTuple):
    """One call that reached the engine."""

    path: str
    body: bytes


class RecordingProxy:
    """In front of one engine; `asked` are the calls that carried a body, in the order of their coming."""

    def __init__(self, target: str, session: aiohttp.ClientSession) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self._target, self._session = target, session

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass one call on, and its answer back piece by piece."""
        body = await request.read()
        if body:
            self.asked.append(Asked(request.path, body))
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS}
        async with self._session.request(
            request.method, self._target + request.path_qs, data=body, headers=headers
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_HEADERS}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


@asynccontextmanager
async def recording(*targets: str) -> AsyncIterator[list[RecordingProxy]]:
    """One proxy for each engine, on free loopback ports."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        proxies, runners = [RecordingProxy(target, session) for target in targets], []
        try:
            for proxy in proxies:
                app = web.Application(client_max_size=BODY_BYTES_MAX)
                app.router.add_route("*", "/{path:.*}", proxy.handle)
                runner = web.AppRunner(app)
                runners.append(runner)
                await runner.setup()
                site = web.TCPSite(runner, HOST, 0)
                await site.start()
                proxy.url = f"http://{HOST}:{runner.addresses[0][1]}"
            yield proxies
        finally:
            for runner in runners:
                await runner.cleanup()
