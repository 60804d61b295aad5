"""A plain OpenAI-compatible server on loopback, scripted: what a target may be that is no gateway of this house."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

METRICS = """\
vllm:num_requests_running{engine="0"} 1.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:num_preemptions_total{engine="0"} 3.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0
"""


@dataclass
class Plain:
    """Answers each prompt with as many events as asked for, `step_s` apart. `tokens_per_word` is its tokenizer's;
    without `tokenizes` it cannot be asked, without `counts` it tells no usage. It `breaks` off after so many
    events, or `refuses` all."""

    tokens_per_word: float = 1.5
    tokenizes: bool = True
    counts: bool = True
    takes_ignore_eos: bool = True
    breaks: int = 0
    refuses: bool = False
    metrics: str = METRICS
    step_s: float = 0.001
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def tokens(self, prompt: str) -> int:
        return 1 + round(len(prompt.split()) * self.tokens_per_word)

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "plain"}]})

    async def tokenize(self, request: web.Request) -> web.Response:
        if not self.tokenizes:
            raise web.HTTPNotFound
        return web.json_response({"count": self.tokens((await request.json())["prompt"])})

    async def health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def show_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        tenant = request.headers.get("x-llm-d-inference-fairness-id", "")
        self.keys.append((tenant, request.headers.get("authorization", "")))
        if self.refuses or ("ignore_eos" in body and not self.takes_ignore_eos):
            return web.json_response({"error": {"message": "unknown field"}}, status=400)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(body["max_tokens"]):
            if self.breaks and number == self.breaks:
                return response
            await asyncio.sleep(self.step_s)
            await response.write(b'data: {"choices":[{"text":"x","finish_reason":null}]}\n\n')
        if self.counts:
            usage = {"prompt_tokens": self.tokens(body["prompt"]), "completion_tokens": body["max_tokens"]}
            await response.write(b"data: " + msgspec.json.encode({"choices": [], "usage": usage}) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def plain(server: Plain) -> AsyncIterator[Plain]:
    """It runs while the block does."""
    app = web.Application(client_max_size=1 << 24)
    app.add_routes([
        web.get("/v1/models", server.models), web.post("/tokenize", server.tokenize), web.get("/health", server.health),
        web.get("/metrics", server.show_metrics), web.post("/v1/completions", server.complete),
    ])  # fmt: skip
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    try:
        yield server
    finally:
        await runner.cleanup()
