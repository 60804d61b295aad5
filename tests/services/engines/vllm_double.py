"""A small OpenAI-compatible server on loopback that behaves as vLLM does on the wire, with faults on request."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:num_preemptions_total{engine="0",model_name="tiny"} 7.0
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 1000.0
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 400.0
vllm:kv_block_lifetime_seconds_bucket{engine="0",le="1.0",model_name="tiny"} 4.0
vllm:kv_block_lifetime_seconds_count{engine="0",model_name="tiny"} 11.0
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 5000.0
vllm:generation_tokens_total{engine="0",model_name="tiny"} 900.0
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0",num_gpu_blocks="2048"} 1.0
"""


class VllmDouble:
    """Answers `words` tokens. `hold`: a stream stops after its first token until it is set. `break_after`: events
    after which the connection is cut (None = never)."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.words = ["a ", "tide ", "gate"]
        self.hold: asyncio.Event | None = None
        self.break_after: int | None = None
        self.refuse: tuple[int, bytes] | None = None
        self.client_left = asyncio.Event()
        self.running = 0
        self._runner: web.AppRunner | None = None

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """The three POST paths."""
        raw = await request.read()
        self.bodies.append(raw)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.refuse is not None:
            return web.Response(status=self.refuse[0], body=self.refuse[1], content_type="application/json")
        body = json.loads(raw)
        if request.path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            return web.json_response({"data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}})
        if not body.get("stream"):
            if self.hold is not None:
                await self._held()
            choice = {"index": 0, "message": {"role": "assistant", "content": "".join(self.words)}}
            return web.json_response({"choices": [{**choice, "finish_reason": "stop"}], "usage": self._usage()})
        return await self._stream(request, body)

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        self.running += 1
        try:
            for number, event in enumerate(self._events(request.path, body)):
                if self.break_after is not None and number >= self.break_after:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await response.write(f"data: {event}\n\n".encode())
                if number == 1 and self.hold is not None:
                    await self._held()
        finally:
            self.running -= 1
        return response

    def _events(self, path: str, body: dict[str, Any]) -> list[str]:
        chat = path.endswith("/chat/completions")
        pieces: list[dict[str, Any]] = [{"delta": {"role": "assistant", "content": ""}}] if chat else []
        pieces += [{"delta": {"content": word}} if chat else {"text": word} for word in self.words]
        events = [{"choices": [{"index": 0, **piece, "finish_reason": None}]} for piece in pieces]
        events[-1]["choices"][0]["finish_reason"] = "stop"
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append({"choices": [], "usage": self._usage()})  # type: ignore[dict-item]
        return [*(json.dumps(event, separators=(",", ":")) for event in events), "[DONE]"]

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": 11,
            "completion_tokens": len(self.words),
            "total_tokens": 11 + len(self.words),
            "prompt_tokens_details": {"cached_tokens": 8},
        }

    async def _held(self) -> None:
        assert self.hold is not None
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.client_left.set()
            raise

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(await request.read())
        text = body.get("prompt") or "".join(each["content"] for each in body["messages"])
        return web.json_response({"count": len(text), "max_model_len": 4096, "tokens": [ord(each) for each in text]})

    async def kill(self) -> None:
        """As a killed process: connections are cut, nobody listens any more."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            for site in list(runner.sites):
                await site.stop()
            assert runner.server is not None
            for connection in list(runner.server.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()


@asynccontextmanager
async def vllm_double() -> AsyncIterator[VllmDouble]:
    """A running double on a free port."""
    double = VllmDouble()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        app.router.add_post(path, double.chat)
    app.router.add_post("/tokenize", double.tokenize)
    for path, body in (("/version", {"version": "0.32.0"}), ("/health", {}), ("/v1/models", _MODELS)):
        app.router.add_get(path, _saying(web.json_response, body))
    app.router.add_get("/metrics", _saying(lambda text: web.Response(text=text), METRICS))
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    double._runner = runner
    double.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield double
    finally:
        await double.kill()


_MODELS = {"data": [{"id": "tiny", "max_model_len": 4096}]}


def _saying(respond: Any, what: Any) -> Any:
    async def handle(_request: web.Request) -> web.Response:
        response: web.Response = respond(what)
        return response

    return handle
