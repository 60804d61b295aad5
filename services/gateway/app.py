"""The ASGI application: OpenAI's POST paths go straight to the front door, the small questions through Starlette."""

from collections.abc import Callable, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from services.gateway import asgi, openai
from services.gateway.engine_book import EngineBook
from services.gateway.errors import Refusal, invalid
from services.gateway.front import Front
from services.gateway.gateway_metrics import GatewayMetrics
from services.gateway.log_health import LogHealth
from services.gateway.tenants import Tenants
from services.runtime.config import ModelConfig

JSON = "application/json"
METRICS = "text/plain; version=0.0.4; charset=utf-8"


class App:
    """See the module."""

    def __init__(
        self,
        front: Front,
        *,
        book: EngineBook,
        models: Mapping[str, ModelConfig],
        tenants: Tenants,
        health: LogHealth,
        metrics: GatewayMetrics,
        reasons: Callable[[], list[str]] = list,
    ) -> None:
        """`reasons`: what else is wrong, in words for /health."""
        self._front, self._book, self._models, self._tenants = front, book, models, tenants
        self._health, self._metrics, self._reasons = health, metrics, reasons
        self._starlette = Starlette(
            routes=[
                Route("/v1/models", self._list_models),
                Route("/v1/models/{model:path}", self._show_model),
                Route("/health", self._show_health),
                Route("/metrics", self._show_metrics),
            ],
            exception_handlers={HTTPException: _http_error, Refusal: _refused},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in openai.PATHS:
            await self._starlette(scope, receive, send)
        elif scope["method"] == "POST":
            await self._front.serve(scope, receive, send)
        else:
            await asgi.refuse(send, invalid("POST is needed here", code="method_not_allowed", status=405))

    def status(self) -> dict[str, object]:
        """Whether requests can be served, and why not: for /health and for `nats micro`."""
        reasons = self._reasons()
        if self._health.is_down:
            reasons.append("the event log takes nothing")
        ready = self._book.ready()
        if not ready:
            reasons.append("no engine is ready")
        return {"status": "unavailable" if reasons else "ok", "reasons": reasons, "engines_ready": list(ready)}

    def model_names(self) -> list[str]:
        """Models that may be named, each once."""
        return list(dict.fromkeys((*self._models, *self._book.models())))

    async def _list_models(self, request: Request) -> Response:
        self._tenants.of_key(request.headers.get("authorization", ""))
        return _json({"object": "list", "data": [_model(name) for name in self.model_names()]})

    async def _show_model(self, request: Request) -> Response:
        self._tenants.of_key(request.headers.get("authorization", ""))
        name = request.path_params["model"]
        if name not in self.model_names():
            raise invalid("this model is not served here", param="model", code="model_not_found", status=404)
        return _json(_model(name))

    async def _show_health(self, _request: Request) -> Response:
        status = self.status()
        return _json(status, 503 if status["reasons"] else 200)

    async def _show_metrics(self, _request: Request) -> Response:
        return Response(self._metrics.text(), media_type=METRICS)


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tidegate"}


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type=JSON)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "Starlette hands over what it was told to"
    refusal = Refusal(error.status_code, error.detail, code="not_found" if error.status_code == 404 else "")
    return Response(refusal.body(), error.status_code, media_type=JSON, headers=error.headers)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal), "Starlette hands over what it was told to"
    return Response(error.body(), error.status, media_type=JSON, headers=error.headers)
