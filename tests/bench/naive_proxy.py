"""The floor's proxy, a process of its own: what one writes in ten minutes with aiohttp. Argument: the upstream."""

import asyncio
import sys

import uvloop
from aiohttp import ClientSession, TCPConnector, web


async def main(upstream: str) -> None:
    session = ClientSession(connector=TCPConnector(limit=0))

    async def proxy(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {"content-type": request.content_type}
        async with session.post(upstream + request.path, data=body, headers=headers) as answer:
            response = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_post("/{path:.*}", proxy)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
