"""What a client is told when it gets no answer: OpenAI's error shape, with the headers that say what to do next."""

from collections.abc import Mapping
from typing import Final

import msgspec

from events.decisions import RejectReason, RequestRejected
from services.runtime.pool_clock import PoolClock

DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"
RETRY_AFTER_S: Final = 1
"""Advice where nobody knows better: the next second has other budgets."""

INVALID: Final = "invalid_request_error"
UNAVAILABLE: Final = "service_unavailable_error"
RATE_LIMIT: Final = "rate_limit_error"


class Refusal(Exception):
    """A request that gets no answer. The message never quotes the request."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str = "",
        param: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.headers = dict(headers or {})
        self._body = body

    def body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`, or what the engine itself said."""
        if self._body:
            return self._body
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param or None,
            "code": self.code or None,
        }
        return msgspec.json.encode({"error": error})

    def event(self) -> bytes:
        """The same as the last events of a stream that has begun."""
        return b"data: " + self.body() + b"\n\ndata: [DONE]\n\n"


def invalid(message: str, *, param: str = "", code: str = "", status: int = 400) -> Refusal:
    """The client sent something that cannot be served; sending it again will not help."""
    return Refusal(status, message, param=param, code=code)


def unavailable(message: str, *, code: str, reason: str = "", retry_after_s: int = RETRY_AFTER_S) -> Refusal:
    """503: nothing wrong with the request, but nobody can serve it now."""
    headers = {"retry-after": str(retry_after_s)}
    if reason:
        headers[DROPPED_REASON] = reason
    return Refusal(503, message, kind=UNAVAILABLE, code=code, headers=headers)


def rejected(decision: RequestRejected, clock: PoolClock) -> Refusal:
    """What a client hears of a rejection: 400 too long, 503 no engine, else 429 = back off."""
    reason = decision.reason
    headers = {DROPPED_REASON: str(reason)}
    if reason is RejectReason.TOO_LONG:
        message = "the prompt and its longest answer do not fit the context or the KV memory of any engine"
        return Refusal(400, message, code="context_length_exceeded", headers=headers)
    if decision.retry_after_ns:
        headers["retry-after"] = str(max(1, -int(-clock.wall_s(decision.retry_after_ns) // 1)))
    else:
        headers["x-should-retry"] = "false"
    if reason is RejectReason.NO_ENGINE:
        headers.setdefault("retry-after", str(RETRY_AFTER_S))
        headers.pop("x-should-retry", None)
        return Refusal(503, "no engine serves this model now", kind=UNAVAILABLE, code=str(reason), headers=headers)
    return Refusal(429, f"not admitted: {reason}", kind=RATE_LIMIT, code=str(reason), headers=headers)
