"""Raw ASGI: read a body with a limit, answer, stream. Nothing stands between an engine's bytes and the socket."""

from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from services.gateway.errors import Refusal, invalid


class ClientGone(Exception):
    """The client went away before its request was read."""


def headers_of(scope: Scope) -> dict[str, str]:
    """Request headers, names in lower case; of one that stands twice, the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def body_of(receive: Receive, headers: Mapping[str, str], *, bytes_max: int) -> bytes:
    """The whole body. Refusal 413 as soon as it is known to be too large; the server drops what still comes."""
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > bytes_max:
        raise _too_large(bytes_max)
    parts: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = event.get("body", b"")
        size += len(part)
        if size > bytes_max:
            raise _too_large(bytes_max)
        parts.append(part)
        if not event.get("more_body", False):
            return b"".join(parts) if len(parts) > 1 else part


async def gone(receive: Receive) -> None:
    """Returns when the client goes away (or has its answer)."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def begin(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Status and headers of an answer whose pieces follow."""
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def end(send: Send, data: bytes = b"") -> None:
    """The last piece."""
    await send({"type": "http.response.body", "body": data, "more_body": False})


async def answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """A whole answer."""
    await begin(send, status, {"content-length": str(len(body)), **headers})
    await end(send, body)


async def refuse(send: Send, refusal: Refusal, headers: Mapping[str, str] | None = None) -> None:
    """An answer in OpenAI's error shape."""
    more = {"content-type": "application/json", **refusal.headers, **(headers or {})}
    await answer(send, refusal.status, refusal.body(), more)


def _too_large(bytes_max: int) -> Refusal:
    return invalid(f"the body is larger than {bytes_max} bytes", code="body_too_large", status=413)
