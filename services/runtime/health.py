"""/health and /metrics of a worker: a small HTTP server in a thread of its own, for probes and Prometheus."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from services.runtime.config import Config, ConfigError

HOST: Final = "127.0.0.1"
PORT_OFFSET: Final = {
    "clock": 0, "admission": 1, "sensor": 2, "projector": 3, "auditor": 4, "ingest": 5, "quota": 6, "eviction": 7,
    "desk": 8, "migration": 9, "prefetch": 10, "shadow": 11,
}  # fmt: skip
"""Worker -> its port above `metrics_port`."""


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A probe a second is no news."""


@contextmanager
def served(
    config: Config, worker: str, registry: CollectorRegistry, *, ailing: Callable[[], str] = lambda: ""
) -> Iterator[int]:
    """Serve as long as the block runs; the port, or 0 when `metrics_port` is off.

    /health answers 200, or 503 with what `ailing` says. Raises ConfigError when the port is taken.
    """
    if not config.metrics_port:
        yield 0
        return
    port = config.metrics_port + PORT_OFFSET[worker]
    with serve(port, registry, ailing=ailing) as bound:
        yield bound


@contextmanager
def serve(port: int, registry: CollectorRegistry, *, ailing: Callable[[], str] = lambda: "") -> Iterator[int]:
    """As `served`, on a port of one's choice (0 = any free one)."""
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/health":
            page: Iterable[bytes] = metrics(environ, start_response)
            return page
        what = ailing()
        status = "503 Service Unavailable" if what else "200 OK"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [(what or "ok").encode() + b"\n"]

    try:
        server = make_server(HOST, port, answer, WSGIServer, _QuietHandler)
    except OSError as error:
        what = f"port {port} cannot be taken: {error.strerror}"
        raise ConfigError(what, where="config", key="metrics_port", allowed="a free port, or 0 = off") from error
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
