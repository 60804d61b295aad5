"""The HTTP front door: OpenAI's paths, one request from its bytes to the holder and back."""

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from typing import Final

from starlette.types import Receive, Scope, Send

from events.base import NS_PER_MS, EngineId, ModelId, RequestId, RequestKind, SessionId
from events.engine import EngineKind
from events.request import AbortReason, RequestArrived
from services.engines.base import Call, Chunk, EngineError
from services.engines.open import Engines
from services.gateway import asgi, openai, slo
from services.gateway.engine_book import EngineBook
from services.gateway.errors import Refusal, invalid, unavailable
from services.gateway.gateway_metrics import GatewayMetrics
from services.gateway.held import Ask, Route
from services.gateway.holder import Holder
from services.gateway.tenants import Tenant, Tenants
from services.gateway.tokens import Counted, Tokens
from services.runtime.config import GatewayConfig, ModelConfig
from services.runtime.pool_clock import PoolClock

REQUEST_ID: Final = "x-request-id"
ENGINE: Final = "x-tidegate-engine"
DECIDED: Final = "x-tidegate-decided"
OUTPUT_TOKENS: Final = "x-tidegate-output-tokens"
LAST_WORD: Final = b"data: [DONE]\n\n"
_HINTED_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_HINTED_TOKENS = re.compile(r"\d{1,8}")


class Front:
    """Takes the POST paths of OpenAI's API: see `serve`."""

    def __init__(
        self,
        *,
        holder: Holder,
        engines: Engines,
        book: EngineBook,
        models: Mapping[str, ModelConfig],
        tenants: Tenants,
        tokens: Tokens,
        clock: PoolClock,
        config: GatewayConfig,
        metrics: GatewayMetrics,
    ) -> None:
        self._holder, self._engines, self._book, self._models = holder, engines, book, models
        self._tenants, self._tokens, self._clock = tenants, tokens, clock
        self._config, self._metrics = config, metrics
        self._entering = 0

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request on one of `openai.PATHS`."""
        headers = asgi.headers_of(scope)
        request_id = self._request_id(headers)
        try:
            self._check_room()
            self._entering += 1
            try:
                ask = await self._ask(scope["path"], headers, receive, request_id)
            finally:
                self._entering -= 1
        except Refusal as refusal:
            self._metrics.turned_away(refusal.status)
            await asgi.refuse(send, refusal, {REQUEST_ID: request_id})
            return
        except asgi.ClientGone:
            return
        sink = _HttpSink(send, request_id, stream=ask.call.stream)
        watch = asyncio.create_task(self._watch(receive, request_id))
        try:
            await self._holder.serve(ask, sink)
            await sink.end()
        except Refusal as refusal:
            await sink.fail(refusal)
        finally:
            watch.cancel()

    def _check_room(self) -> None:
        """Bodies that are still being read and counted take memory too."""
        if self._entering + self._holder.holding >= self._config.requests_max:
            raise unavailable("too many requests are waiting here", code="requests_max", reason="requests_max")

    async def _watch(self, receive: Receive, request_id: RequestId) -> None:
        await asgi.gone(receive)
        self._holder.abort(request_id, AbortReason.CLIENT_GONE)

    async def _ask(self, path: str, headers: Mapping[str, str], receive: Receive, request_id: RequestId) -> Ask:
        """Everything that can be wrong with a request is found here, before anything is said of it."""
        tenant = self._tenants.of_key(headers.get("authorization", ""))
        wish = slo.wish_of(headers)
        body = await asgi.body_of(receive, headers, bytes_max=self._config.body_bytes_max)
        # It has arrived when it is whole: how long a client takes to send it is not the pool's to promise.
        arrived_ns, mono_ns = self._clock.now_ns(), time.monotonic_ns()
        asked = openai.read(path, body)
        model = self._model(asked)
        counted = await self._tokens.count(asked, key=tenant.fingerprint_key)
        arrived = self._arrived(asked, counted, tenant, model, wish, arrived_ns, request_id)
        call = Call(
            request_id=request_id,
            model=asked.model,
            kind=asked.kind,
            path=path,
            body=b"",
            stream=asked.stream,
            prompt_tokens=counted.tokens,
            tokens_max=(asked.tokens_max or model.tokens_max_default) if asked.kind is RequestKind.LLM else 0,
            slices=counted.slices,
            slice_tokens=counted.slice_tokens,
            output_tokens=self._hinted_tokens(headers),
            inputs=counted.inputs,
            tenant=tenant.id,
            priority=arrived.priority,
            deadline_ns=mono_ns * self._clock.speed + arrived.deadline_ns - arrived_ns,
            slo_tpot_ns=arrived.slo_tpot_ns,
        )

        def body_for(engine_id: EngineId) -> bytes:
            kind = self._engines.config(engine_id).kind
            capability = self._engines[engine_id].get_capability()
            # vLLM's rule is the body's: the lower, the sooner. The house's is llm-d's: the higher, the sooner.
            priority = -arrived.priority if capability.can_prioritise else None
            salt = tenant.cache_salt if kind is EngineKind.VLLM else ""
            return asked.engine_body(cache_salt=salt, priority=priority)

        return Ask(arrived, arrived_ns, mono_ns, call, body_for, keeps_usage=asked.stream and not asked.wants_usage)

    def _arrived(
        self, asked: openai.Asked, counted: Counted, tenant: Tenant, model: ModelConfig, wish: slo.Wish,
        arrived_ns: int, request_id: RequestId,
    ) -> RequestArrived:  # fmt: skip
        serving = self._book.serving(asked.model, asked.kind)
        step_known = next((each for each in serving if each.step is not None), None)
        ttft_ns = wish.ttft_ns or slo.ttft_ns_of(model, step_known, prompt_tokens=counted.tokens)
        return RequestArrived(
            request_id=request_id,
            tenant=tenant.id,
            model=asked.model,
            kind=asked.kind,
            holder=self._holder.name,
            prompt_tokens=counted.tokens,
            estimated=counted.estimated,
            tokens_max=asked.tokens_max * asked.choices * counted.inputs,
            inputs=counted.inputs,
            stream=asked.stream,
            priority=self._priority(asked, tenant, wish),
            objective=wish.objective,
            session=SessionId(tenant.name_of(asked.session)) if asked.session else SessionId(""),
            slo_ttft_ns=ttft_ns,
            slo_tpot_ns=wish.tpot_ns or (model.slo_tpot_ms * NS_PER_MS if asked.kind is RequestKind.LLM else 0),
            deadline_ns=arrived_ns + ttft_ns,
            slices=counted.slices,
            slice_tokens=counted.slice_tokens,
        )

    def _priority(self, asked: openai.Asked, tenant: Tenant, wish: slo.Wish) -> int:
        """The request's own word, else its objective's, else its tenant's. Higher goes first."""
        if asked.priority is not None:
            return -asked.priority
        return self._config.objectives.get(wish.objective, tenant.priority)

    def _model(self, asked: openai.Asked) -> ModelConfig:
        model = self._models.get(asked.model)
        if model is None and asked.model in self._book.models():
            model = ModelConfig(name=asked.model)
        if model is None:
            message = "this model is not served here: GET /v1/models lists those that are"
            raise invalid(message, param="model", code="model_not_found", status=404)
        return model

    def _request_id(self, headers: Mapping[str, str]) -> RequestId:
        hinted = headers.get(REQUEST_ID, "") if self._config.workload_hints else ""
        return RequestId(hinted if _HINTED_ID.fullmatch(hinted) else f"req-{secrets.token_hex(12)}")

    def _hinted_tokens(self, headers: Mapping[str, str]) -> int:
        hinted = headers.get(OUTPUT_TOKENS, "") if self._config.workload_hints else ""
        return int(hinted) if _HINTED_TOKENS.fullmatch(hinted) else 0


class _HttpSink:
    """An answer on its way to an HTTP client."""

    def __init__(self, send: Send, request_id: RequestId, *, stream: bool) -> None:
        self._send, self._request_id, self._stream = send, request_id, stream
        self._begun = False
        self._last = b""

    async def begin(self, route: Route, first: Chunk) -> None:
        """See Sink."""
        self._begun = True
        headers = {"content-type": first.content_type, REQUEST_ID: self._request_id, ENGINE: route.engine_id}
        if not route.decided:
            headers[DECIDED] = "no"
        if not self._stream:
            headers["content-length"] = str(len(first.data))
        await asgi.begin(self._send, first.status, headers)

    async def send(self, data: bytes) -> None:
        """See Sink. A stream's last word waits for its end, so that both are one write."""
        if self._last:
            data, self._last = self._last + data, b""
        if self._stream and data.endswith(LAST_WORD):
            self._last = data
        else:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """The answer is complete."""
        if not self._begun:
            # An engine that ends a stream without a single event has said something all the same: nothing.
            await asgi.begin(self._send, 200, {"content-type": "text/event-stream", REQUEST_ID: self._request_id})
        await asgi.end(self._send, self._last)

    async def fail(self, refusal: Refusal) -> None:
        """There is no answer; one that has begun ends with an error event."""
        if not self._begun:
            await asgi.refuse(self._send, refusal, {REQUEST_ID: self._request_id})
        else:
            await asgi.end(self._send, self._last + refusal.event() if self._stream else b"")


async def ask_engine(engines: Engines, book: EngineBook, model: ModelId, path: str, body: bytes) -> list[int] | None:
    """The prompt's token ids as any engine of this model sees them; None where none can tell."""
    kind = RequestKind.EMBEDDING if path == openai.EMBEDDINGS else RequestKind.LLM
    for each in book.serving(model, kind):
        backend = engines.get(each.engine_id)
        if backend is None:
            continue
        try:
            return await backend.tokenize(path, body)
        except EngineError:
            continue
    return None
