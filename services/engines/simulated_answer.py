"""What a simulated engine says: OpenAI's shapes around made-up words."""

import base64
from array import array
from hashlib import blake2b
from typing import Any, Final

import msgspec

from services.engines.base import Call, Usage
from services.engines.stream import StreamOptions

WORDS: Final = ("tide", "gate", "block", "prefix", "slice", "queue", "token", "cache", "page", "step", "batch", "slack")
VECTOR_LENGTH: Final = 16
TOKENS_DEFAULT: Final = 256
"""The longest made-up answer where nobody set a limit."""
DONE: Final = b"data: [DONE]\n\n"


class _Options(msgspec.Struct, frozen=True):
    stream_options: StreamOptions | None = None
    encoding_format: str | None = None


_options = msgspec.json.Decoder(_Options).decode


class AnswerWriter:
    """Writes the answer to one call. Words depend on the request id alone; token n is the n-th word."""

    def __init__(self, call: Call, *, created_s: int) -> None:
        self._call, self._created_s = call, created_s
        self._options = _options(call.body)
        self._chat = call.path.endswith("/chat/completions")
        digest = blake2b(call.request_id.encode(), digest_size=8).digest()
        self._first_word = digest[0]
        # Small lengths are likelier than long ones, as with real answers: the lesser of two even draws.
        draws = (int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big"))
        self._drawn = 1 + min(draws) % max(1, call.tokens_max or TOKENS_DEFAULT)

    def output_tokens(self) -> int:
        """How long the answer is: as the workload dictates, else drawn from the request id; within the cap."""
        wanted = self._call.output_tokens or self._drawn
        return max(1, min(wanted, self._call.tokens_max or wanted))

    def tokens(self, first: int, count: int) -> bytes:
        """The event with tokens `first` to `first + count - 1` (from 0); a chat's first token brings the role."""
        text = self._words(first, count)
        if not self._chat:
            return self._event([{"index": 0, "text": text, "logprobs": None, "finish_reason": None}])
        delta = {"role": "assistant", "content": text} if first == 0 else {"content": text}
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def end(self, usage: Usage) -> bytes:
        """The event that says why it ended."""
        piece: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        return self._event([{"index": 0, **piece, "logprobs": None, "finish_reason": usage.finish_reason}])

    def usage(self, usage: Usage) -> bytes:
        """The usage event; empty when the body does not ask for it."""
        asked = self._options.stream_options
        if asked is None or not asked.include_usage:
            return b""
        return self._event([], usage=_usage(usage))

    def whole(self, usage: Usage) -> bytes:
        """A non-stream answer."""
        if self._call.path.endswith("/embeddings"):
            return self._vectors(usage)
        text = self._words(0, usage.output_tokens)
        piece: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **piece, "logprobs": None, "finish_reason": usage.finish_reason}
        return msgspec.json.encode(self._head([choice]) | {"usage": _usage(usage)})

    def _vectors(self, usage: Usage) -> bytes:
        plain = self._options.encoding_format != "base64"
        vectors = [self._vector(index) for index in range(self._call.inputs)]
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": vector.tolist() if plain else base64.b64encode(vector.tobytes()).decode(),
            }
            for index, vector in enumerate(vectors)
        ]
        counts = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
        return msgspec.json.encode({"object": "list", "data": data, "model": self._call.model, "usage": counts})

    def _vector(self, index: int) -> "array[float]":
        digest = blake2b(f"{self._call.request_id}/{index}".encode(), digest_size=VECTOR_LENGTH).digest()
        return array("f", ((byte - 128) / 128 for byte in digest))

    def _words(self, first: int, count: int) -> str:
        start = self._first_word + first
        return "".join(" " + WORDS[number % len(WORDS)] for number in range(start, start + count))

    def _head(self, choices: list[dict[str, Any]], *, chunk: bool = False) -> dict[str, Any]:
        kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{self._call.request_id}",
            "object": kind if self._chat else "text_completion",
            "created": self._created_s,
            "model": self._call.model,
            "choices": choices,
        }

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + msgspec.json.encode(self._head(choices, chunk=True) | more) + b"\n\n"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def refusal(message: str, code: str) -> bytes:
    """What an engine answers with status 400."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return msgspec.json.encode({"error": error})
